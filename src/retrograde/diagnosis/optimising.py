"""A copied model is trained, with the user's loss and an optimiser of the user's making."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from retrograde import _checks
from retrograde.diagnosis.copies import copied
from retrograde.diagnosis.run import LossFunction, scalar
from retrograde.errors import ArgumentError

Factory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimiser for parameters."""


class OutOfTime(Exception):
    """The budget is used up."""


def optimizer_of(factory: Factory, model: nn.Module) -> torch.optim.Optimizer:
    """An optimiser for a copied model, of the user's making.

    Raises:
        ArgumentError: if the factory fails, returns something else, or an optimiser of other
            parameters than those it was given.
    """
    given = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        made = factory(list(given))
    except Exception as error:
        raise ArgumentError(
            "optimizer must be a function parameters -> torch.optim.Optimizer; called with a list "
            f"of {len(given)} parameters it failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ArgumentError(
            "optimizer must be a function parameters -> torch.optim.Optimizer; it returned "
            f"{_checks.shown(made)}"
        )
    known = set(map(id, given))
    if any(id(p) not in known for group in made.param_groups for p in group["params"]):
        raise ArgumentError(
            "optimizer must optimise the parameters that it is given, which are those of a copy of "
            "the model; it returned an optimiser of others"
        )
    return made


def train(
    model: nn.Module,
    batches: Callable[[int], Any],
    loss_fn: LossFunction,
    optimizer: torch.optim.Optimizer,
    steps: int,
    afterwards: Callable[[nn.Module], object] | None = None,
    until: float = math.inf,
    before: Callable[[nn.Module, int], object] | None = None,
    scale: float = 1.0,
) -> tuple[float, ...]:
    """Train a copied model, in place.

    Args:
        model: the copy.
        batches: the batch of each step.
        loss_fn: as in `diagnose`.
        optimizer: of the copy's parameters.
        steps: number of steps; training ends at the first loss that is not finite.
        afterwards: what is done to the gradients before each step (clipping).
        until: on the clock of time.monotonic.
        before: called with the copy and the number of each step before it.
        scale: what the loss is multiplied by for the backward pass and the gradients are divided
            by after it; halved where that overflows, as torch's GradScaler does.

    Returns:
        The loss at each step, before its update.

    Raises:
        OutOfTime: when the time is up.
    """
    losses: list[float] = []
    for step in range(steps):
        if time.monotonic() > until:
            raise OutOfTime
        if before is not None:
            before(model, step)
        batch, seen = batches(step), list[float]()

        def closure(batch: Any = batch, seen: list[float] = seen) -> Any:
            optimizer.zero_grad()
            loss = scalar(loss_fn(model, copied(batch)))
            (loss if scale == 1 else loss * scale).backward()  # type: ignore[no-untyped-call]
            seen.append(float(loss.detach()))
            if scale != 1:
                _unscale(model, scale)
            if afterwards is not None:
                afterwards(model)
            return loss

        optimizer.step(closure)  # some evaluate it more than once
        losses.append(seen[0])
        if not math.isfinite(losses[-1]):
            break
    return tuple(losses)


def _unscale(model: nn.Module, scale: float) -> None:
    """Divide the gradients by the scale; those of a pass that overflowed are left out."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if all(bool(gradient.isfinite().all()) for gradient in gradients):
        for gradient in gradients:
            gradient /= scale
    else:
        for gradient in gradients:
            gradient.zero_()
