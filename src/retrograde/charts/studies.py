"""Success against lag, and what is seen inside networks while they train."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.charts.drawing import (
    ACCENT,
    COUNTER,
    INK,
    WIDTH,
    altair,
    counting,
    nothing,
    table,
    titled,
)
from retrograde.charts.figure import figure

COLUMNS = 3
"""Panels side by side."""

LAST = 1000
"""The update up to which an axis goes at least."""

BEFORE = 0.5
"""Where the look before the first update stands on a logarithmic axis."""

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
    axis, scale = counting(alt, values=[10, 100, 1000]), alt.Scale(type="log", nice=False)
    base = alt.Chart().encode(
        x=alt.X("lag:Q", title="lag (steps)", scale=scale, axis=axis),
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
    shown = [each for each in quantities if any(each.curves.values())]
    if not shown:
        return nothing(alt, title)
    panels = [_row(alt, names, solved, each, first=each is shown[0]) for each in shown]
    read = "The first point is before any update."
    if any(each.needed is not None for each in shown):
        read += " Dashed: what the task needs."
    # A page that fits charts to their place has to know how many panels share its width.
    together = alt.vconcat(*panels, spacing=8, usermeta={"across": len(names)})
    return together.properties(title=titled(title, read))


def _row(
    alt: Any, names: Sequence[str], solved: Mapping[str, bool], quantity: Quantity, first: bool
) -> Any:
    """The panels of one quantity, a column for each network, with their names above the first."""
    outcome = {name: "solved" if solved[name] else "not solved" for name in names}
    rows: list[tuple[Any, ...]] = [
        (name, max(at, BEFORE), float(f"{value:.4g}"), outcome[name])
        for name in names
        for at, value in quantity.curves[name]
        if math.isfinite(value) and (value > 0 or not quantity.log)
    ]
    values = [value for _, _, value, _ in rows]
    values += [] if quantity.needed is None else [quantity.needed]
    rows += [(name, 1, None, outcome[name]) for name in names if not quantity.curves[name]]
    kinds = {"network": "string", "update": "number", "value": "number", "outcome": "string"}
    ends = [min(values), max(values)]
    last = max(LAST, *(at for _, at, _, _ in rows))
    scale = alt.Scale(type="log" if quantity.log else "linear", domain=ends, nice=not quantity.log)
    x = alt.X(
        "update:Q",
        title="update",
        scale=alt.Scale(type="log", nice=False, domain=[BEFORE, last]),
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
    header = alt.Header(labels=first, labelLimit=width + 20, labelFontWeight="bold")
    return small.facet(column=alt.Column("network:N", sort=list(names), title=None, header=header))
