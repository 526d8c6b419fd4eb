"""Where the first NaN or infinity of a pass comes from, and the growth that led there.

Forward, the states are looked through step by step; backward, the one recursion is followed in
scaled form, which goes on where autograd's own numbers left the range of their data type.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.leaves import gate_of
from retrograde.cells.reverse_mode import pull_back
from retrograde.engine import Entries, Unrolled, backpropagate
from retrograde.engine.scaling import all_finite
from retrograde.recording import Recorded

BEFORE = 16
"""The number of steps, before the one where the range ends, over which growth is measured."""


@dataclass(frozen=True)
class NonFinite:
    """The first place at which something is NaN or infinite.

    Attributes:
        layer: the recurrent layer, as in the recording.
        what: what is not finite: "weight", "input", "initial state", "state", "loss" (what the loss
            or the layers after give back) or "adjoint" (the backward pass through the layer).
        step: the step, None for weights and initial states; for an adjoint the latest one, which a
            backward pass comes to first.
        name: the weight, or the part of the state (`c_l1`: cell state, second layer).
        gate: the gate whose weight, activation or adjoint it is, if it is that of a gate.
        route: the route along which the largest part of the growth came.
        growth: log2 of the factor by which the state (forward) or its adjoint (backward) grew in
            a step, over the last steps before.
        sentence: all of this, and what to do, in words.
    """

    layer: str
    what: str
    step: int | None
    name: str | None
    gate: str | None
    route: str | None
    growth: float | None
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def first_non_finite(recorded: Recorded, unrolled: Unrolled) -> NonFinite | None:
    """The first place in weights, inputs, forward pass and loss; None if all are finite."""
    for name, weight in recorded.cell.parameters.items():
        if not all_finite(weight):
            return _in_weight(recorded, name, weight)
    if not all_finite(recorded.inputs):
        what = f"the input of {recorded.name!r}"
        advice = "look at the data, or at the layers before"
        words = _first(recorded.inputs, what, ("step", "sample", "feature"), advice)
        return NonFinite(
            recorded.name, "input", _step(recorded.inputs), None, None, None, None, words
        )
    if not all_finite(recorded.initial):
        what = f"the initial state of {recorded.name!r}"
        words = _first(recorded.initial, what, ("sample", "unit"), "look where it is made")
        name = _slot(recorded.cell, recorded.initial)
        return NonFinite(recorded.name, "initial state", None, name, None, None, None, words)
    if not unrolled.finite:
        return _in_state(recorded, unrolled)
    if not all_finite(recorded.direct):
        step = _step(recorded.direct)
        name = _slot(recorded.cell, recorded.direct[step])
        what = f"dL/d{name} of {recorded.name!r}"
        advice = "it comes from the loss or the layers after this one"
        words = _first(recorded.direct, what, ("step", "sample", "unit"), advice)
        return NonFinite(recorded.name, "loss", step, name, None, None, None, words)
    return None


def first_overflow(recorded: Recorded, unrolled: Unrolled) -> NonFinite | None:
    """Where the adjoint left the range of autograd's data type; None if no gradient shows it."""
    spoilt = [n for n, g in recorded.gradients.items() if not bool(g.isfinite().all())]
    if not spoilt:
        return None
    dtype = recorded.gradients[spoilt[0]].dtype
    limit = math.log2(torch.finfo(dtype).max)
    sizes: list[float] = []
    with torch.no_grad():
        for step in backpropagate(unrolled, Entries.of(recorded.direct, max_rows=1)):
            exponent = int(step.delta.exponent[0])
            sizes.append(float(torch.log2(step.norms[0].double())) + exponent)
            largest = float(torch.log2(step.delta.values.abs().max().double())) + exponent
            if largest < limit:
                continue
            route = _largest(step.adjoint.by_route())
            growth = _slope(sizes)
            words = (
                f"the adjoint of the state of {recorded.name!r} leaves the range of {dtype} at "
                f"step {step.k}, {len(unrolled) - 1 - step.k} steps before the end; it grew by a "
                f"factor of 2^{growth:.1f} a step on the way there, most of it along {route}"
            )
            gate = _gate(unrolled.cell, route)
            return NonFinite(recorded.name, "adjoint", step.k, None, gate, route, growth, words)
    words = (
        f"autograd's gradient of {', '.join(spoilt)} in {recorded.name!r} is not finite, although "
        "every adjoint of the state is within range: the sum over steps and samples leaves it"
    )
    return NonFinite(recorded.name, "adjoint", None, spoilt[0], None, None, None, words)


