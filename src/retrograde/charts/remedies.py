"""Before and after: clipping, remedies, and the training of two models side by side."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from retrograde._words import lag_in_words
from retrograde.charts.drawing import (
    ACCENT,
    COUNTER,
    GREY,
    INK,
    WIDTH,
    altair,
    counting,
    fitting_scale,
    naming,
    nothing,
    table,
    thinned,
    titled,
)
from retrograde.charts.figure import figure


@figure
def clipping(
    lags: Sequence[range],
    by_lag: tuple[Tensor, Tensor],
    routes: Sequence[str],
    by_route: tuple[Tensor, Tensor],
    cosine: float,
    kept: float,
) -> Any:
    """Signed shares of the gradient before and after clipping: by lag above, by route below."""
    alt = altair()
    when = ("true gradient", "clipped")
    title = titled(
        "What clipping makes of the gradient",
        f"Clipped: cosine to the true gradient {cosine:.3f}, norm {kept:.1%} of it."
        if cosine == cosine
        else "No cosine: a gradient is 0.",
        "The bars of a colour sum to 100 %; those below 0 pull against the whole.",
    )
    panels = []
    for names, shares, axis in (
        ([lag_in_words(lag) for lag in lags], by_lag, "lag (steps)"),
        (list(routes), by_route, "route of the last hop"),
    ):
        rows = [
            (name, label, round(share, 6))
            for label, of_pass in zip(when, shares, strict=True)
            for name, share in zip(names, of_pass.tolist(), strict=True)
            if math.isfinite(share)
        ]
        if not rows:
            return nothing(alt, title["text"])
        data = table(alt, {"part": "string", "gradient": "string", "share": "number"}, rows)
        scale = alt.Scale(domain=when, range=[GREY, INK])
        angle = 0 if axis.startswith("lag") else -35
        panels.append(
            alt.Chart(data, width=WIDTH - 120, height=150)
            .mark_bar()
            .encode(
                x=alt.X("part:N", sort=names, title=axis, axis=alt.Axis(labelAngle=angle)),
                xOffset=alt.XOffset("gradient:N", sort=when),
                y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")),
                color=alt.Color("gradient:N", title=None, sort=when, scale=scale),
                tooltip=[
                    alt.Tooltip("part:N", title=axis),
                    alt.Tooltip("gradient:N"),
                    alt.Tooltip("share:Q", format=".2%"),
                ],
            )
        )
    return alt.vconcat(*panels, title=title)


@figure
def before_after(
    titles: Sequence[str],
    before: Sequence[float | None],
    after: Sequence[float | None],
    name: str,
    unit: str,
    threshold: float | None,
) -> Any:
    """One number before and after each remedy, and the threshold it should pass."""
    alt = altair()
    rows = [
        (f"{number}. {title}", when, value)
        for number, (title, *values) in enumerate(zip(titles, before, after, strict=True), 1)
        for when, value in zip(("before", "after"), values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return nothing(alt, f"What the remedies do to: {name}")
    data = table(alt, {"remedy": "string", "when": "string", "value": "number"}, rows)
    scale, when = fitting_scale(alt, [value for *_, value in rows]), ["before", "after"]
    along = textwrap.wrap(f"{name} ({unit})" if unit else name, 30)
    axis = counting(alt) if unit == "steps" else alt.Axis()
    dashed = threshold is not None and math.isfinite(threshold)
    chart = alt.Chart(data).encode(
        y=alt.Y(
            "remedy:N",
            sort=list(dict.fromkeys(remedy for remedy, *_ in rows)),
            title="remedy",
            axis=naming(alt, grid=True),
        ),
        x=alt.X("value:Q", title=along, scale=scale, axis=axis),
        tooltip=[alt.Tooltip("remedy:N"), alt.Tooltip("when:N"), alt.Tooltip("value:Q")],
    )
    points = chart.mark_point(filled=True, size=110, opacity=1).encode(
        shape=alt.Shape(
            "when:N", title=None, scale=alt.Scale(domain=when, range=["circle", "triangle-right"])
        ),
        color=alt.Color("when:N", title=None, scale=alt.Scale(domain=when, range=[GREY, INK])),
    )
    layers = [chart.mark_line(color=GREY).encode(detail=alt.Detail("remedy:N")), points]
    if dashed:
        line = alt.Chart(table(alt, {"value": "number"}, [(threshold,)]))
        layers.append(
            line.mark_rule(strokeDash=[4, 4], color=ACCENT).encode(
                x=alt.X("value:Q"), tooltip=alt.Tooltip("value:Q", title="threshold")
            )
        )
    return alt.layer(
        *layers,
        width=WIDTH - 220,
        height={"step": 26},
        title=titled(
            f"What the remedies do to: {name}",
            "A line leads from before to after the remedy, in one pass."
            + (f" Dashed: the threshold, {threshold:.3g}." if dashed else ""),
        ),
    )


@figure
def training_curves(original: Sequence[float], remedy: Sequence[float]) -> Any:
    """The losses of two models that are trained side by side."""
    alt = altair()
    names = ["original", "with the remedy"]
    rows = [
        (name, step, float(f"{losses[step]:.5g}"))
        for name, losses in zip(names, (original, remedy), strict=True)
        for step in thinned(len(losses))
        if math.isfinite(losses[step])
    ]
    if not rows:
        return nothing(alt, "Loss while training")
    data = table(alt, {"model": "string", "step": "number", "loss": "number"}, rows)
    scale = fitting_scale(alt, [loss for *_, loss in rows])
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("step:Q"), alt.Tooltip("loss:Q")]
    chart = alt.Chart(data).encode(
        x=alt.X("step:Q", title="training step", scale=alt.Scale(nice=False), axis=counting(alt)),
        y=alt.Y("loss:Q", title="loss", scale=scale),
        detail=alt.Detail("model:N"),
        tooltip=tooltip,
    )
    dashes = alt.Scale(domain=names, range=[[4, 3], [1, 0]])
    lines = chart.mark_line().encode(
        color=alt.Color("model:N", title=None, scale=alt.Scale(domain=names, range=[COUNTER, INK])),
        strokeDash=alt.StrokeDash("model:N", title=None, scale=dashes),
    )
    hover = chart.mark_point(size=60, filled=True, opacity=0)
    title = titled(
        "Loss while training", "From the same seed, on the same batches: lower is better."
    )
    return alt.layer(lines, hover, width=WIDTH - 110, height=220, title=title)
