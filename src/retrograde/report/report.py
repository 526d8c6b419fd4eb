"""The report as data: decomposed layers, the table and the sentences that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from retrograde.charts import half_life_in_words, lag_in_words
from retrograde.decompose import ByLag, Flow, Split

CROSSING_NUMBERS = 2**26
"""The rows of `by_crossing` hold at most so many numbers, 256 MiB in float32."""

FAINT = 0.01
"""A part of less than this share of the gradient hardly counts, however far back it comes from."""


@dataclass(frozen=True)
class Horizon:
    """A lag that matters to the reader, and what lies there: 52 weeks, "last year's season"."""

    lag: int
    name: str


@dataclass(frozen=True, eq=False)
class Layer:
    """One decomposed layer.

    Attributes:
        name: what to call it.
        flow: its decomposition.
        figures: further figures for its row of the table, by column title.
    """

    name: str
    flow: Flow
    figures: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_carousel(self) -> bool:
        """Whether there are routes that cross no recurrent weights, so that routes tell a story."""
        return set(self.flow.routes) != set(self.flow.unrolled.cell.recurrent_routes)

    def by_crossing(self) -> Split:
        """The gradient by number of crossings, in fewer rows where the memory would not do."""
        cell, batch = self.flow.unrolled.cell, self.flow.unrolled.x.shape[1]
        rows = max(1, CROSSING_NUMBERS // (9 * batch * cell.state_size))
        flow = self.flow if len(self.flow.entries) <= rows else self.flow.with_rows(rows)
        return flow.by_crossing(max_crossings=8)


@dataclass(frozen=True, eq=False)
class Report:
    """How far back the gradients of some layers reach.

    Attributes:
        title: the heading.
        layers: what was decomposed.
        bins: the first lag of each group of lags in the table.
        horizon: the lag that the sentences answer to, if there is one.
        notes: what a reader must know about data and setting.
    """

    title: str
    layers: tuple[Layer, ...]
    bins: Sequence[int]
    horizon: Horizon | None = None
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """One plain sentence for each layer."""
        return tuple(sentence(layer, self.horizon) for layer in self.layers)

    def by_lag(self, layer: Layer) -> ByLag:
        """The gradient of a layer in the report's groups of lags."""
        starts = [start for start in self.bins if start < max(1, layer.flow.steps)]
        return layer.flow.by_lag(bins=starts)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column titles and one row of text for each layer."""
        figures = list(dict.fromkeys(name for layer in self.layers for name in layer.figures))
        widest = max(self.layers, key=lambda layer: layer.flow.steps)
        groups = [f"lags {lag_in_words(lag)}" for lag in self.by_lag(widest).lags]
        rows = []
        for layer in self.layers:
            share = [percent(value) for value in self.by_lag(layer).share.tolist()]
            rows.append(
                (
                    layer.name,
                    *(layer.figures.get(name, "") for name in figures),
                    f"{layer.flow.reach} of {layer.flow.steps - 1}",
                    half_life_in_words(layer.flow.half_life).removesuffix(" steps"),
                    *share,
                    *[""] * (len(groups) - len(share)),
                    str(layer.flow.residual),
                )
            )
        return ("layer", *figures, "reach (steps)", "half-life (steps)", *groups, "residual"), rows

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained page that opens offline.

        Raises:
            InputError: if the path cannot be written.
        """
        from retrograde.report import html, output

        output.write(path, html.render(self))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the numbers of the report as JSON.

        Raises:
            InputError: if the path cannot be written.
        """
        from retrograde.report import json, output

        output.write(path, json.render(self))

    def __str__(self) -> str:
        from retrograde.report import text

        return text.render(self)

    def __rich__(self) -> Any:
        from retrograde.report import text

        return text.renderable(self)


def sentence(layer: Layer, horizon: Horizon | None) -> str:
    """What the layer's numbers say, in one plain sentence."""
    flow, name = layer.flow, layer.name
    if not len(flow.entries):
        return f"{name}: the loss gives it no gradient; dL/dh is exactly 0 at every step."
    if flow.steps == 1:
        return f"{name}: the sequence has a single step, so there is nothing to look back on."
    if horizon is None or horizon.lag >= flow.steps:
        half = half_life_in_words(flow.half_life)
        return (
            f"{name}: the gradient reaches back {_steps(flow.reach)} of the {flow.steps - 1} there "
            f"are; the half-life of its adjoint is {half}."
        )
    far = float(flow.by_lag(bins=(0, horizon.lag)).share[1])
    reach, lag = _steps(flow.reach), f"{horizon.name} ({_steps(horizon.lag)})"
    if flow.reach < horizon.lag:
        verdict = f"no, its gradient reaches back {reach}, short of {lag}, and"
    elif abs(far) < FAINT:
        verdict = f"hardly; single contributions reach back {reach}, as far as {lag}, but summed up"
    else:
        verdict = f"yes, its gradient reaches back {reach}, as far as {lag}, and"
    return f"{name}: {verdict} {percent(far)} of the gradient comes from there and beyond."


def percent(share: float) -> str:
    """A share with one digit after the point, never "-0.0%"; "-" if there is none."""
    if share != share:
        return "-"
    return f"{round(share, 3) + 0.0:.1%}"


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
