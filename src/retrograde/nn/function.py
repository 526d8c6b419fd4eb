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
from retrograde.cells.rewiring import scaled
from retrograde.compiled import passes
from retrograde.compiled.library import Library
from retrograde.engine import ParameterSums, Unrolled, unroll
from retrograde.engine.linear_adjoints import linear_adjoints
from retrograde.engine.linear_states import by_blocks
from retrograde.engine.scan import Summed
from retrograde.engine.unroll import stacked
from retrograde.errors import BackendError, SecondDerivativeError

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
    plain, altered = passes.plain(cell)
    library = passes.in_use(x, *initial, *passes.weights_of(plain))
    kind = passes.kind_of(plain) if library else None
    if library and kind:
        weights = passes.weights_of(plain)
        passed = compiled(library, kind, x, initial, weights, False, inside, altered, note)
        output, named = passed.states[0], dict(zip(kind.parts, passed.states, strict=True))
        activations = passes.activations_of(kind, output, passed.kept) if inside else {}
        ends = {name: part[0] for name, part in zip(kind.parts, passed.last, strict=True)}
        return Through(output, named, ends, activations)
    first = torch.cat(tuple(initial), -1)
    states = run(cell, x, first, note)
    activations = {}
    if inside:
        before = torch.cat((first.unsqueeze(0), states[:-1]))
        activations = dict(cell.step(x, before).activations)
    parts = {name: states[..., slot] for name, slot in cell.slots.items()}
    last = {name: part[-1] for name, part in parts.items()}
    return Through(states[..., cell.output], parts, last, activations)


def compiled(
    library: Library,
    kind: passes.Kind,
    x: Float[Tensor, "T B I"],
    initial: Sequence[Float[Tensor, "B H"] | None],
    weights: Sequence[Tensor | None],
    reverse: bool = False,
    inside: bool = False,
    altered: passes.Altered = passes.DERIVATIVE,
    note: Note | None = None,
) -> passes.Pass:
    """A pass of the library that can be differentiated once; `inside` asks for its activations."""
    if torch.is_grad_enabled() and any(
        [tensor is not None and tensor.requires_grad for tensor in (x, *initial, *weights)]
    ):
        given = (x, *initial, *weights)
        results = _Compiled.apply(library, (kind, reverse, altered), note, inside, *given)  # type: ignore[no-untyped-call]
        count = len(kind.parts)
        kept = results[2 * count] if len(results) > 2 * count else None
        return passes.Pass(results[:count], results[count : 2 * count], kept)
    return passes.forward(library, kind, x, initial, weights, reverse, keep=inside)


class _Compiled(torch.autograd.Function):
    """Gives the states [T, B, H], the last ones [1, B, H], and activations if asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        library: Library,
        which: tuple[passes.Kind, bool, passes.Altered],
        note: Note | None,
        inside: bool,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Any:
        ctx.set_materialize_grads(False)
        kind, reverse, _ = which
        count = len(kind.parts)
        initial, weights = tensors[:count], tensors[count:]
        passed = passes.forward(library, kind, x, initial, weights, reverse)
        ctx.of, ctx.note, ctx.inside = (library, *which), note, inside
        ctx.save_for_backward(x, *tensors, *passed.states, passed.kept)
        kept = (passed.kept,) if inside and passed.kept is not None else ()
        output, *others = passed.states  # the output may be changed in place, as torch's may
        return (output.clone(), *others, *passed.last, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        library, kind, reverse, altered = ctx.of
        count = len(kind.parts)
        x, *tensors = ctx.saved_tensors
        initial, weights = tensors[:count], tensors[count : -count - 1]
        passed = passes.Pass(tensors[-count - 1 : -1], (), tensors[-1])
        by_kept = grads[2 * count] if len(grads) > 2 * count else None
        needs = ctx.needs_input_grad[4:]
        if any(grad is not None and _is_batched(grad) for grad in grads):
            several = _by_torch(kind, altered, reverse, x, initial, weights, grads, needs)
            if several is None:
                raise BackendError(BATCHED)
            return None, None, None, None, *several
        of_states = grads[:count], grads[count : 2 * count]
        found = passes.backward(
            library, kind, x, initial, weights, passed, *of_states, by_kept, needs, reverse, altered
        )
        if found.clipped is not None and ctx.note is not None:
            looked_at = passed.states[0].numel() * kind.blocks[0]
            ctx.note(found.clipped.sum(), looked_at)
        results = [found.x, *found.initial, *found.weights]
        results = [r if needed else None for r, needed in zip(results, needs, strict=True)]
        if torch.is_grad_enabled():  # create_graph=True: someone may differentiate again
            again = _by_torch(kind, altered, reverse, x, initial, weights, grads, needs)
            if again is not None:
                return None, None, None, None, *again
            wanted = [result for result in results if result is not None]
            sources = [tensor for tensor in (*grads, x, *tensors) if tensor is not None]
            given = iter(_Once.apply(len(wanted), *wanted, *sources))  # type: ignore[no-untyped-call]
            results = [None if result is None else next(given) for result in results]
        return None, None, None, None, *results


BATCHED = (
    "several gradients at once (is_grads_batched=True, vectorize=True) do not go through this "
    "cell; ask for one after the other"
)


def _is_batched(grad: Tensor) -> bool:
    """Whether it stands for several gradients, as under vmap; the library cannot see into it."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)


def _by_torch(
    kind: passes.Kind,
    altered: passes.Altered,
    reverse: bool,
    x: Tensor,
    initial: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None] | None:
    """The gradients by torch's own function, whose derivative has a derivative.

    It also takes several gradients at once. None where torch has no such cell, or does not give
    what was differentiated.
    """
    count = len(kind.parts)
    if (
        not kind.torch
        or altered != passes.DERIVATIVE
        or any(grad is not None for grad in (*grads[1:count], *grads[2 * count :]))
    ):
        return None
    zeros = x.new_zeros(1, x.shape[1], weights[1].shape[1])  # type: ignore[union-attr]
    with torch.enable_grad(), no_autocast(x.device):
        along = x.flip(0) if reverse else x
        parts = [zeros if part is None else part.unsqueeze(0) for part in initial]
        held = [weight for weight in weights if weight is not None]
        output, *last = getattr(torch, kind.torch)(
            along,
            parts if count > 1 else parts[0],
            held,
            *(len(held) > 2, 1, 0.0, False, False, False),  # biases, layers, ..., batch first
        )
        given = [
            (result, grad)
            for result, grad in zip(
                (output.flip(0) if reverse else output, *last),
                (grads[0], *grads[count : 2 * count]),
                strict=True,
            )
            if grad is not None
        ]
        sources = zip((x, *initial, *weights), needs, strict=True)
        leaves = [source for source, need in sources if need and source is not None]
        found = iter(
            torch.autograd.grad(
                [result for result, _ in given],
                leaves,
                [grad for _, grad in given],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return [next(found) if need else None for need in needs]


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
            for each in factors.values() if note is not None else ():
                note((each < 1).sum(), each.numel())  # type: ignore[misc]
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
