"""How far rounding alone moves the gradient of a pass: measured, by computing it once more.

No formula knows how a pass amplifies rounding: a chaotic forward pass does so at every step, a
saturated unit where 1 - h^2 is the difference of two nearly equal numbers, an input of 10^4 in the
pre-activations, samples whose parts cancel in their sum. So the whole gradient is computed again in
one row, in a wider precision and with all that the pass read disturbed by a rounding.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retrograde.decomposition.by_lag import Lags
from retrograde.decomposition.replay import replay
from retrograde.engine import Entries, Scaled, Unrolled
from retrograde.errors import NonFiniteError
from retrograde.recording import Recorded


def rounding_of(recorded: Recorded) -> float:
    """The coarsest rounding error in a pass, its gradients and its analysis."""
    kinds = {value.dtype for value in (recorded.direct, *recorded.gradients.values())}
    return max(recorded.rounding or 0.0, *(torch.finfo(kind).eps for kind in kinds))


def whole_gradient(unrolled: Unrolled, direct: Tensor) -> dict[str, Scaled]:
    """The gradient of each parameter as one row [1, ...] that holds the summed loss."""
    lags = Lags((range(0, max(1, len(unrolled))),))
    parts = lags.parts(unrolled, Entries.of(direct, 1))
    return {name: each.scaled for name, each in parts.items()}


def moved_by_rounding(recorded: Recorded, rounding: float) -> dict[str, float]:
    """By how much of its norm rounding moves the gradient of each parameter.

    Args:
        recorded: the pass.
        rounding: the relative rounding error of the arithmetic that it ran in.

    Returns:
        The larger of two measurements: the difference between the pass in float32 and in float64,
        scaled to that rounding error, and what a disturbance of weights, inputs, states and
        adjoints by one rounding, up or down at random, makes of the gradient. Infinite where either
        leaves the range.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(values: Tensor) -> Tensor:
        signs = torch.randint(0, 2, values.shape, generator=generator).to(values)
        return values * (1 + rounding * (2 * signs - 1))

    here = _gradient(recorded)
    moved = _differences(_attempt(recorded, disturb), here, 1.0)
    if recorded.direct.dtype == torch.float32:
        wider = _attempt(recorded, lambda values: values.double())
        scale = max(1.0, rounding / torch.finfo(torch.float32).eps)
        for name, difference in _differences(wider, here, scale).items():
            moved[name] = max(moved[name], difference)
    if recorded.direct.dtype == torch.float64:
        narrower = _attempt(recorded, lambda values: values.float())
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        for name, difference in _differences(narrower or None, here, scale).items():
            if math.isfinite(difference):  # what float32 cannot hold says nothing
                moved[name] = max(moved[name], difference)
    return moved


def _attempt(recorded: Recorded, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor] | None:
    """The gradient of a changed pass; None where a step of one's own does not take the change."""
    try:
        return _gradient(changed(recorded, change))
    except NonFiniteError:
        return {}
    except RuntimeError:  # a step that holds tensors of another data type
        return None


def changed(recorded: Recorded, change: Callable[[Tensor], Tensor]) -> Recorded:
    """The same pass with other numbers in weights, inputs, states and adjoints."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value) if value.is_floating_point() else value
        if isinstance(value, Mapping):
            return {key: of(part) for key, part in value.items()}
        if isinstance(value, tuple):
            return tuple(map(of, value))
        if is_dataclass(value) and not isinstance(value, type):
            parts = {part.name: of(getattr(value, part.name)) for part in fields(value)}
            return replace(value, **parts)
        return value

    return replace(
        recorded,
        cell=recorded.cell.with_parameters(of(recorded.cell.parameters)),
        x=of(recorded.x),
        initial=of(recorded.initial),
        direct=of(recorded.direct),
        reads=of(recorded.reads),
        boundaries=of(recorded.boundaries),
    )


def _gradient(recorded: Recorded) -> dict[str, Tensor]:
    whole = whole_gradient(replay(recorded), recorded.direct)
    return {
        name: Scaled(row.values.double(), row.exponent).plain().squeeze(0)
        for name, row in whole.items()
    }


def _differences(
    other: dict[str, Tensor] | None, here: dict[str, Tensor], scale: float
) -> dict[str, float]:
    if other is None:
        return dict.fromkeys(here, 0.0)
    found = {}
    for name, gradient in here.items():
        size = float(torch.linalg.vector_norm(gradient))
        if name not in other or not size:
            found[name] = float("inf")
            continue
        difference = float(torch.linalg.vector_norm(other[name] - gradient)) / size
        found[name] = scale * difference if difference == difference else float("inf")
    return found
