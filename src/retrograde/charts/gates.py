"""Gates over time, a small panel for each."""

import math
from collections.abc import Sequence
from typing import Any

from retrograde.charts.drawing import INK, WIDTH, altair, counting, nothing, table, titled
from retrograde.charts.figure import figure

MOST_COLUMNS = 5
"""Maximum number of panels side by side: their names fit above them."""


@figure
def gates_over_time(
    names: Sequence[str],
    steps: Sequence[Sequence[int]],
    low: Sequence[Sequence[float]],
    median: Sequence[Sequence[float]],
    high: Sequence[Sequence[float]],
    columns: int,
) -> Any:
    """A small panel for each gate: the median activation in the band from low to high."""
    alt = altair()
    rows = [
        (name, step, *(round(value, 4) for value in values))
        for name, along, *sizes in zip(names, steps, low, median, high, strict=True)
        for step, *values in zip(along, *sizes, strict=True)
        if all(map(math.isfinite, values))
    ]
    if not rows:
        return nothing(alt, "Gates over time")
    kinds = {"gate": "string"} | dict.fromkeys(("step", "low", "median", "high"), "number")
    scale = alt.Scale(
        domain=[min(0.0, *(row[2] for row in rows)), max(1.0, *(row[4] for row in rows))]
    )
    tooltip = [
        alt.Tooltip("gate:N"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("median:Q"),
        alt.Tooltip("low:Q", title="10th percentile"),
        alt.Tooltip("high:Q", title="90th percentile"),
    ]
    base = alt.Chart().encode(x=_step(alt), tooltip=tooltip)
    band = base.mark_area(color=INK, opacity=0.35).encode(
        y=alt.Y("low:Q", title="activation", scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(color=INK).encode(y=alt.Y("median:Q", title="activation", scale=scale))
    hover = base.mark_rule(strokeWidth=4, opacity=0)
    return _panels(alt, table(alt, kinds, rows), (band, line, hover), names, columns).properties(
        title=titled(
            "Gates over time",
            "The line is the median over units and samples, the band goes from 10 % to 90 %. "
            "A gate at 1 lets everything through, at 0 nothing.",
        )
    )


@figure
def saturation_over_time(
    names: Sequence[str],
    steps: Sequence[Sequence[int]],
    share: Sequence[Sequence[float]],
    columns: int,
) -> Any:
    """A small panel for each gate: the share of units and samples that are saturated."""
    alt = altair()
    rows = [
        (name, step, round(value, 4))
        for name, along, values in zip(names, steps, share, strict=True)
        for step, value in zip(along, values, strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return nothing(alt, "Saturated over time")
    data = table(alt, {"gate": "string", "step": "number", "share": "number"}, rows)
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=3)
    tooltip = [alt.Tooltip("gate:N"), alt.Tooltip("step:Q"), alt.Tooltip("share:Q", format=".1%")]
    base = alt.Chart().encode(x=_step(alt), tooltip=tooltip)
    area = base.mark_area(color=INK, opacity=0.35, line={"color": INK}).encode(
        y=alt.Y("share:Q", title="saturated", scale=scale, axis=axis)
    )
    hover = base.mark_rule(strokeWidth=4, opacity=0)
    return _panels(alt, data, (area, hover), names, columns).properties(
        title=titled(
            "Saturated over time",
            "The share of units and samples that stand at an end of the gate's range, where its "
            "weights get next to no gradient.",
        )
    )


def _panels(alt: Any, data: Any, layers: Sequence[Any], names: Sequence[str], columns: int) -> Any:
    """The same layers once for each name, in a grid with this number of columns."""
    columns = max(1, min(columns, len(names), MOST_COLUMNS))
    width = (WIDTH - 15 * (columns - 1)) // columns
    facet = alt.Facet("gate:N", sort=list(names), title=None, header=alt.Header(labelLimit=width))
    height = 160 if len(names) < 2 else 80
    small = alt.layer(*layers, data=data, width=width, height=height)
    return small.facet(facet, columns=columns)


def _step(alt: Any) -> Any:
    return alt.X(
        "step:Q", title="step", scale=alt.Scale(nice=False), axis=counting(alt, tickCount=3)
    )
