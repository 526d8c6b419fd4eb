"""Altair charts of plain numbers. This module imports no results; they pass their numbers to it.

Altair is imported when the first chart is drawn, not with the package.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from retrograde._optional import optional

WIDTH = 500
DEPTH = 40
"""The colours of the map span at most this many powers of two below its largest norm."""

POINTS = 1000
"""Maximum number of points of a curve; of a longer one every n-th is shown."""

DIRECTIONS = 12
"""Maximum number of directions drawn, spaced evenly from the first to the last."""

INK, ACCENT, COUNTER, GREY = "#3a7cab", "#c4478a", "#c96f0a", "#7f7f7f"
SERIES = (
    *("#3b7bbf", "#c96f0a", "#2f9158", "#d5494c", "#9467bd"),
    *("#9c6b4e", "#d1579b", "#8a8a1f", "#1c93a0", "#7f7f7f"),
    *("#b08030", "#5f82e0", "#0f8a78", "#e0605f", "#a85fd6"),
    *("#b4633c", "#c04a9e", "#5f8f2f", "#6b7f99", "#9a7d8f"),
)
RAMP = ("#3b7bbf", "#8a5fd0", "#c04a9e", "#d9573f", "#c98000")
"""Colours that stand out (3 to 1 and more) from white paper and from a dark page alike."""

SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)

NORM = "abs(datum.log2) < 1000 ? format(pow(2, datum.log2), '.3g') : '2^' + datum.log2"


def loss_step_by_use_step(
    entries: Sequence[int],
    uses: Sequence[int],
    log2: Sequence[Sequence[float]],
    parameter: str | None,
) -> Any:
    """The map of C[t,k]: loss step t upwards, use step k to the right, log2 norm as colour.

    `entries` and `uses` say where each row and column begins, and where the last one ends.
    """
    alt = _altair()
    rows = [
        (t, t2, k, round(size, 2))
        for (t, t2), row in zip(pairwise(entries), log2, strict=True)
        for k, size in zip(uses, row, strict=False)
        if math.isfinite(size)
    ]
    if not rows:
        return _nothing(alt, "Loss step by use step")
    wide, steps = (uses[1] - uses[0] if len(uses) > 1 else 1), uses[-1]
    sizes = [size for *_, size in rows] or [0.0]
    top, least = max(sizes), min(sizes)
    scale = alt.Scale(nice=False, zero=False)
    step = "datum.{0} + (datum.{1} > datum.{0} + 1 ? '-' + (datum.{1} - 1) : '')"
    return (
        alt.Chart(
            _table(alt, dict.fromkeys(("t", "t2", "k", "log2"), "number"), rows),
            title=_titled("Loss step by use step", parameter),
        )
        .transform_calculate(k2=f"min(datum.k + {wide}, {steps})")
        .transform_calculate(
            entered=step.format("t", "t2"),
            use=step.format("k", "k2"),
            lag="max(datum.t - datum.k, 0)",
            norm=NORM,
        )
        .mark_rect()
        .encode(
            x=alt.X("k:Q", title="use step k", scale=scale),
            x2=alt.X2("k2:Q"),
            y=alt.Y("t:Q", title="loss step t", scale=scale, axis=alt.Axis(tickMinStep=1)),
            y2=alt.Y2("t2:Q"),
            color=alt.Color(
                "log2:Q",
                title="log2 norm",
                scale=alt.Scale(
                    scheme="viridis", domain=[max(least, top - DEPTH), top], clamp=True
                ),
            ),
            tooltip=[
                alt.Tooltip("entered:N", title="loss step t"),
                alt.Tooltip("use:N", title="use step k"),
                alt.Tooltip("lag:Q", title="lag (steps)"),
                alt.Tooltip("norm:N", title="norm"),
            ],
        )
        .properties(width=WIDTH - 90, height=WIDTH - 150)
    )


def lag_curve(log2_mean: Tensor, reach: int, half_life: float, floor: float) -> Any:
    """Mean norm of the contributions over lag, with reach and half-life marked."""
    alt = _altair()
    rows, curve = _over_lag(alt, log2_mean.tolist(), "mean contribution")
    if not rows:
        return _nothing(alt, "How far back the gradient reaches")
    layers = [curve]
    if len(rows) > 1 and half_life == half_life:
        start, least = rows[0][1], min(log2 for _, log2 in rows)
        layers += [
            _slope(alt, start, least, len(log2_mean) - 1, half_life),
            *_rule(alt, {"lag": reach}, "x", f"reach: {reach} steps", WIDTH),
            *_rule(alt, {"log2": start + math.log2(floor)}, "y", f"{floor:.0%} of lag 0", WIDTH),
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


def adjoint_curve(log2_mean: Sequence[float], half_life: float) -> Any:
    """Mean norm of the adjoint over lag: how it grows or shrinks on its way back."""
    alt = _altair()
    rows, curve = _over_lag(alt, log2_mean, "mean adjoint, over that at lag 0")
    if not rows:
        return _nothing(alt, "How the adjoint grows or shrinks on its way back")
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


def shares_by_lag(lags: Sequence[range], log2: Tensor, share: Tensor) -> Any:
    """Signed share of the gradient in each bin of lags."""
    alt = _altair()
    order = [lag_in_words(lag) for lag in lags]
    rows = [
        (name, round(value, 6), in_words(size))
        for name, value, size in zip(order, share.tolist(), log2.tolist(), strict=True)
        if value == value  # a gradient of zero has no shares
    ]
    if not rows:
        return _nothing(alt, "Share of the gradient by lag")
    data = _table(alt, {"lags": "string", "share": "number", "norm": "string"}, rows)
    return (
        alt.Chart(data, title="Share of the gradient by lag")
        .transform_calculate(against="datum.share < 0")
        .mark_bar()
        .encode(
            x=alt.X("lags:N", sort=order, title="lag (steps)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")),
            color=alt.Color(
                "against:N",
                legend=None,
                scale=alt.Scale(domain=[False, True], range=[INK, COUNTER]),
            ),
            tooltip=[
                alt.Tooltip("lags:N", title="lags (steps)"),
                alt.Tooltip("share:Q", title="share", format=".2%"),
                alt.Tooltip("norm:N", title="norm"),
            ],
        )
        .properties(width=WIDTH, height=220)
    )


def shares(
    axes: Sequence[Mapping[str, Sequence[Any]]], log2: Tensor, share: Tensor, most: int = 60
) -> Any:
    """Signed shares by the labels of the first axis, and of all others in their order.

    One axis gives bars, several a map. Of more places than `most` on the first axis those with the
    largest shares are drawn, in their order.
    """
    alt = _altair()
    (first, *rest) = [
        (" and ".join(axis), [_label(labels) for labels in zip(*axis.values(), strict=True)])
        for axis in axes
    ] or [("part", ["all"])]
    (down, names), title = first, f"Share of the gradient by {first[0]}"
    across = ", ".join(name for name, _ in rest)
    columns = [" · ".join(labels) for labels in product(*(labels for _, labels in rest))]
    share, log2 = share.reshape(len(names), -1), log2.reshape(len(names), -1)
    size = share.abs().sum(1)
    drawn = size.argsort(descending=True)[:most].sort().values.tolist()
    rows = [
        (names[at], column, round(value, 6), in_words(norm))
        for at in drawn
        for column, value, norm in zip(columns, share[at].tolist(), log2[at].tolist(), strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return _nothing(alt, title)
    kinds = {"part": "string", "of": "string", "share": "number", "norm": "string"}
    tooltip = [alt.Tooltip("part:N", title=down), alt.Tooltip("share:Q", format=".2%"), "norm:N"]
    y = alt.Y("part:N", sort=[names[at] for at in drawn], title=down, axis=alt.Axis(labelLimit=260))
    subtitle = f"the {most} with the largest shares of {len(names)}" if len(names) > most else ""
    chart = alt.Chart(
        _table(alt, kinds, rows), title=alt.TitleParams(title, subtitle=subtitle)
    ).transform_calculate(against="datum.share < 0")
    if not rest:
        colour = alt.Scale(domain=[False, True], range=[INK, COUNTER])
        chart = chart.mark_bar().encode(
            x=alt.X("share:Q", title="signed share", axis=alt.Axis(format="%")),
            color=alt.Color("against:N", legend=None, scale=colour),
        )
    else:
        top = max(abs(value) for *_, value, _ in rows) or 1.0
        colour = alt.Scale(domain=[-top, 0, top], range=[COUNTER, "#f4f4f4", INK])
        tooltip.insert(1, alt.Tooltip("of:N", title=across))
        chart = chart.mark_rect().encode(
            x=alt.X("of:N", sort=columns, title=across, axis=alt.Axis(labelAngle=0)),
            color=alt.Color(
                "share:Q", title="signed share", scale=colour, legend=alt.Legend(format="%")
            ),
        )
    return chart.encode(y=y, tooltip=tooltip).properties(width=WIDTH - 140, height={"step": 14})


def ways_by_lag(
    kind: str, ways: Sequence[str], lags: Sequence[range], log2: Tensor, share: Tensor
) -> Any:
    """Routes or crossings over lag: sizes as lines above, signed shares stacked below."""
    alt = _altair()
    title, colours = {
        "route": ("Routes by which the gradient arrives", _repeated(SERIES, len(ways))),
        "crossings": ("How often the gradient crossed recurrent weights", _ramp(len(ways))),
    }[kind]
    names = [lag_in_words(lag) for lag in lags]
    whole = share.sum().abs()
    rows = [
        (name, way, round(size, 3), round(part, 6) if whole == whole else None, number)
        for number, (way, sizes, parts) in enumerate(
            zip(ways, log2.tolist(), share.tolist(), strict=True)
        )
        for name, size, part in zip(names, sizes, parts, strict=True)
        if math.isfinite(size)
    ]
    if not rows:
        return _nothing(alt, title)
    kinds = {"lags": "string", "way": "string", "log2": "number", "share": "number"}
    x = alt.X("lags:O", sort=names, title="lag (steps)", axis=alt.Axis(labelAngle=0))
    domain = list(ways)
    color = alt.Color("way:N", title=kind, scale=alt.Scale(domain=domain, range=colours))
    shapes = alt.Scale(domain=domain, range=_repeated(SHAPES, len(ways)))
    tooltip = [
        alt.Tooltip("way:N", title=kind),
        alt.Tooltip("lags:O", title="lags (steps)"),
        alt.Tooltip("norm:N", title="norm"),
        alt.Tooltip("share:Q", title="share", format=".2%"),
    ]
    chart = (
        alt.Chart(_table(alt, {**kinds, "order": "number"}, rows))
        .transform_calculate(norm=NORM)
        .encode(x=x, color=color, tooltip=tooltip)
    )
    sizes = chart.encode(y=alt.Y("log2:Q", title="log2 norm", scale=alt.Scale(zero=False)))
    points = sizes.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape("way:N", title=kind, scale=shapes)
    )
    stacked = chart.mark_bar().encode(
        y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")),
        order=alt.Order("order:Q"),
    )
    return alt.vconcat(
        alt.layer(sizes.mark_line(), points, width=WIDTH - 120, height=200, title=title),
        stacked.properties(width=WIDTH - 120, height=150),
    )


def clipping(
    lags: Sequence[range],
    by_lag: tuple[Tensor, Tensor],
    ways: Sequence[str],
    by_way: tuple[Tensor, Tensor],
    cosine: float,
    kept: float,
) -> Any:
    """Signed shares of the gradient before and after clipping: by lag above, by route below."""
    alt = _altair()
    when = ("true gradient", "clipped")
    title = {
        "text": "What clipping makes of the gradient",
        "subtitle": f"cosine to the true gradient {cosine:.3f}, norm {kept:.1%} of it"
        if cosine == cosine
        else "no cosine: a gradient is 0",
    }
    panels = []
    for names, shares, axis in (
        ([lag_in_words(lag) for lag in lags], by_lag, "lag (steps)"),
        (list(ways), by_way, "route of the last hop"),
    ):
        rows = [
            (name, label, round(share, 6))
            for label, of_pass in zip(when, shares, strict=True)
            for name, share in zip(names, of_pass.tolist(), strict=True)
            if math.isfinite(share)
        ]
        if not rows:
            return _nothing(alt, title["text"])
        data = _table(alt, {"part": "string", "gradient": "string", "share": "number"}, rows)
        scale = alt.Scale(domain=when, range=[GREY, ACCENT])
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


def blocks(names: Sequence[tuple[str, str | None]], log2: Tensor, share: Tensor) -> Any:
    """Size of each block of the gradient: weights down, gates side by side."""
    alt = _altair()
    rows = [
        (_block(name), name[0], round(size, 4), round(part, 6), f"{part:.1%}")
        for name, size, part in zip(names, log2.tolist(), share.tolist(), strict=True)
        if math.isfinite(size)
    ]
    if not rows:
        return _nothing(alt, "Blocks of the gradient")
    kinds = {"block": "string", "parameter": "string", "log2": "number", "share": "number"}
    order = [_block(name) for name in names]
    chart = (
        alt.Chart(_table(alt, {**kinds, "text": "string"}, rows))
        .transform_calculate(norm=NORM)
        .encode(
            y=alt.Y("block:N", sort=order, title=None, axis=alt.Axis(labelLimit=260)),
            x=alt.X(
                "log2:Q",
                title="log2 norm",
                scale=alt.Scale(zero=False, padding=30),
                axis=alt.Axis(tickCount=6),
            ),
            tooltip=[
                alt.Tooltip("block:N", title="block"),
                alt.Tooltip("norm:N", title="norm"),
                alt.Tooltip("share:Q", title="share", format=".2%"),
            ],
        )
    )
    parameters = list(dict.fromkeys(parameter for parameter, _ in names))
    shapes = alt.Scale(domain=parameters, range=_repeated(SHAPES, len(parameters)))
    dots = chart.mark_point(filled=True, size=70, opacity=1, color=INK).encode(
        shape=alt.Shape("parameter:N", legend=None, scale=shapes)
    )
    labels = chart.mark_text(align="left", dx=8).encode(text=alt.Text("text:N"))
    return alt.layer(
        dots,
        labels,
        width=WIDTH - 110,
        height={"step": 20},
        title={"text": "Blocks of the gradient", "subtitle": "labels: share of the whole"},
    )


def gates_over_time(
    names: Sequence[str],
    steps: Sequence[Sequence[int]],
    low: Sequence[Sequence[float]],
    median: Sequence[Sequence[float]],
    high: Sequence[Sequence[float]],
    columns: int,
) -> Any:
    """A small panel for each gate: the median activation in the band from low to high."""
    alt = _altair()
    rows = [
        (name, step, *(round(value, 4) for value in values))
        for name, along, *sizes in zip(names, steps, low, median, high, strict=True)
        for step, *values in zip(along, *sizes, strict=True)
        if all(map(math.isfinite, values))
    ]
    if not rows:
        return _nothing(alt, "Gates over time")
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
        y=alt.Y("low:Q", title=None, scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(color=INK).encode(y=alt.Y("median:Q", title=None, scale=scale))
    hover = base.mark_rule(strokeWidth=4, opacity=0)
    return _panels(alt, _table(alt, kinds, rows), (band, line, hover), names, columns).properties(
        title={"text": "Gates over time", "subtitle": "median, and the band from 10 % to 90 %"}
    )


def saturation_over_time(
    names: Sequence[str],
    steps: Sequence[Sequence[int]],
    share: Sequence[Sequence[float]],
    columns: int,
) -> Any:
    """A small panel for each gate: the share of units and samples that are saturated."""
    alt = _altair()
    rows = [
        (name, step, round(value, 4))
        for name, along, values in zip(names, steps, share, strict=True)
        for step, value in zip(along, values, strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return _nothing(alt, "Saturated over time")
    data = _table(alt, {"gate": "string", "step": "number", "share": "number"}, rows)
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=3)
    tooltip = [alt.Tooltip("gate:N"), alt.Tooltip("step:Q"), alt.Tooltip("share:Q", format=".1%")]
    base = alt.Chart().encode(x=_step(alt), tooltip=tooltip)
    area = base.mark_area(color=INK, opacity=0.35, line={"color": INK}).encode(
        y=alt.Y("share:Q", title=None, scale=scale, axis=axis)
    )
    hover = base.mark_rule(strokeWidth=4, opacity=0)
    return _panels(alt, data, (area, hover), names, columns).properties(
        title={"text": "Saturated over time", "subtitle": "share of units and samples"}
    )


def before_after(
    titles: Sequence[str],
    before: Sequence[float | None],
    after: Sequence[float | None],
    name: str,
    unit: str,
    threshold: float | None,
) -> Any:
    """One number before and after each remedy, and the threshold it should pass."""
    alt = _altair()
    rows = [
        (f"{number}. {title}", when, value)
        for number, (title, *values) in enumerate(zip(titles, before, after, strict=True), 1)
        for when, value in zip(("before", "after"), values, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return _nothing(alt, f"What the remedies do to: {name}")
    data = _table(alt, {"remedy": "string", "when": "string", "value": "number"}, rows)
    scale, when = _scale(alt, [value for *_, value in rows]), ["before", "after"]
    chart = alt.Chart(data).encode(
        y=alt.Y(
            "remedy:N",
            sort=list(dict.fromkeys(remedy for remedy, *_ in rows)),
            title=None,
            axis=alt.Axis(labelLimit=240, grid=True),
        ),
        x=alt.X("value:Q", title=f"{name} ({unit})" if unit else name, scale=scale),
        tooltip=[alt.Tooltip("remedy:N"), alt.Tooltip("when:N"), alt.Tooltip("value:Q")],
    )
    points = chart.mark_point(filled=True, size=110, opacity=1).encode(
        shape=alt.Shape(
            "when:N", title=None, scale=alt.Scale(domain=when, range=["circle", "triangle-right"])
        ),
        color=alt.Color("when:N", title=None, scale=alt.Scale(domain=when, range=[GREY, INK])),
    )
    layers = [chart.mark_line(color=GREY).encode(detail=alt.Detail("remedy:N")), points]
    if threshold is not None and math.isfinite(threshold):
        line = alt.Chart(_table(alt, {"value": "number"}, [(threshold,)]))
        layers.append(
            line.mark_rule(strokeDash=[4, 4], color=ACCENT).encode(
                x=alt.X("value:Q"), tooltip=alt.Tooltip("value:Q", title="threshold")
            )
        )
    return alt.layer(
        *layers,
        width=WIDTH - 220,
        height={"step": 26},
        title={
            "text": f"What the remedies do to: {name}",
            **({"subtitle": f"dashed: the threshold, {threshold:.3g}"} if len(layers) > 2 else {}),
        },
    )


def training_curves(original: Sequence[float], remedy: Sequence[float]) -> Any:
    """The losses of two models that are trained side by side."""
    alt = _altair()
    names = ["original", "with the remedy"]
    rows = [
        (name, step, float(f"{losses[step]:.5g}"))
        for name, losses in zip(names, (original, remedy), strict=True)
        for step in _thinned(len(losses))
        if math.isfinite(losses[step])
    ]
    if not rows:
        return _nothing(alt, "Loss while training")
    data = _table(alt, {"model": "string", "step": "number", "loss": "number"}, rows)
    scale = _scale(alt, [loss for *_, loss in rows])
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("step:Q"), alt.Tooltip("loss:Q")]
    chart = alt.Chart(data).encode(
        x=alt.X("step:Q", title="training step", axis=alt.Axis(tickMinStep=1)),
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
    return alt.layer(lines, hover, width=WIDTH - 110, height=220, title="Loss while training")


def memory(curves: Mapping[str, Sequence[float]], floor: float, what: str) -> Any:
    """How much is left of a perturbation over lag, a line for each name, and where it is forgotten.

    Args:
        curves: log2 of what is left at each lag, by name.
        floor: the share at which it counts as forgotten.
        what: what was perturbed, for the title.
    """
    alt = _altair()
    title = f"What is left of a perturbation of {what}"
    rows = [
        (name, lag, round(curve[lag], 3))
        for name, curve in curves.items()
        for lag in _thinned(len(curve))
        if math.isfinite(curve[lag]) and curve[lag] > -DEPTH
    ]
    if not rows:
        return _nothing(alt, title)
    names = list(curves)
    data = _table(alt, {"name": "string", "lag": "number", "log2": "number"}, rows)
    colours = alt.Scale(domain=names, range=_repeated(SERIES, len(names)))
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
    forgotten = _rule(alt, {"log2": math.log2(floor)}, "y", f"{floor:.0%}", width)
    return alt.layer(lines, *forgotten, width=width, height=230, title=title)


def directions(size: int) -> list[int]:
    """The directions that are drawn: all `size` of them, or `DIRECTIONS` spaced evenly."""
    if size <= DIRECTIONS:
        return list(range(size))
    return [round(i * (size - 1) / (DIRECTIONS - 1)) for i in range(DIRECTIONS)]


def singular_values(
    lengths: Sequence[int], shown: Sequence[int], size: int, log2: Sequence[Sequence[float]]
) -> Any:
    """log2 of the singular values over the length of the window.

    `shown` are the directions drawn, of `size`; `log2` has a column for each.
    """
    title = "Singular values of the Jacobians' product"
    along, what = "length of the window (steps)", "log2 singular value"
    return _lines(title, along, what, lengths, shown, size, log2)


def exponents(
    steps: Sequence[int], shown: Sequence[int], size: int, each: Sequence[Sequence[float]]
) -> Any:
    """Lyapunov exponents as estimated from the first steps, for each number of steps.

    `shown` are the directions drawn, of `size`; `each` has a column for each.
    """
    title = "How the Lyapunov exponents settle"
    along, what = "steps", "exponent so far (nats per step)"
    return _lines(title, along, what, steps, shown, size, each)


def lag_in_words(lag: range) -> str:
    """`range(3, 5)` is "3-4", `range(3, 4)` is "3"."""
    return str(lag.start) if len(lag) == 1 else f"{lag.start}-{lag.stop - 1}"


def half_life_in_words(half_life: float) -> str:
    """Steps to halve, or to double where the half-life is negative."""
    if half_life != half_life:
        return "nothing to measure"
    if half_life == float("inf"):
        return "none, it neither shrinks nor grows"
    steps = f"{abs(half_life):.3g} steps"
    return steps if half_life > 0 else f"none, it doubles every {steps}"


def in_words(log2: float) -> str:
    """A norm from its log2, also where an ordinary number would read 0 or inf."""
    if log2 == -torch.inf:
        return "0"
    return f"{2**log2:.3g}" if -1000 < log2 < 1000 else f"2^{log2:.1f}"


def _lines(
    title: str,
    along: str,
    what: str,
    at: Sequence[int],
    shown: Sequence[int],
    size: int,
    values: Sequence[Sequence[float]],
) -> Any:
    alt = _altair()
    rows = [
        (place, direction + 1, round(value, 4))
        for place, row in zip(at, values, strict=True)
        for direction, value in zip(shown, row, strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return _nothing(alt, title)
    kinds = {"at": "number", "direction": "number", "value": "number"}
    names = [direction + 1 for direction in shown]
    chart = alt.Chart(_table(alt, kinds, rows)).encode(
        x=alt.X("at:Q", title=along, axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("value:Q", title=what, scale=alt.Scale(zero=False)),
        color=alt.Color(
            "direction:O", scale=alt.Scale(domain=names, range=_ramp(len(names))), title="direction"
        ),
        tooltip=[
            alt.Tooltip("direction:O"),
            alt.Tooltip("at:Q", title=along),
            alt.Tooltip("value:Q", title=what),
        ],
    )
    lost = sum(not math.isfinite(value) for value in values[-1])
    text = f"{len(shown)} of {size} directions"
    text += f"; {lost} of these are lost entirely (rank)" if lost else ""
    return alt.layer(
        chart.mark_line(),
        chart.mark_point(size=12, filled=True, opacity=1),
        width=WIDTH - 90,
        height=260,
        title={"text": title, "subtitle": text},
    )


def _over_lag(alt: Any, log2: Sequence[float], what: str) -> tuple[list[tuple[int, float]], Any]:
    """A curve over lag: its points, and the chart of them."""
    rows = [(lag, round(log2[lag], 4)) for lag in _thinned(len(log2)) if math.isfinite(log2[lag])]
    point = alt.OverlayMarkDef(size=18, color=INK, filled=True)
    curve = (
        alt.Chart(_table(alt, {"lag": "number", "log2": "number"}, rows))
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


def _nothing(alt: Any, title: str) -> Any:
    """In place of a chart that has no number to show."""
    text = "nothing to draw: every number is 0 or not finite"
    data = _table(alt, {"text": "string"}, [(text,)])
    chart = alt.Chart(data, title=title, width=WIDTH, height=60)
    return chart.mark_text().encode(text=alt.Text("text:N"))


def _rule(
    alt: Any, where: Mapping[str, int | float], axis: str, text: str, width: int
) -> list[Any]:
    """A dashed line with a label, vertical at a lag or horizontal at a size."""
    name, at = next(iter(where.items()))
    data = _table(alt, {name: "number", "text": "string"}, [(at, text)])
    line = (
        alt.Chart(data)
        .mark_rule(strokeDash=[4, 4], color=ACCENT)
        .encode({"x": alt.X, "y": alt.Y}[axis](f"{name}:Q"))
    )
    if axis == "x":
        label = alt.Chart(data).mark_text(align="left", dx=5, dy=6, baseline="top")
        return [line, label.encode(x=alt.X(f"{name}:Q"), y=alt.YValue(0), text=alt.Text("text:N"))]
    label = alt.Chart(data).mark_text(align="right", dy=-6)
    return [line, label.encode(y=alt.Y(f"{name}:Q"), x=alt.XValue(width), text=alt.Text("text:N"))]


def _slope(alt: Any, start: float, least: float, lags: int, half_life: float) -> Any:
    """The straight line that the half-life stands for, as far as the chart goes down."""
    end = min(lags, (start - least) * half_life) if half_life > 0 else lags
    data = _table(
        alt, {"lag": "number", "log2": "number"}, [(0, start), (end, start - end / half_life)]
    )
    line = alt.Chart(data).mark_line(color=COUNTER, strokeDash=[2, 3])
    return line.encode(x=alt.X("lag:Q"), y=alt.Y("log2:Q"))


def _panels(alt: Any, data: Any, layers: Sequence[Any], names: Sequence[str], columns: int) -> Any:
    """The same layers once for each name, in a grid with this number of columns."""
    columns = max(1, min(columns, len(names)))
    width = (WIDTH - 15 * (columns - 1)) // columns
    facet = alt.Facet("gate:N", sort=list(names), title=None, header=alt.Header(labelLimit=width))
    height = 160 if len(names) < 2 else 80
    small = alt.layer(*layers, data=data, width=width, height=height)
    return small.facet(facet, columns=columns)


def _step(alt: Any) -> Any:
    return alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=3))


def _scale(alt: Any, values: Sequence[float]) -> Any:
    """A linear scale, or a logarithmic one for positive values that differ by orders."""
    if values and min(values) > 0 and max(values) > 100 * min(values):
        return alt.Scale(type="log")
    return alt.Scale(zero=False, padding=12)


def _table(alt: Any, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> Any:
    """Rows as comma-separated text: a third of the bytes, and quick to hand over."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return alt.Data(values=text.getvalue(), format={"type": "csv", "parse": dict(columns)})


