"""Whether a loss is a sum over steps, as it must be where back-propagation runs chunk by chunk."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.run import LossFunction
from retrograde.recording import recurrent_layers

MOVED = 1e-3
"""dL/dh of the earlier steps moves by no more than this, relative to its size."""


def is_sum_over_steps(
    model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, layer: str, steps: int
) -> bool:
    """Whether dL/dh of the first half stays as it is when the layer's later outputs are others.

    True as well where that cannot be asked: of a layer that is called step by step.

    Args:
        model: the user's model; copies are run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        layer: the recurrent layer, the only one.
        steps: T.
    """
    found = [_early_adjoint(model, batch, loss_fn, seed, layer, steps, by) for by in (0.0, 1.0)]
    if found[0] is None or found[1] is None:
        return True
    moved = torch.linalg.vector_norm(found[1] - found[0])
    return bool(moved <= MOVED * torch.linalg.vector_norm(found[0]))


def _early_adjoint(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    layer: str,
    steps: int,
    by: float,
) -> Tensor | None:
    """dL/dh of the first half, the later outputs moved by so much of their size."""
    copy = copied_model(model)
    module = recurrent_layers(copy).get(layer)
    if module is None:
        return None
    outputs: list[tuple[Tensor, int]] = []
    hook = module.register_forward_hook(_moving(module, steps, by, outputs))
    try:
        with seeded(seed), torch.enable_grad():
            loss = loss_fn(copy, copied(batch))
            if len(outputs) != 1 or not loss.requires_grad:
                return None
            output, axis = outputs[0]
            (adjoint,) = torch.autograd.grad(loss, output, allow_unused=True)
    finally:
        hook.remove()
    return None if adjoint is None else adjoint.narrow(axis, 0, steps // 2)


def _moving(
    module: nn.Module, steps: int, by: float, outputs: list[tuple[Tensor, int]]
) -> Callable[..., Any]:
    """A forward hook that moves the later outputs, and keeps what it returns."""

    def hook(_: nn.Module, __: Any, result: Any) -> Any:
        output = result[0] if isinstance(result, tuple) else result
        if not isinstance(output, Tensor):
            return None
        axis = 1 if getattr(module, "batch_first", False) and output.ndim == 3 else 0
        if output.shape[axis] != steps:
            return None
        later = output.detach().clone()
        some = later.narrow(axis, steps // 2, steps - steps // 2)
        noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(0))
        some += by * some.abs().mean() * noise.to(some)
        outputs.append((later.requires_grad_(), axis))
        return (later, *result[1:]) if isinstance(result, tuple) else later

    return hook
