"""The autograd function of all cells: forward is `unroll`, backward the scan."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells import Clipped, Cut
from retrograde.cells.base import AbstractCell
from retrograde.cells.plan import Plan
from retrograde.cells.precision import no_autocast
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.cells.rewiring import scaled
from retrograde.compiled.passes import followed
from retrograde.engine import ParameterSums, Unrolled, unroll
from retrograde.engine.linear_adjoints import linear_adjoints
from retrograde.engine.linear_states import by_blocks
from retrograde.engine.scan import Summed
from retrograde.engine.unroll import stacked
from retrograde.errors import BackendError
from retrograde.nn.once import Once

Note = Callable[[Tensor, int], None]
"""Is told how many factors of a clipping policy are less than 1, and of how many."""


def run(
    cell: AbstractCell,
    x: Float[Tensor, "T B I"],
    initial: Float[Tensor, "B S"],
    note: Note | None = None,
) -> Float[Tensor, "T B S"]:
    """All states of a sequence, differentiable by the derivative that the cell writes out.

        dL/ds_k = direct + J_{k+1}^T dL/ds_{k+1}        dL/dW = sum over k of da_k (x) u_k

    Differentiable once, with respect to x, the initial state and the parameters. In the backward
    pass of a clipped cell its policy acts, and `note` is told what it did.

    Where torch traces or transforms (torch.func, torch.export, torch.jit.trace) the steps run one
    by one, so that it sees all operations, and can differentiate them again.
    """
    if not torch.compiler.is_dynamo_compiling() and followed():
        if not isinstance(cell, Clipped | Cut):
            return _step_by_step(cell, x, initial)
        if not torch._C._len_torch_dispatch_stack() and torch._C._get_tracing_state() is None:
            raise BackendError(
                "torch.func and forward-mode differentiation need the derivative, and a recurrence "
                "that is truncated or clipped inside gives something else in its backward pass. "
                "Use torch.autograd.grad, or a layer that does neither"
            )
    states: Tensor = _Recurrence.apply(cell, note, x, initial, *cell.parameters.values())  # type: ignore[no-untyped-call]
    return states


def _step_by_step(
    cell: AbstractCell, x: Float[Tensor, "T B I"], initial: Float[Tensor, "B S"]
) -> Float[Tensor, "T B S"]:
    states = [initial]
    with no_autocast(x.device):
        for x_k in x:
            states.append(cell.step(x_k, states[-1]).state)
    return torch.stack(states[1:])


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cell: AbstractCell,
        note: Note | None,
        x: Tensor,
        initial: Tensor,
        *weights: Tensor,
    ) -> Any:
        unrolled = unroll(cell, x, initial, keep=True)
        ctx.cell, ctx.note, ctx.kept = cell, note, unrolled.kept
        ctx.save_for_backward(x, unrolled.states, *weights)
        return unrolled.states[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, states, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad[2:]
        with torch.no_grad(), no_autocast(x.device):
            cell = ctx.cell.with_parameters(dict(zip(ctx.cell.parameters, weights, strict=True)))
            unrolled = Unrolled(cell, x, states, ctx.kept)
            found = _pull_back(unrolled, grads[0], needs, ctx.note)
        wanted = [grad for grad, needed in zip(found, needs, strict=True) if needed]
        if torch.is_grad_enabled():  # create_graph=True: someone may differentiate again
            wanted = list(Once.apply(len(wanted), *wanted, grads[0], x, *weights))  # type: ignore[no-untyped-call]
        given = iter(wanted)
        return None, None, *(next(given) if needed else None for needed in needs)


def _pull_back(
    unrolled: Unrolled,
    direct: Float[Tensor, "T B S"],
    needs: tuple[bool, ...],
    note: Note | None,
) -> list[Tensor | None]:
    """The gradients of x, of the initial state and of the weights."""
    cell, x = unrolled.cell, unrolled.x
    sums = ParameterSums(cell.parameters, rows=1)
    by_x = torch.empty_like(x) if needs[0] else None

    def take(first: int, count: int, pulled: CellAdjoint) -> None:
        if any(needs[2:]):
            sums.add(pulled)
        if by_x is not None:
            steps = slice(first, first + count)
            by_x[steps] = pulled.input().view_as(by_x[steps])

    def found(by_state: Tensor) -> list[Tensor | None]:
        return [by_x, by_state, *(total.values[0] for total in sums.result().values())]

    if not unrolled.kept and by_blocks(cell, x):
        by_state = direct[0]
        for chunk, deltas, before in linear_adjoints(unrolled, direct):
            rows, by_state = deltas.flatten(0, 1).unsqueeze(0), before
            take(chunk.first, len(chunk), chunk.pull_back(rows, chunk.first, len(chunk)))
        return found(by_state)
    summed = Summed(direct)
    for chunk in unrolled.chunks():
        # What the recursion does not need is pulled back for all steps of the chunk at once.
        deltas, chosen = summed.through(chunk)
        plan = chunk.plan
        if chosen:
            factors = stacked(chosen)
            plan = Plan(scaled(chunk.graph, factors))
            for each in factors.values() if note is not None else ():
                note((each < 1).sum(), each.numel())  # type: ignore[misc]
        take(chunk.first, len(chunk), CellAdjoint(plan, deltas.flatten(1, 2), range(len(chunk))))
    return found(summed.adjoint[0])
