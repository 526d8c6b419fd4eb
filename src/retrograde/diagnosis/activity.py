"""What the gates do in the forward pass: how far open, how saturated, and for how long they keep.

Of every gate and squashed value of every layer, over all samples, padding left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.gates import CONSTANT, Activation, Gate, with_role
from retrograde.cells.leaves import leaves
from retrograde.cells.position import Position
from retrograde.diagnosis.gate_series import GateSeries
from retrograde.engine import Unrolled
from retrograde.recording import Recorded

SHOWN = 200
"""The largest number of steps that a series shows."""


@dataclass(frozen=True, eq=False)
class Activity:
    """One gate, or squashed value, of one layer over a whole pass.

    Attributes:
        name: "forget", or "forget_l1" in a stack.
        gate: what it is.
        position: its layer and direction, where the module has several.
        series: its percentiles and its saturated share over time.
        saturated: the share of all samples, units and steps that are saturated.
        mean: mean activation of each unit, shape [H].
    """

    name: str
    gate: Gate
    position: Position | None
    series: GateSeries
    saturated: float
    mean: Float[Tensor, "H"]

    @property
    def since(self) -> int | None:
        """The first step from which on more than half is saturated at every step shown, if any."""
        steps, saturated = self.series.steps, self.series.saturated
        calm = [step for step, share in zip(steps, saturated, strict=True) if share <= 0.5]
        return next((step for step in steps if not calm or step > calm[-1]), None)

    @property
    def time_constants(self) -> Float[Tensor, "H"]:
        """1 / (1 - f) of each unit, in steps, for a gate that keeps the state."""
        return 1 / (1 - self.mean)


@dataclass(frozen=True, eq=False)
class Units:
    """The outputs h of one layer.

    Attributes:
        name: "h", with its layer in a stack.
        moved: how far each unit moved in the whole pass, shape [H].
        largest: the largest output of any unit.
        activation: the function whose value it is, in a plain RNN.
    """

    name: str
    moved: Float[Tensor, "H"]
    largest: float
    activation: Activation | None

    @property
    def dead(self) -> Bool[Tensor, "H"]:
        """Units whose output is the same number at every step of every sample."""
        return self.moved <= 1e-6 * self.largest


def look(
    recorded: Recorded, unrolled: Unrolled, slope: float
) -> tuple[list[Activity], list[Units]]:
    """Look at every gate of a pass.

    Args:
        recorded, unrolled: the pass.
        slope: an activation is saturated where the slope of its function is below this
            share of the largest.
    """
    gates: dict[str, _Gate] = {}
    outputs: dict[str, _Outputs] = {}
    length = len(unrolled)
    shown = (
        {round(i * (length - 1) / (SHOWN - 1)) for i in range(SHOWN)} if length > SHOWN else None
    )
    for chunk in unrolled.chunks():
        start, many = chunk.first, chunk.steps
        k = torch.arange(start, start + len(many.x), device=many.x.device)
        lengths = recorded.lengths
        valid = None if lengths is None else k.unsqueeze(1) < lengths
        for leaf in leaves(unrolled.cell):
            cell, end, step = leaf.cell, leaf.route_suffix, leaf.of(many)
            holding = _holding(cell.activations, step)
            for gate in cell.activations:
                value = step.activations.get(gate.name)
                if value is None or gate.activation is None or gate.activation == CONSTANT:
                    continue
                flat = gate.activation.relative_slope(value) < slope
                held = gate.role in ("forget", "input")
                if holding is not None and held and holding.shape == flat.shape:
                    flat &= ~holding
                name = gate.name + end
                row = gates.setdefault(name, _Gate(name, gate, leaf.position))
                row.add(start, value, flat, valid, shown)
            if "h" in cell.slots:
                units = outputs.setdefault(end, _Outputs("h" + end, _activation_of_h(cell)))
                units.add(step.state[..., cell.slots["h"]], valid)
    return [g.result() for g in gates.values()], [u.result() for u in outputs.values()]


def keeping_for(lag: int, share: float = 0.01) -> float:
    """The gate value f that still keeps this share after `lag` steps: f^lag = share."""
    return math.exp(math.log(share) / max(1, lag))


def _holding(gates: Sequence[Gate], step: CellStep) -> Tensor | None:
    """Where a unit holds what it has: all gates that keep it are open, and that is no defect."""
    values = [step.activations.get(gate.name) for gate in with_role(gates, "forget")]
    keeping = [value > 0.99 for value in values if value is not None]
    return torch.stack(keeping).all(0) if keeping else None


def _activation_of_h(cell: AbstractCell) -> Activation | None:
    """The activation function whose value h is: that of a cell with a candidate alone."""
    (only, *others) = cell.activations or (None,)
    return only.activation if only and not others and only.role == "candidate" else None


class _Gate:
    """Gathers one gate, chunk by chunk."""

    def __init__(self, name: str, gate: Gate, position: Position | None):
        self.name, self.gate, self.position = name, gate, position
        self._steps: dict[int, tuple[float, float, float, float]] = {}
        self._sum: Tensor | float = 0.0
        self._count = self._flat = self._width = 0

    def add(
        self,
        start: int,
        value: Float[Tensor, "K B H"],
        flat: Bool[Tensor, "K B H"],
        valid: Bool[Tensor, "K B"] | None,
        shown: set[int] | None,
    ) -> None:
        if valid is None:
            valid = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        flats = (flat & valid.unsqueeze(-1)).flatten(1).sum(1).tolist()
        counts = valid.sum(1).tolist()
        self._sum = self._sum + (value * valid.unsqueeze(-1)).sum((0, 1))
        self._count += sum(counts)
        self._flat += sum(flats)
        self._width = value.shape[-1]
        some = [k for k, n in enumerate(counts) if n and (shown is None or start + k in shown)]
        numbers = [counts[k] * self._width for k in some]
        ordered = torch.where(valid.unsqueeze(-1), value, torch.inf)[some].flatten(1).sort(1).values
        at = [[round(q * (n - 1)) for q in (0.1, 0.5, 0.9)] for n in numbers]
        places = torch.tensor(at, dtype=torch.int64, device=value.device).view(-1, 3)
        for k, n, found in zip(some, numbers, ordered.gather(1, places).tolist(), strict=True):
            self._steps[start + k] = (*found, flats[k] / n)

    def result(self) -> Activity:
        steps = sorted(self._steps)
        columns = tuple(zip(*(self._steps[step] for step in steps), strict=True))
        assert isinstance(self._sum, Tensor)
        low, median, high, flat = columns
        place = (self.gate.name, self.position)
        series = GateSeries(self.name, tuple(steps), low, median, high, flat, *place)
        saturated = self._flat / (self._count * self._width)
        mean = self._sum / self._count
        return Activity(self.name, self.gate, self.position, series, saturated, mean)


class _Outputs:
    """Gathers the smallest and the largest output of every unit."""

    def __init__(self, name: str, activation: Activation | None):
        self._name, self._activation = name, activation
        self._low: Tensor | None = None
        self._high: Tensor | None = None

    def add(self, h: Float[Tensor, "K B H"], valid: Bool[Tensor, "K B"] | None) -> None:
        h = h.flatten(0, 1) if valid is None else h[valid]
        if not len(h):
            return
        low, high = h.amin(0), h.amax(0)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)

    def result(self) -> Units:
        assert self._low is not None and self._high is not None
        largest = float(torch.maximum(self._high.abs(), self._low.abs()).max())
        return Units(self._name, self._high - self._low, largest, self._activation)
