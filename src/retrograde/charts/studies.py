"""Success against lag, and what is seen inside networks while they train."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.charts.drawing import ACCENT, COUNTER, INK, WIDTH, altair, nothing, table, titled
from retrograde.charts.figure import figure

COLUMNS = 3
"""Panels side by side."""

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Quantity:
    """What is drawn of a training.

    Attributes:
        title: of its axis.
        curves: its values over the updates, by network.
        log: whether its axis is logarithmic.
        needed: the value that the task needs; None if it names none.
    """

    title: str
    curves: Mapping[str, Curve]
    log: bool = False
    needed: float | None = None


@figure
def success_by_lag(
    names: Sequence[str],
    lags: Sequence[Sequence[int]],
    share: Sequence[Sequence[float]],
    low: Sequence[Sequence[float]],
    high: Sequence[Sequence[float]],
    of: str,
) -> Any:
    """A panel for each recurrence: the share of trials that solved the task at each lag.

    Args:
        names: of the recurrences.
        lags: of each.
        share: of the trials that solved it.
        low, high: the ends of its interval.
        of: what was to be learned, in how much training.
    """
    alt = altair()
    rows = [
        (name, lag, *(round(value, 4) for value in values))
        for name, along, *shares in zip(names, lags, share, low, high, strict=True)
        for lag, *values in zip(along, *shares, strict=True)
    ]
    title = "How far back does each recurrence learn to look?"
    if not rows:
        return nothing(alt, title)
    kinds = {"recurrence": "string"} | dict.fromkeys(("lag", "share", "low", "high"), "number")
    ticks = [10, 100, 1000]
    axis = alt.Axis(values=ticks, grid=True)
    base = alt.Chart().encode(
        x=alt.X("lag:Q", title="lag (steps)", scale=alt.Scale(type="log", nice=False), axis=axis),
        tooltip=[
            alt.Tooltip("recurrence:N"),
            alt.Tooltip("lag:Q"),
            alt.Tooltip("share:Q", format=".0%"),
        ],
    )
    y = alt.Axis(format="%", values=[0, 0.5, 1])
    band = base.mark_area(color=INK, opacity=0.2).encode(y=alt.Y("low:Q"), y2=alt.Y2("high:Q"))
    line = base.mark_line(color=INK, point=alt.OverlayMarkDef(size=18, color=INK)).encode(
        y=alt.Y("share:Q", title="solved", scale=alt.Scale(domain=[0, 1]), axis=y)
    )
    width = (WIDTH - 20 * (COLUMNS - 1)) // COLUMNS
    small = alt.layer(band, line, data=table(alt, kinds, rows), width=width, height=70)
    header = alt.Header(labelLimit=width + 20, labelFontWeight="bold")
    facet = alt.Facet("recurrence:N", sort=list(names), title=None, header=header)
    return small.facet(facet, columns=COLUMNS, spacing=12).properties(
        title=titled(
            title,
            f"{of} The line is the share of trials that learned it, the band its 95 % interval.",
        )
    )


@figure
def inside_training(
    names: Sequence[str], solved: Mapping[str, bool], quantities: Sequence[Quantity], title: str
) -> Any:
    """Rows of panels, one for each quantity; columns of them, one for each network.

    Args:
        names: of the networks.
        solved: whether each solved the task.
        quantities: what is drawn of them.
        title: of the chart.
    """
    alt = altair()
    drawn = [_row(alt, names, solved, each) for each in quantities]
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return nothing(alt, title)
    read = "Left to right: updates, on a logarithmic axis (the first look is before any)."
    needed = "Dashed: what the task needs." if any(q.needed is not None for q in quantities) else ""
    return alt.vconcat(*panels, spacing=8).properties(title=titled(title, f"{read} {needed}"))


def _row(
    alt: Any, names: Sequence[str], solved: Mapping[str, bool], quantity: Quantity
) -> Any | None:
    """The panels of one quantity, a column for each network; None if there is nothing in it."""
    rows = [
        (name, max(at, 0.5), float(f"{value:.4g}"), "solved" if solved[name] else "not solved")
        for name in names
        for at, value in quantity.curves[name]
        if math.isfinite(value) and (value > 0 or not quantity.log)
    ]
    if not rows:
        return None
    kinds = {"network": "string", "update": "number", "value": "number", "outcome": "string"}
    scale = alt.Scale(type="log") if quantity.log else alt.Scale(zero=False)
    values = [value for _, _, value, _ in rows]
    if quantity.needed is not None:
        values.append(quantity.needed)
    ends = [min(values), max(values)]
    if quantity.log:
        scale = alt.Scale(type="log", domain=ends)
    else:
        scale = alt.Scale(domain=ends, nice=True)
    x = alt.X(
        "update:Q",
        title=None,
        scale=alt.Scale(type="log", nice=False, domain=[0.5, 1000]),
        axis=alt.Axis(values=[1, 10, 100, 1000]),
    )
    outcomes = alt.Scale(domain=["solved", "not solved"], range=[INK, COUNTER])
    line = (
        alt.Chart()
        .mark_line(point=alt.OverlayMarkDef(size=14))
        .encode(
            x=x,
            y=alt.Y("value:Q", title=quantity.title, scale=scale, axis=alt.Axis(tickCount=4)),
            color=alt.Color("outcome:N", title=None, scale=outcomes),
            tooltip=[alt.Tooltip("network:N"), alt.Tooltip("update:Q"), alt.Tooltip("value:Q")],
        )
    )
    layers = [line]
    if quantity.needed is not None:
        dashed = alt.Chart().mark_rule(strokeDash=[4, 4], color=ACCENT)
        layers.append(dashed.encode(y=alt.datum(quantity.needed)))
    width = (WIDTH + 60) // len(names)
    small = alt.layer(*layers, data=table(alt, kinds, rows), width=width, height=75)
    header = alt.Header(labelLimit=width + 10, labelFontWeight="bold")
    return small.facet(column=alt.Column("network:N", sort=list(names), title=None, header=header))
