"""One adjoint on its way back, step by step, drawn on the unrolled network.

The loss enters at the last step alone. From there the adjoint is pulled back through one step after
another, and at each its parts by route are kept: the numbers of the very pass that the other
pictures take apart as a whole.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._optional import optional
from retrograde._words import counted, power_of_two, share
from retrograde.cells import AbstractLayer, pull_back
from retrograde.charts.drawing import ramp
from retrograde.explore.equations import colours
from retrograde.explore.lesson import Setting, cell_of, flow_of

PARAMETER = "weight_hh"
"""The weights whose gradient grows as the adjoint goes back."""


@dataclass(frozen=True)
class Part:
    """What came along one route: log2 of its norm, its share <part, delta>/<delta, delta>."""

    log2: float
    share: float


@dataclass(frozen=True)
class Stop:
    """The adjoint at one step of its way back.

    Attributes:
        step: k, counted from 0.
        lag: how many steps back from the loss.
        log2: log2 of the norm of delta_k = dL/ds_k.
        slots: the same of its parts in h and, where there is one, c.
        routes: the part of delta_k that came along each route from step k+1; none at lag 0.
        used: log2 of the norm of what this use of the weights adds to their gradient.
        so_far: signed share of the uses from here on in the whole gradient.
    """

    step: int
    lag: int
    log2: float
    slots: Mapping[str, float]
    routes: Mapping[str, Part]
    used: float
    so_far: float


@lru_cache(maxsize=8)
def walk(setting: Setting) -> tuple[Stop, ...]:
    """The stops of the adjoint from the last step to the first.

    Whatever the setting says, the loss enters at the last step alone.

    Example:
        >>> from retrograde.explore import unrolled
        >>> from retrograde.explore.lesson import Setting
        >>> first, *_, last = unrolled.walk(Setting("elman", steps=5))
        >>> first.lag, last.step, list(last.routes)
        (0, 0, ['recurrent'])
    """
    flow = flow_of(replace(setting, every_step=False))
    cell, x, states = flow.unrolled.cell, flow.recorded.x, flow.unrolled.states
    used = flow.by_time(PARAMETER).log2[-1]
    shares = flow.by_time(PARAMETER).share[-1]
    delta = flow.recorded.direct[-1]
    parts: dict[str, Tensor] = {}
    stops = []
    for k in reversed(range(setting.steps)):
        stops.append(
            Stop(
                step=k,
                lag=setting.steps - 1 - k,
                log2=_log2(delta),
                slots={name: _log2(delta[:, slot]) for name, slot in cell.slots.items()},
                routes={name: _part(part, delta) for name, part in parts.items()},
                used=float(used[k]),
                so_far=float(shares[k:].sum()),
            )
        )
        back = pull_back(cell.linearise(cell.step(x[k], states[k])), delta.unsqueeze(0))
        parts = {name: part.squeeze(0) for name, part in back.by_route().items()}
        delta = torch.stack(list(parts.values())).sum(0)
    return tuple(stops)


def _log2(vector: Float[Tensor, "..."]) -> float:
    return float(torch.log2(torch.linalg.vector_norm(vector)))


def _part(part: Float[Tensor, "B S"], whole: Float[Tensor, "B S"]) -> Part:
    return Part(_log2(part), float((part * whole).sum() / whole.square().sum()))


COLUMN, MARGIN = 150, 50
"""Width of a step in the drawing, and what is free beside the first and the last."""

TWO_LANES, ONE_LANE = {"c": 55, "gates": 145, "h": 235}, {"gates": 45, "h": 135}
"""Heights of the cell state, of the gates, and of the output."""

LETTERS = {
    **{"input": "i", "forget": "f", "cell": "g", "output": "o", "hidden": "a"},
    **{"reset": "r", "update": "z", "candidate": "n"},
}
"""How the gates are written."""

THICKEST, FAINTEST, RANGE = 9.0, 1.2, 10
"""Widths of lines: of a part as large as the adjoint, and of one 2^-RANGE of it or less."""


@dataclass(frozen=True)
class Line:
    """A path that is drawn: its SVG commands, its route, its looks; grey without a colour."""

    path: str
    route: str
    width: float = FAINTEST
    colour: str = ""


@dataclass(frozen=True)
class Node:
    """A part of the state that is drawn, with log2 of its adjoint and the colour of its lag."""

    x: float
    y: float
    name: str
    step: int
    colour: str = ""
    log2: float | None = None
    here: bool = False

    @property
    def above(self) -> bool:
        """Whether its number is written above it."""
        return self.name == "c"


def drawn(setting: Setting, lag: int, columns: int) -> str:
    """The unrolled network as an SVG, the adjoint having walked back `lag` steps.

    Lines are as thick as the part that came along them is large, relative to the adjoint at that
    step; those that it has not come to are grey. Nodes have the colour of their lag.

    Args:
        setting: where the knobs stand.
        lag: how far the adjoint has come, from 0 to T-1.
        columns: how many steps are drawn, those around the adjoint.

    Raises:
        ArgumentError: for a lag outside, or fewer than two columns.
        MissingExtraError: without jinja2; the message says how to install it.
    """
    _checks.whole("lag", lag, 0, setting.steps - 1)
    columns = min(_checks.whole("columns", columns, 2), setting.steps)
    here = setting.steps - 1 - lag
    first = max(0, min(here - 1, setting.steps - columns))
    layout = _Layout(cell_of(setting), range(first, first + columns))
    svg: str = _template("unrolled.svg.jinja").render(
        width=(columns - 1) * COLUMN + 2 * MARGIN,
        height=layout.lanes["h"] + 50,
        lines=sorted(_lines(setting, layout, here), key=lambda line: bool(line.colour)),
        gates=layout.gates,
        nodes=list(_nodes(setting, layout, here)),
        last=setting.steps - 1,
        earlier=first > 0,
        later=first + columns < setting.steps,
        label=f"unrolled network; the adjoint is at step {here + 1} of {setting.steps}",
    )
    return svg


def _nodes(setting: Setting, layout: "_Layout", here: int) -> Iterator[Node]:
    """The states; those that the adjoint has come to with its size and the colour of their lag."""
    stops, shades = walk(setting), ramp(setting.steps)
    for k in layout.steps:
        lag = setting.steps - 1 - k
        for name in layout.cell.slots:
            node = Node(layout.x(k), layout.lanes[name], name, k)
            yield (
                replace(node, colour=shades[lag], log2=stops[lag].slots[name], here=k == here)
                if k >= here
                else node
            )


def _lines(setting: Setting, layout: "_Layout", here: int) -> Iterator[Line]:
    """The routes between neighbouring steps, and within a step what reads h from c."""
    stops, hue = walk(setting), colours(setting.generation)
    for k in layout.steps:
        if "c" in layout.lanes:
            yield Line(layout.readout(k), "readout", 3.0 if k >= here else FAINTEST)
    for k in layout.steps[:-1]:
        stop = stops[setting.steps - 1 - k]
        for route, part in stop.routes.items():
            line = Line(layout.path(k, route), route)
            below = stop.log2 - part.log2  # powers of two below the adjoint
            if k >= here and math.isfinite(below):
                width = THICKEST - (THICKEST - FAINTEST) * min(max(below, 0), RANGE) / RANGE
                line = replace(line, width=width, colour=hue[route])
            yield line


class _Layout:
    """Where the parts of a cell are drawn."""

    def __init__(self, cell: AbstractLayer, steps: range):
        self.cell, self.steps = cell, steps
        self.lanes = TWO_LANES if "c" in cell.slots else ONE_LANE
        self._letters = {gate.name: LETTERS[gate.name] for gate in cell.gates}

    def x(self, k: int) -> float:
        return (k - self.steps.start) * COLUMN + MARGIN

    @property
    def gates(self) -> list[tuple[float, float, str]]:
        """Place and letter of every gate."""
        return [
            (*self._gate(k, gate), letter)
            for k in self.steps[1:]
            for gate, letter in self._letters.items()
        ]

    def _gate(self, k: int, gate: str) -> tuple[float, float]:
        """Gates stand side by side to the left of the state that they make."""
        names = list(self._letters)
        place = names.index(gate) / (len(names) - 1) if len(names) > 1 else 0.5
        return self.x(k) - 88 + 62 * place, self.lanes["gates"]

    def path(self, k: int, route: str) -> str:
        """From the state of step k to that of step k + 1."""
        kind, _, gate = route.partition(".")
        memory = "c" if "c" in self.lanes else "h"
        left, right = self.x(k), self.x(k + 1)
        if kind == "carousel":
            return f"M {left} {self.lanes[memory]} H {right}"
        source = self.lanes["c" if kind == "peephole" else "h"]
        x, y = self._gate(k + 1, gate or next(iter(self._letters)))
        start = (
            f"M {left} {source} C {left + 20} {(source + y) / 2}, {x} {(source + y) / 2}, {x} {y}"
        )
        if gate == "output" or memory == "h":  # down to the lane that it came from
            return f"{start} C {x} {y - 28}, {right} {y - 12}, {right} {self.lanes['h']}"
        above = (y + self.lanes["c"]) / 2
        return f"{start} C {x} {above}, {right - 8} {above}, {right} {self.lanes['c']}"

    def readout(self, k: int) -> str:
        """From c to h, within step k."""
        return f"M {self.x(k)} {self.lanes['c']} V {self.lanes['h']}"


WIDE, NARROW = 7, 3
"""Steps drawn on a laptop and on a phone."""


def both(setting: Setting, lag: int) -> str:
    """The drawing for a wide and for a narrow page, of which the page shows the one that fits."""
    html: str = _template("unrolled.html.jinja").render(
        wide=drawn(setting, lag, WIDE), narrow=drawn(setting, lag, NARROW)
    )
    return html


def table(setting: Setting, lag: int) -> str:
    """What came along each route in the last hop, as a table in HTML."""
    stop, hue = walk(setting)[lag], colours(setting.generation)
    rows = [(hue[name], name, part.log2, share(part.share)) for name, part in stop.routes.items()]
    html: str = _template("routes.html.jinja").render(rows=rows, log2=stop.log2)
    return html


def in_words(setting: Setting, lag: int) -> str:
    """What has become of the adjoint, and of the gradient of the recurrent weights, in Markdown."""
    stops = walk(setting)
    stop, first = stops[lag], stops[0]
    gathered = (
        f"The uses of the weights from step {stop.step + 1} on make up **{share(stop.so_far)}** of "
        "the gradient of the recurrent weights."
    )
    if not lag:
        return (
            f"The loss enters at step {stop.step + 1}, with an adjoint of norm "
            f"{power_of_two(stop.log2)}. {gathered}"
        )
    largest = max(stop.routes, key=lambda name: stop.routes[name].log2)
    return (
        f"Going back {counted(lag, 'step')}, the adjoint is "
        f"**{power_of_two(stop.log2 - first.log2)} times** what it was. "
        f"Most of it came by `{largest}` ({share(stop.routes[largest].share)}). {gathered}"
    )


def _template(name: str) -> Any:
    with optional("the lecture", "explore"):
        import jinja2

    loader = jinja2.PackageLoader("retrograde.explore", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    return environment.get_template(name)