def _thinned(count: int) -> range:
    return range(0, count, max(1, -(-count // POINTS)))


def _repeated(values: Sequence[str], count: int) -> list[str]:
    return [values[number % len(values)] for number in range(count)]


def _ramp(count: int) -> list[str]:
    """Colours along the ramp, in equal steps."""
    colours = torch.tensor(
        [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in RAMP], dtype=torch.float64
    )
    found = []
    for number in range(count):
        at = number * (len(RAMP) - 1) / max(1, count - 1)
        first = min(int(at), len(RAMP) - 2)
        mixed = torch.lerp(colours[first], colours[first + 1], at - first)
        found.append("#" + "".join(f"{round(value):02x}" for value in mixed.tolist()))
    return found


def _label(labels: Sequence[Any]) -> str:
    """The label of a place, or its labels side by side."""
    words = [
        lag_in_words(label) if isinstance(label, range) else str(label)
        for label in labels
        if label is not None
    ]
    return " · ".join(words)


def _block(name: tuple[str, str | None]) -> str:
    return name[0] if name[1] is None else f"{name[0]} · {name[1]}"


def _titled(title: str, parameter: str | None) -> dict[str, str]:
    return {"text": title, "subtitle": f"contributions to {parameter or 'the whole gradient'}"}


def _altair() -> Any:
    with optional("a chart", "report"):
        import altair

    return altair
