"""Whether a loss is a sum over steps, as it must be where back-propagation runs chunk by chunk.

    L = sum_t l_t(h_t)      dL/dh_t does not depend on h_s for any s other than t

The outputs of the recurrent layers are held, and moved at the steps whose number has a 1 at some
binary digit; dL/dh at the others must stay. Any two steps differ in a digit, so that log2 T passes
look at every pair.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde.declarations import Declaration
from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.run import LossFunction
from retrograde.recording.layers import layers_of

MOVED = 1e-3
"""dL/dh of the other steps moves by no more than this, relative to its size."""

Leaves = dict[tuple[str, int], tuple[Tensor, Int[Tensor, "..."]]]
"""What each layer returned, and the step of each row of it."""


def is_sum_over_steps(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    lengths: Mapping[str, int],
) -> bool | None:
    """Whether dL/dh of no step depends on the outputs of another one.

    None where that cannot be asked: of a layer that is called more than once.

    Args:
        model: the user's model; copies are run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        lengths: the steps of every recorded layer.
    """
    held: dict[tuple[str, int], Tensor] = {}

    def adjoints(digit: int | None) -> list[tuple[Tensor, Int[Tensor, "..."]]] | None:
        return _adjoints(model, batch, loss_fn, seed, lengths, held, digit)

    before = adjoints(None)
    if before is None:
        return None
    size = _norm(adjoint for adjoint, _ in before)
    for digit in range((max(lengths.values()) - 1).bit_length()):
        after = adjoints(digit)
        if after is None:
            return None
        change = _norm(
            torch.where(step >> digit & 1 == 0, new - old, 0)
            for (old, step), (new, _) in zip(before, after, strict=True)
        )
        if change > MOVED * size:
            return False
    return True


def _norm(tensors: Iterator[Tensor]) -> float:
    squares = [each.double().square().sum().cpu() for each in tensors]
    return float(torch.stack(squares).sum().sqrt())


def _adjoints(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    lengths: Mapping[str, int],
    held: dict[tuple[str, int], Tensor],
    digit: int | None,
) -> list[tuple[Tensor, Int[Tensor, "..."]]] | None:
    """The gradient of the loss to what the layers return, moved at the steps with this digit."""
    copy, leaves, refused = copied_model(model), Leaves(), list[str]()
    hooks = [
        module.register_forward_hook(
            _holding(name, lengths[name], module, declaration, held, digit, leaves, refused)
        )
        for name, (module, declaration) in layers_of(copy).items()
        if name in lengths
    ]
    try:
        with seeded(seed), torch.enable_grad():
            loss = loss_fn(copy, copied(batch))
            if refused or len({name for name, _ in leaves}) != len(lengths):
                return None
            read = [leaf for leaf, _ in leaves.values()]
            if not loss.requires_grad:
                return None
            found = torch.autograd.grad(loss, read, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (torch.zeros_like(leaf) if adjoint is None else adjoint, step)
        for adjoint, (leaf, step) in zip(found, leaves.values(), strict=True)
    ]


def _holding(
    name: str,
    steps: int,
    module: nn.Module,
    declaration: Declaration | None,
    held: dict[tuple[str, int], Tensor],
    digit: int | None,
    leaves: Leaves,
    refused: list[str],
) -> Callable[..., Any]:
    """A forward hook that returns what was returned before, with the moved steps moved."""
    first = getattr(module, "batch_first", False)
    batch_first = declaration.batch_comes_first(module) if declaration is not None else first
    both = getattr(module, "bidirectional", False)

    def leaf(data: Tensor, step: Int[Tensor, "..."]) -> Tensor:
        key = name, sum(one == name for one, _ in leaves)
        kept = held.setdefault(key, data.detach().clone())
        moved = kept.clone()
        if digit is not None:
            noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(0))
            noise = noise.to(kept) * kept.abs().mean()
            moved += torch.where(step >> digit & 1 == 1, noise, 0)
        leaves[key] = moved.requires_grad_(), step
        return moved

    def hook(_: nn.Module, __: Any, result: Any) -> Any:
        output = result[0] if isinstance(result, tuple) else result
        if any(one == name for one, _ in leaves):
            refused.append(name)
            return None
        if isinstance(output, PackedSequence):
            sizes = output.batch_sizes
            step = torch.repeat_interleave(torch.arange(len(sizes)), sizes).unsqueeze(1)
            return (
                output._replace(data=leaf(output.data, step.to(output.data.device))),
                *result[1:],
            )
        axis = 1 if batch_first and isinstance(output, Tensor) and output.ndim == 3 else 0
        if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[axis] != steps:
            refused.append(name)
            return None
        step = torch.arange(steps, device=output.device)
        step = step.view([-1 if at == axis else 1 for at in range(output.ndim)])
        output = leaf(output, step)
        if not isinstance(result, tuple):
            return output
        last = torch.tensor(steps - 1, device=output.device)
        states = [
            tuple(leaf(one, last) for one in state)
            if isinstance(state, tuple)
            else leaf(state, last)
            for state in (() if both else result[1:])
        ]
        return (output, *(states or result[1:]))

    return hook
