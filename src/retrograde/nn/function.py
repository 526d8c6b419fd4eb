"""One autograd function for all cells, and one for those that the compiled library has.

The first: forward is `unroll`, backward the scan. The second: one call of the library each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.plan import Plan
from retrograde.cells.precision import no_autocast
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.cells.rewiring import Factors, scaled
from retrograde.compiled import passes
from retrograde.compiled.library import Library
from retrograde.engine import ParameterSums, Unrolled, unroll
from retrograde.engine.linear_adjoints import linear_adjoints
from retrograde.engine.linear_states import by_blocks
from retrograde.engine.scan import Summed
from retrograde.engine.unroll import stacked
from retrograde.errors import SecondDerivativeError

Note = Callable[[Factors], None]
"""Is told by which factors a clipping policy multiplied the adjoints of some steps."""


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
    """
    states: Tensor = _Recurrence.apply(cell, note, x, initial, *cell.parameters.values())  # type: ignore[no-untyped-call]
    return states


@dataclass(frozen=True, eq=False)
class Through:
    """A cell that ran through a sequence; all of it can be differentiated.

    Attributes:
        output: what the layer hands on, [T, B, H].
        states: the parts of the state after each step, by name, [T, B, H].
        last: those after the last step that ran, [B, H].
        activations: gates and other activated values by name, [T, B, H]; none if not asked for.
    """

    output: Float[Tensor, "T B H"]
    states: Mapping[str, Float[Tensor, "T B _"]]
    last: Mapping[str, Float[Tensor, "B _"]]
    activations: Mapping[str, Float[Tensor, "T B _"]]


def through_cell(
    cell: AbstractCell,
    x: Float[Tensor, "T B I"],
    initial: Sequence[Float[Tensor, "B _"]],
    note: Note | None = None,
    inside: bool = False,
) -> Through:
    """Run a cell through a sequence on the backend in use.

    Args:
        cell: the recurrence.
        x: inputs.
        initial: the parts of the initial state.
        note: is told what a clipping policy did in the backward pass.
        inside: whether activations are wanted.
    """
    library = passes.in_use(cell, x)
    kind = passes.kind_of(cell) if library else None
    if library and kind:
        return _compiled(library, kind, cell, x, initial, inside)
    first = torch.cat(tuple(initial), -1)
    states = run(cell, x, first, note)
    activations: Mapping[str, Tensor] = {}
    if inside:
        before = torch.cat((first.unsqueeze(0), states[:-1]))
        activations = cell.step(x, before).activations
    parts = {name: states[..., slot] for name, slot in cell.slots.items()}
    last = {name: part[-1] for name, part in parts.items()}
    return Through(states[..., cell.output], parts, last, activations)


def _compiled(
    library: Library,
    kind: passes.Kind,
    cell: AbstractCell,
    x: Tensor,
    initial: Sequence[Tensor],
    inside: bool,
) -> Through:
    weights = passes.weights_of(cell)
    differentiated = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *initial, *weights)
    )
    count = len(kind.parts)
    if differentiated:
        results = _Compiled.apply(library, kind, inside, x, *initial, *weights)  # type: ignore[no-untyped-call]
        states, last, kept = results[:count], results[count : 2 * count], results[2 * count :]
    else:
        passed = passes.forward(library, kind, x, initial, weights, keep=inside)
        of_state = [part for part in (passed.h, passed.c) if part is not None]
        states = [passed.steps(part) for part in of_state]
        last = [passed.last(part) for part in of_state]
        kept = () if passed.kept is None else (passed.kept,)
    activations = passes.activations_of(kind, cell, states[0], *kept) if inside else {}
    named = dict(zip(kind.parts, states, strict=True))
    return Through(states[0], named, dict(zip(kind.parts, last, strict=True)), activations)


class _Compiled(torch.autograd.Function):
    """Gives the parts of the state [T, B, H], those of the last one, and activations if asked."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        kind: passes.Kind,
        inside: bool,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Any:
        ctx.set_materialize_grads(False)
        count = len(kind.parts)
        initial, weights = tensors[:count], tensors[count:]
        passed = passes.forward(library, kind, x, initial, weights)  # type: ignore[arg-type]
        of_state = [part for part in (passed.h, passed.c) if part is not None]
        states = [passed.steps(part) for part in of_state]
        last = [passed.last(part).clone() for part in of_state]
        ctx.library, ctx.passed, ctx.inside = library, passed, inside
        kept = (passed.kept,) if inside and passed.kept is not None else ()
        ctx.save_for_backward(x, *weights, *states)
        return (*states, *last, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        passed, count = ctx.passed, len(ctx.passed.kind.parts)
        x, *saved = ctx.saved_tensors
        weights = saved[: len(passes.WEIGHTS)]
        needs = ctx.needs_input_grad[3:]
        by_kept = grads[2 * count] if len(grads) > 2 * count else None
        with torch.no_grad():
            found = passes.backward(
                ctx.library,
                passed,
                x,
                weights,
                grads[:count],
                grads[count : 2 * count],
                by_kept,
                needs,
            )
        results = [found.x, *found.initial, *found.weights]
        results = [r if needed else None for r, needed in zip(results, needs, strict=True)]
        if torch.is_grad_enabled():  # create_graph=True: someone may differentiate again
            wanted = [result for result in results if result is not None]
            sources = [t for t in (*grads, x, *weights) if t is not None]
            given = iter(_Once.apply(len(wanted), *wanted, *sources))  # type: ignore[no-untyped-call]
            results = [None if result is None else next(given) for result in results]
        return None, None, None, *results


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
            wanted = list(_Once.apply(len(wanted), *wanted, grads[0], x, *weights))  # type: ignore[no-untyped-call]
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
            if note is not None:
                note(factors)
        take(chunk.first, len(chunk), CellAdjoint(plan, deltas.flatten(1, 2), range(len(chunk))))
    return found(summed.adjoint[0])


class _Once(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise SecondDerivativeError(
            "a recurrence of retrograde.nn was differentiated twice, but only its first derivative "
            "is implemented. For a second derivative (a gradient penalty, a Hessian) step "
            "its cell in a plain loop: state = module.cells()[0].step(x_k, state).state"
        )
