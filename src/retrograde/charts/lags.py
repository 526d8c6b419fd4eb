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
    POINTS,
    SERIES,
    WIDTH,
    altair,
    counting,
    nothing,
    repeated,
    rule,
    table,
    thinned,
    titled,
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
            *rule(
                alt, {"lag": reach}, "x", f"reach: {reach} steps", left=2 * reach > len(log2_mean)
            ),
            *rule(alt, {"log2": start + math.log2(floor)}, "y", f"{floor:.0%} of lag 0"),
        ]
    return alt.layer(
        *layers,
        width=WIDTH,
        height=260,
        title=titled(
            "How far back the gradient reaches",
            f"Dotted: the half-life of the adjoint, {half_life_in_words(half_life)}.",
            "Each point is the mean size of what arrives from so many steps back; one unit down is "
            "half. The reach is where the curve last stands on the dashed line or above it.",
        ),
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
    text = f"Dotted: the half-life, {half_life_in_words(half_life)}."
    if missing:
        text += f" At {missing} of {len(log2_mean)} lags the adjoint is 0 or not finite."
    return alt.layer(
        *layers,
        width=WIDTH,
        height=260,
        title=titled(
            "How the adjoint grows or shrinks on its way back",
            text,
            "A curve that rises to the right is a gradient that grows, one that falls one that "
            "vanishes; one unit is a factor of 2.",
        ),
    )


@figure
def memory(curves: Mapping[str, Sequence[float]], floor: float, what: str) -> Any:
    """How much is left of a perturbation over lag, a line for each name, and where it is forgotten.

    Args:
        curves: log2 of what is left at each lag, by name.
        floor: the share at which it counts as forgotten.
        what: what was perturbed, for the title.
    """
    title = f"What is left of a perturbation of {what}"
    read = f"Below the dashed line, at {floor:.0%}, it is forgotten; one unit down is half."
    return _left(altair(), curves, floor, titled(title, read), None)


@figure
def reach_by_layer(
    curves: Mapping[str, Sequence[float]], floor: float, needs_lag: int | None, of: int
) -> Any:
    """What is left of the gradient over lag, a line for each layer, and the lag that matters.

    Args:
        curves: log2 of the mean contribution at each lag, over that at lag 0, by layer.
        floor: the share of lag 0 at which the reach ends.
        needs_lag: the lag to mark, None for none.
        of: the number of layers, of which not all may be drawn.
    """
    some = f"{len(curves)} of {of} layers, those with findings first. " if len(curves) < of else ""
    read = (
        f"{some}Where a line is below the dashed {floor:.0%}, hardly anything is learned from so "
        "far back; a line that rises explodes. One unit is a factor of 2."
    )
    title = titled("How much of the gradient comes from how far back", read)
    return _left(altair(), curves, floor, title, needs_lag, 200)


def _left(
    alt: Any,
    curves: Mapping[str, Sequence[float]],
    floor: float,
    title: Mapping[str, Any],
    needs_lag: int | None,
    most: int = POINTS,
) -> Any:
    """What is left over lag, a line for each name, with the share at which it counts as gone."""
    rows = [
        (name, lag, round(curve[lag], 3))
        for name, curve in curves.items()
        for lag in thinned(len(curve), most)
        if math.isfinite(curve[lag]) and curve[lag] > -DEPTH
    ]
    if not rows:
        return nothing(alt, title["text"])
    names = list(curves)
    data = table(alt, {"name": "string", "lag": "number", "log2": "number"}, rows)
    colours = alt.Scale(domain=names, range=repeated(SERIES, len(names)))
    legend = alt.Legend(title=None, labelLimit=240) if len(names) > 1 else None
    lines = (
        alt.Chart(data)
        .transform_calculate(norm=NORM)
        .encode(
            x=alt.X("lag:Q", title="lag (steps)", scale=alt.Scale(nice=False), axis=counting(alt)),
            y=alt.Y("log2:Q", title="log2 of what is left", scale=alt.Scale(zero=False)),
            color=alt.Color("name:N", legend=legend, scale=colours, sort=names),
            tooltip=[
                alt.Tooltip("name:N", title="of"),
                alt.Tooltip("lag:Q", title="lag (steps)"),
                alt.Tooltip("norm:N", title="left"),
            ],
        )
    )
    width = WIDTH - (110 if legend else 0)
    marks = rule(alt, {"log2": math.log2(floor)}, "y", f"{floor:.0%}")
    if needs_lag is not None:
        end = max(lag for _, lag, _ in rows)
        left = 2 * needs_lag > end
        marks += rule(alt, {"lag": needs_lag}, "x", f"needed: {needs_lag} steps", left=left)
    hover = lines.mark_point(size=60, filled=True, opacity=0)
    return alt.layer(lines.mark_line(), hover, *marks, width=width, height=230, title=title)


def _over_lag(alt: Any, log2: Sequence[float], what: str) -> tuple[list[tuple[int, float]], Any]:
    """A curve over lag: its points, and the chart of them."""
    rows = [(lag, round(log2[lag], 4)) for lag in thinned(len(log2)) if math.isfinite(log2[lag])]
    point = alt.OverlayMarkDef(size=18, color=INK, filled=True)
    curve = (
        alt.Chart(table(alt, {"lag": "number", "log2": "number"}, rows))
        .transform_calculate(norm=NORM)
        .mark_line(color=INK, point=point)
        .encode(
            x=alt.X("lag:Q", title="lag (steps)", scale=alt.Scale(nice=False), axis=counting(alt)),
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
