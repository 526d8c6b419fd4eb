"""The autograd function of the cells that the compiled library has: one call of it each way."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.precision import no_autocast
from retrograde.compiled import passes
from retrograde.compiled.library import Library
from retrograde.errors import BackendError
from retrograde.nn.once import Once
from retrograde.nn.recurrence import Note


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
    x = _alive(x)
    initial = [None if part is None else _alive(part) for part in initial]
    if kind.gates:
        initial, inside = passes.side_by_side(kind, initial), True
    given = (*weights, x, *initial)
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in given
    ):
        results = _apply((library, kind, reverse, altered, note, inside), x, *initial, *weights)
        count = len(kind.parts)
        kept = results[2 * count] if len(results) > 2 * count else None
        passed = passes.Pass(results[:count], results[count : 2 * count], kept)
    else:
        passed = passes.forward(library, kind, x, initial, weights, reverse, keep=inside)
    return passes.with_gates(kind, passed, reverse) if kind.gates else passed


class _Compiled(torch.autograd.Function):
    """Gives the states [T, B, H], the last ones [1, B, H], and activations if asked for.

    What it is given and gives is what a pass of the library is and gives (`passes.forward`).
    """

    boxed_grads_call = False  # what it is if it is not said, which takes longer to find out

    @staticmethod
    def forward(
        ctx: Any,
        of: tuple[Library, passes.Kind, bool, passes.Altered, Note | None, bool],
        x: Tensor,
        *tensors: Tensor | None,
    ) -> Any:
        ctx.set_materialize_grads(False)
        library, kind, reverse, _, _, inside = of
        initial, weights = tensors[: kind.given], tensors[kind.given :]
        passed = passes.forward(library, kind, x, initial, weights, reverse)
        ctx.of, ctx.read = of, passed.read
        output, *others = passed.states
        kept = (passed.kept,) if inside and passed.kept is not None else ()
        if kind.reads_output:
            ctx.save_for_backward(x, *tensors, output, passed.kept)
            output = output.clone()  # it may be changed in place, as that of torch may
        else:
            ctx.save_for_backward(x, *tensors, None, *others, passed.kept)
        return (output, *others, *passed.last, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        library, kind, reverse, altered, note, _ = ctx.of
        count, given = len(kind.parts), kind.given
        x, *tensors = ctx.saved_tensors
        initial, weights = tensors[:given], tensors[given : -count - 1]
        passed = passes.Pass(tensors[-count - 1 : -1], (), tensors[-1], ctx.read)
        by_kept = grads[2 * count] if len(grads) > 2 * count else None
        needs = ctx.needs_input_grad[1:]
        if any([grad is not None and _is_batched(grad) for grad in grads]):
            several = _by_torch(kind, altered, reverse, x, initial, weights, grads, needs)
            if several is None:
                raise BackendError(BATCHED)
            return None, *several
        of_states = grads[:count], grads[count : 2 * count]
        found = passes.backward(
            library, kind, x, initial, weights, passed, *of_states, by_kept, needs, reverse, altered
        )
        if found.clipped is not None and note is not None:
            looked_at = passed.states[-1].numel() * kind.blocks[0]
            note(found.clipped.sum(), looked_at)
        results = [found.x, *found.initial, *found.weights]
        if torch.is_grad_enabled():  # create_graph=True: someone may differentiate again
            again = _by_torch(kind, altered, reverse, x, initial, weights, grads, needs)
            if again is not None:
                return None, *again
            wanted = [result for result in results if result is not None]
            sources = [tensor for tensor in (*grads, x, *tensors) if tensor is not None]
            once = iter(Once.apply(len(wanted), *wanted, *sources))  # type: ignore[no-untyped-call]
            results = [None if result is None else next(once) for result in results]
        return None, *results


_alive = torch._C._functorch.unwrap_if_dead
"""A tensor that a transform of torch.func has left behind, without what is around it."""

_apply: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Compiled).apply
"""Function.apply without what it does for torch.func, under which the library is not in use."""

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
