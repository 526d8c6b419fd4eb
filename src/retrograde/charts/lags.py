"""Sizes over lag: how far back the gradient reaches, and what is left of a perturbation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from retrograde._words import half_life_in_words
from retrograde.charts.drawing import (
    COUNTER,
    DEPTH,
    INK,
    NORM,
    SERIES,
    WIDTH,
    altair,
    nothing,
    repeated,
    rule,
    table,
    thinned,
)
from retrograde.charts.figure import figure


@figure
def lag_curve(log2_mean: Tensor, reach: int, half_life: float, floor: float) -> Any:
    """Mean norm of the contributions over lag, with reach and half-life marked."""
    alt = altair()
    rows, curve = _over_lag(alt, log2_mean.tolist(), "mean contribution")
    if not rows:
        return nothing(alt, "How far back the gradient reaches")
    layers = [curve]
    if len(rows) > 1 and half_life == half_life:
        start, least = rows[0][1], min(log2 for _, log2 in rows)
        layers += [
            _slope(alt, start, least, len(log2_mean) - 1, half_life),
            *rule(alt, {"lag": reach}, "x", f"reach: {reach} steps"),
            *rule(alt, {"log2": start + math.log2(floor)}, "y", f"{floor:.0%} of lag 0"),
        ]
    return alt.layer(
        *layers,
        width=WIDTH,
        height=260,
        title={
            "text": "How far back the gradient reaches",
            "subtitle": "dotted: the half-life of the adjoint, " + half_life_in_words(half_life),
        },
    )


@figure
def adjoint_curve(log2_mean: Sequence[float], half_life: float) -> Any:
    """Mean norm of the adjoint over lag: how it grows or shrinks on its way back."""
    alt = altair()
    rows, curve = _over_lag(alt, log2_mean, "mean adjoint, over that at lag 0")
    if not rows:
        return nothing(alt, "How the adjoint grows or shrinks on its way back")
    layers = [curve]
    if len(rows) > 1 and half_life == half_life:
        least = min(log2 for _, log2 in rows)
        layers.append(_slope(alt, rows[0][1], least, len(log2_mean) - 1, half_life))
    missing = len(log2_mean) - sum(map(math.isfinite, log2_mean))
    text = f"half-life (dotted): {half_life_in_words(half_life)}"
    if missing:
        text += f"; at {missing} of {len(log2_mean)} lags it is 0 or not finite"
    return alt.layer(
        *layers,
        width=WIDTH,
        height=260,
        title={"text": "How the adjoint grows or shrinks on its way back", "subtitle": text},
    )


@figure
def memory(curves: Mapping[str, Sequence[float]], floor: float, what: str) -> Any:
    """How much is left of a perturbation over lag, a line for each name, and where it is forgotten.

    Args:
        curves: log2 of what is left at each lag, by name.
        floor: the share at which it counts as forgotten.
        what: what was perturbed, for the title.
    """
    alt = altair()
    title = f"What is left of a perturbation of {what}"
    rows = [
        (name, lag, round(curve[lag], 3))
        for name, curve in curves.items()
        for lag in thinned(len(curve))
        if math.isfinite(curve[lag]) and curve[lag] > -DEPTH
    ]
    if not rows:
        return nothing(alt, title)
    names = list(curves)
    data = table(alt, {"name": "string", "lag": "number", "log2": "number"}, rows)
    colours = alt.Scale(domain=names, range=repeated(SERIES, len(names)))
    lines = (
        alt.Chart(data)
        .transform_calculate(norm=NORM)
        .mark_line()
        .encode(
            x=alt.X("lag:Q", title="lag (steps)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("log2:Q", title="log2 of what is left", scale=alt.Scale(zero=False)),
            color=alt.Color("name:N", title=None, scale=colours, sort=names),
            tooltip=[
                alt.Tooltip("name:N", title="of"),
                alt.Tooltip("lag:Q", title="lag (steps)"),
                alt.Tooltip("norm:N", title="left"),
            ],
        )
    )
    width = WIDTH - 110
    forgotten = rule(alt, {"log2": math.log2(floor)}, "y", f"{floor:.0%}")
    return alt.layer(lines, *forgotten, width=width, height=230, title=title)


def _over_lag(alt: Any, log2: Sequence[float], what: str) -> tuple[list[tuple[int, float]], Any]:
    """A curve over lag: its points, and the chart of them."""
    rows = [(lag, round(log2[lag], 4)) for lag in thinned(len(log2)) if math.isfinite(log2[lag])]
    point = alt.OverlayMarkDef(size=18, color=INK, filled=True)
    curve = (
        alt.Chart(table(alt, {"lag": "number", "log2": "number"}, rows))
        .transform_calculate(norm=NORM)
        .mark_line(color=INK, point=point)
        .encode(
            x=alt.X("lag:Q", title="lag (steps)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("log2:Q", title=f"log2 of the {what}", scale=alt.Scale(zero=False)),
            tooltip=[
                alt.Tooltip("lag:Q", title="lag (steps)"),
                alt.Tooltip("norm:N", title="mean norm"),
            ],
        )
    )
    return rows, curve


def _slope(alt: Any, start: float, least: float, lags: int, half_life: float) -> Any:
    """The straight line that the half-life stands for, as far as the chart goes down."""
    end = min(lags, (start - least) * half_life) if half_life > 0 else lags
    data = table(
        alt, {"lag": "number", "log2": "number"}, [(0, start), (end, start - end / half_life)]
    )
    line = alt.Chart(data).mark_line(color=COUNTER, strokeDash=[2, 3])
    return line.encode(x=alt.X("lag:Q"), y=alt.Y("log2:Q"))
