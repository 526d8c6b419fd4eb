"""The bias of truncated back-propagation over the number of steps that it looks back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrograde.charts.drawing import (
    ACCENT,
    COUNTER,
    INK,
    SHAPES,
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
def truncation_curve(
    steps: Sequence[int],
    band: Sequence[Sequence[float]],
    delta: float,
    window: int | None,
    kind: str,
) -> Any:
    """Bias over K: the median over batches, its band from 10 % to 90 %, and the window.

    Args:
        steps: the K.
        band: the lower end, the median and the upper end at each.
        delta: the bias that is allowed.
        window: the smallest K within it; None if there is none.
        kind: of the truncation, for the title.
    """
    alt = altair()
    title = f"How much of the gradient a truncation loses ({kind})"
    rows = [
        (steps[at], *(round(line[at], 6) for line in band))
        for at in thinned(len(steps))
        if all(math.isfinite(line[at]) for line in band)
    ]
    if not rows:
        return nothing(alt, title)
    data = table(alt, dict.fromkeys(("steps", "low", "bias", "high"), "number"), rows)
    x = alt.X("steps:Q", title="K (steps back)", scale=alt.Scale(nice=False), axis=counting(alt))
    base = alt.Chart(data)
    layers = [
        base.mark_line(color=INK, point=alt.OverlayMarkDef(size=14, color=INK, filled=True)).encode(
            x=x,
            y=alt.Y("bias:Q", title="||g - g_K|| / ||g||", scale=alt.Scale(zero=True)),
            tooltip=[alt.Tooltip("steps:Q", title="K"), alt.Tooltip("bias:Q", format=".3g")],
        ),
        *rule(alt, {"bias": delta}, "y", f"bias {delta:g}"),
    ]
    if any(low != high for _, low, _, high in rows):
        layers.insert(
            0, base.mark_area(color=INK, opacity=0.25).encode(x=x, y="low:Q", y2="high:Q")
        )
    if window is not None:
        layers += rule(alt, {"steps": window}, "x", f"window: {window} steps")
    of = "At the current weights; other weights have another horizon."
    read = "A window of K steps loses this much; below the dashed line it is as much as is allowed."
    return alt.layer(*layers, width=WIDTH, height=260, title=titled(title, of, read))


@figure
def horizon_growth(
    names: Sequence[str],
    curves: Mapping[str, Sequence[int | None]],
    of: str = "the network",
    needed: tuple[int, str] | None = None,
) -> Any:
    """Window, reach and learnability horizon from one set of weights to the next.

    Args:
        names: of the weights, in order.
        curves: steps at each of them by what they are; None where there is none.
        of: what learns, for the title.
        needed: a lag to mark and what lies there, if there is one.
    """
    alt = altair()
    title = f"How the horizon grows while {of} learns"
    rows = [
        (at, name, what, value)
        for what, values in curves.items()
        for at, (name, value) in enumerate(zip(names, values, strict=True))
        if value is not None
    ]
    if not rows:
        return nothing(alt, title)
    columns = {"at": "number", "weights": "string", "what": "string", "steps": "number"}
    data = table(alt, columns, rows)
    drawn = list(dict.fromkeys(what for _, _, what, _ in rows))
    colours = alt.Scale(domain=drawn, range=repeated((INK, COUNTER, ACCENT), len(drawn)))
    shapes = alt.Scale(domain=drawn, range=repeated(SHAPES, len(drawn)))
    chart = alt.Chart(data).encode(
        x=alt.X("weights:N", title="weights", sort=list(names), axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("steps:Q", title="window, reach (steps)", axis=counting(alt)),
        color=alt.Color("what:N", title=None, scale=colours),
        tooltip=[alt.Tooltip("weights:N"), alt.Tooltip("what:N"), alt.Tooltip("steps:Q")],
    )
    read = "While a line still rises, the network is learning to look further back."
    points = chart.mark_point(size=40, filled=True, opacity=1).encode(
        shape=alt.Shape("what:N", title=None, scale=shapes)
    )
    layers = [chart.mark_line(), points]
    if needed is not None:
        layers += rule(alt, {"steps": needed[0]}, "y", needed[1])
        read += " Below the dashed line it does not look that far."
    return alt.layer(*layers, width=WIDTH - 90, height=220, title=titled(title, read))