def _in_weight(recorded: Recorded, name: str, weight: Tensor) -> NonFinite:
    gates, axis = recorded.cell.gates_of(name), 0
    if recorded.cell.structure.columns(name):
        axis = weight.ndim - 1
    row = int(torch.nonzero(~weight.isfinite())[0][axis])
    gate = gates[row * len(gates) // weight.shape[axis]] if gates else None
    what = f"the weight {name} of {recorded.name!r}"
    words = _first(weight, what, ("row", "column"), "it was so before this pass")
    return NonFinite(recorded.name, "weight", None, name, gate, None, None, words)


def _in_state(recorded: Recorded, unrolled: Unrolled) -> NonFinite:
    """The first state that is not finite, and what grew before it."""
    step = _step(unrolled.states[1:])
    states = unrolled.states[max(0, step - BEFORE) : step + 1]
    growth = _slope(torch.log2(states.flatten(1).double().norm(dim=1)).tolist())
    name = _slot(recorded.cell, unrolled.states[step + 1])
    sample = int(torch.nonzero(~unrolled.states[step + 1].isfinite())[0][0])
    with torch.no_grad():
        forward = recorded.cell.step(unrolled.x[step], unrolled.steps(step, step + 1).previous[0])
        route = _steepest(unrolled, step - 1, sample) if step else None
    gate = _gate_of(forward)
    inside = f", in {gate}" if gate else ""
    grew = (
        f"; it grew by a factor of 2^{growth:.1f} a step before that, most of it along {route}"
        if step
        else ""
    )
    words = _first(
        unrolled.states[1:],
        f"the state of {recorded.name!r}",
        ("step", "sample", "unit"),
        f"it is {name}{inside}{grew}. The forward pass itself overflows: the inputs or the "
        "recurrent weights are too large",
    )
    return NonFinite(
        recorded.name, "state", step, name, gate, route, growth if step else None, words
    )


def _steepest(unrolled: Unrolled, step: int, sample: int) -> str:
    """The route with the largest part of a sample's Jacobian at a step."""
    cell, one = unrolled.cell, slice(sample, sample + 1)
    previous = unrolled.steps(step, step + 1).previous[0, one]
    graph = cell.linearise(cell.step(unrolled.x[step, one], previous))
    rows = torch.eye(cell.state_size, dtype=previous.dtype, device=previous.device)
    return _largest(pull_back(graph, rows.unsqueeze(1)).by_route())


def _first(values: Tensor, what: str, axes: tuple[str, ...], advice: str) -> str:
    """A sentence with the first place in a tensor."""
    bad = ~values.isfinite()
    first = torch.nonzero(bad)[0].tolist()
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first, strict=False))
    value = float(values[tuple(first)])
    return f"{what} is {value} first at {place} ({int(bad.sum())} such values in all): {advice}"


def _step(values: Tensor) -> int:
    """The first step at which something is not finite."""
    return int(torch.nonzero(~values.isfinite().flatten(1).all(1))[0])


def _slot(cell: AbstractCell, state: Float[Tensor, "B S"]) -> str:
    """The part of a state that holds its first non-finite entry."""
    entry = int(torch.nonzero(~state.isfinite())[0][1])
    return next(name for name, slot in cell.slots.items() if slot.start <= entry < slot.stop)


def _gate_of(step: CellStep) -> str | None:
    """The first activation of a step that is not finite, layer by layer."""
    for inner in step.layers or (step,):
        for name, activation in inner.activations.items():
            if not bool(activation.isfinite().all()):
                return name
    return None


def _gate(cell: AbstractCell, route: str) -> str | None:
    """The gate of a route: recurrent.forget_l0 passes the forget gate."""
    found = gate_of(cell, route)
    return found[0].name if found else None


def _largest(parts: dict[str, Any]) -> str:
    """The route of the largest part."""
    return max(parts, key=lambda route: float(parts[route].double().norm()))


def _slope(log2: list[float]) -> float:
    """The mean increase over the last steps, of those that are finite."""
    finite = [value for value in log2 if math.isfinite(value)][-BEFORE:]
    return (finite[-1] - finite[0]) / (len(finite) - 1) if len(finite) > 1 else math.nan
