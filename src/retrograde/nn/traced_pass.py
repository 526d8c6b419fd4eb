"""Passes of the compiled library as operations of torch, for torch.compile.

It takes them into its graphs whole, where it could not follow a call into C and would otherwise
write out every step. Eager code calls the library by itself (compiled_pass.py), which costs less.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrograde.compiled import passes
from retrograde.compiled.library import Library, library
from retrograde.errors import BackendError

_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # from torch 2.7 on


def in_graph() -> bool:
    """Whether torch.compile traces now, and not for an export."""
    return torch.compiler.is_dynamo_compiling() and not _exporting()


def usable(x: Tensor, *others: Tensor | None) -> bool:
    """Whether torch.compile traces now, and the library can read these.

    What is exported must run without this package, and so consists of torch's own operations.
    """
    return (
        in_graph()
        and x.dtype in (torch.float32, torch.float64)
        and all(t is None or (t.is_cpu and t.dtype == x.dtype) for t in (x, *others))
        and _is_there()
    )


def traced(
    kind: passes.Kind,
    x: Tensor,
    initial: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    reverse: bool = False,
    inside: bool = False,
) -> passes.Pass:
    """A pass as `compiled_pass.compiled` gives it."""
    h_0, c_0, gates_0 = (*passes.side_by_side(kind, initial), None, None)[:3]
    inside = inside or kind.gates != ()
    keep = inside or torch.is_grad_enabled()
    results = _forward(x, h_0, c_0, gates_0, *weights, kind.name, reverse, keep)
    count = len(kind.parts)
    kept = results[2 * count] if inside and kind.activations else None
    output, *others = results[:count]  # the output may be changed in place, as torch's may
    passed = passes.Pass((output.clone(), *others), tuple(results[count : 2 * count]), kept)
    return passes.with_gates(kind, passed, reverse)


def _is_there() -> bool:
    return library() is not None


# As torch.compiler.assume_constant_result does, which imports all of Dynamo first.
_is_there._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _library() -> Library:
    found = library()
    if found is None:
        raise BackendError(
            "this graph was compiled with the compiled backend in use, which is not there now"
        )
    return found


GIVEN = (
    "Tensor x, Tensor? h_0, Tensor? c_0, Tensor? gates_0, Tensor weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_ch, Tensor? weight_gg"
)


@torch.library.custom_op(
    "retrograde::forward",
    mutates_args=(),
    schema=f"({GIVEN}, str cell, bool reverse, bool keep) -> Tensor[]",
)
def _forward(x: Tensor, *others: Any) -> list[Tensor]:
    kind, initial, weights, (reverse, keep) = _taken_apart(others)
    passed = passes.forward(_library(), kind, x, initial, weights, reverse, keep)
    return [*passed.states, *passed.last, *([] if passed.kept is None else [passed.kept])]


@_forward.register_fake
def _(x: Tensor, *others: Any) -> list[Tensor]:
    kind, _, (_, w_hh, *_), (_, keep) = _taken_apart(others)
    (steps, samples, _), hidden = x.shape, w_hh.shape[1]
    states = [x.new_empty(steps, samples, hidden) for _ in kind.parts]
    last = [x.new_empty(1, samples, hidden) for _ in kind.parts]
    if not (keep and kind.activations):
        return [*states, *last]
    padded = passes.padded(_library(), x, hidden)
    return [*states, *last, x.new_empty(steps, samples, len(kind.activations), padded)]


@torch.library.custom_op(
    "retrograde::backward",
    mutates_args=(),
    schema=f"({GIVEN}, str cell, bool reverse, Tensor[] passed, Tensor?[] grads, bool[] needs)"
    " -> Tensor[]",
)
def _backward(x: Tensor, *others: Any) -> list[Tensor]:
    """The gradients of what `needs` names."""
    kind, initial, weights, (reverse, states, grads, needs) = _taken_apart(others)
    count = len(kind.parts)
    kept, by_kept = (states[count], grads[2 * count]) if kind.activations else (None, None)
    passed = passes.Pass(tuple(states[:count]), (), kept)
    last = grads[count : 2 * count]
    needs = [needs[0], *needs[1 : 1 + kind.given], *needs[4:]]
    found = passes.backward(
        _library(), kind, x, initial, weights, passed, grads[:count], last, by_kept, needs, reverse
    )
    return [grad for grad in (found.x, *found.initial, *found.weights) if grad is not None]


@_backward.register_fake
def _(x: Tensor, *others: Any) -> list[Tensor]:
    *_, needs = others
    return [t.new_empty(t.shape) for t, need in zip((x, *others), needs, strict=False) if need]


def _taken_apart(others: tuple[Any, ...]) -> tuple[passes.Kind, Any, Any, tuple[Any, ...]]:
    """The kind of cell, its initial state and its weights, and what comes after them."""
    h_0, c_0, gates_0, *weights, cell = others[: len(passes.WEIGHTS) + 4]
    kind = passes.named(cell)
    initial = (h_0, c_0, gates_0)[: kind.given]
    return kind, initial, weights, others[len(passes.WEIGHTS) + 4 :]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, cell, reverse, _ = inputs
    count = len(passes.named(cell).parts)
    ctx.of, ctx.given = (cell, reverse), len(tensors)
    ctx.save_for_backward(*tensors, *output[:count], *output[2 * count :])


def _pull_back(ctx: Any, grads: list[Tensor | None]) -> Any:
    tensors, passed = ctx.saved_tensors[: ctx.given], ctx.saved_tensors[ctx.given :]
    needs = ctx.needs_input_grad[: ctx.given]
    found = iter(_backward(*tensors, *ctx.of, list(passed), grads, list(needs)))
    return *(next(found) if need else None for need in needs), None, None, None


_forward.register_autograd(_pull_back, setup_context=_setup_context)
