"""The bias of truncated back-propagation over the number of steps that it looks back."""

import math
from collections.abc import Sequence
from typing import Any

from retrograde.charts.drawing import INK, WIDTH, altair, nothing, rule, table, thinned
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
    x = alt.X("steps:Q", title="steps back, K", axis=alt.Axis(tickMinStep=1))
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
    subtitle = "at the current weights; other weights have another horizon"
    return alt.layer(*layers, width=WIDTH, height=260, title={"text": title, "subtitle": subtitle})
