"""One autograd function for all cells: forward is `unroll`, backward the cell's own pull-back."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.engine import ParameterSums, Unrolled, unroll
from retrograde.errors import SecondDerivativeError


def run(
    cell: AbstractCell, x: Float[Tensor, "T B I"], initial: Float[Tensor, "B S"]
) -> Float[Tensor, "T B S"]:
    """All states of a sequence, differentiable by the derivative that the cell writes out.

        dL/ds_k = direct + J_{k+1}^T dL/ds_{k+1}        dL/dW = sum over k of da_k (x) u_k

    Differentiable once, with respect to x, the initial state and the parameters.
    """
    states: Tensor = _Recurrence.apply(cell, x, initial, *cell.parameters.values())  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: AbstractCell, x: Tensor, initial: Tensor, *weights: Tensor) -> Any:
        states = unroll(cell, x, initial).states
        ctx.cell = cell
        ctx.save_for_backward(x, states, *weights)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, states, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        with torch.no_grad():
            found = _pull_back(ctx.cell, x, states, weights, grads[0], needs)
        wanted = [grad for grad, needed in zip(found, needs, strict=True) if needed]
        if torch.is_grad_enabled():  # create_graph=True: someone may differentiate again
            wanted = list(_Once.apply(len(wanted), *wanted, grads[0], x, *weights))  # type: ignore[no-untyped-call]
        given = iter(wanted)
        return None, *(next(given) if needed else None for needed in needs)


def _pull_back(
    cell: AbstractCell,
    x: Tensor,
    states: Tensor,
    weights: list[Tensor],
    direct: Tensor,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients of x, of the initial state and of the weights."""
    cell = cell.with_parameters(dict(zip(cell.parameters, weights, strict=True)))
    sums = ParameterSums(cell.parameters, rows=1)
    by_x = torch.empty_like(x) if needs[0] else None
    exponent = torch.zeros(1, dtype=torch.int64, device=x.device)
    adjoint = torch.zeros_like(states[:1])
    for k, step in Unrolled(cell, x, states).backwards():
        pulled = cell.pull_back(step, adjoint + direct[k])
        if any(needs[2:]):
            sums.add(pulled.uses, exponent)
        if by_x is not None:
            by_x[k] = pulled.input()[0]
        adjoint = pulled.previous()
    return [by_x, adjoint[0], *(total.values[0] for total in sums.result().values())]


class _Once(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise SecondDerivativeError(
            "a recurrence of retrograde.nn was differentiated twice, and its derivative is written "
            "out by hand once only. For a second derivative (a gradient penalty, a Hessian) step "
            "its cell in a plain loop: state = module.cells()[0].step(x_k, state).state"
        )
