"""Parts of a gradient: by time, by lag, by route or crossing, by parameter and gate."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from torch import Tensor

from retrograde._words import in_words, lag_in_words
from retrograde.charts.drawing import (
    COUNTER,
    DEPTH,
    INK,
    NORM,
    SERIES,
    SHAPES,
    WIDTH,
    altair,
    contributions,
    counting,
    naming,
    nothing,
    ramp,
    repeated,
    table,
    titled,
)
from retrograde.charts.figure import figure

UNITS = {"lag": "lag (steps)"}
"""Names of axes that carry a unit."""

SIGNED = "The bars sum to 100 %; one on the other side of 0, in orange, pulls against the whole."
"""How signed shares are read."""


@figure
def loss_step_by_use_step(
    entries: Sequence[int],
    uses: Sequence[int],
    log2: Sequence[Sequence[float]],
    parameter: str | None,
) -> Any:
    """The map of C[t,k]: loss step t upwards, use step k to the right, log2 norm as colour.

    `entries` and `uses` say where each row and column begins, and where the last one ends.
    """
    alt = altair()
    rows = [
        (t, t2, k, round(size, 2))
        for (t, t2), row in zip(pairwise(entries), log2, strict=True)
        for k, size in zip(uses, row, strict=False)
        if math.isfinite(size)
    ]
    if not rows:
        return nothing(alt, "Loss step by use step")
    if len({t for t, *_ in rows}) == 1:
        return _one_loss_step(alt, [(t, k, size) for t, _, k, size in rows], parameter)
    wide, steps = (uses[1] - uses[0] if len(uses) > 1 else 1), uses[-1]
    sizes = [size for *_, size in rows] or [0.0]
    top, least = max(sizes), min(sizes)
    scale = alt.Scale(nice=False, zero=False)
    step = "datum.{0} + (datum.{1} > datum.{0} + 1 ? '-' + (datum.{1} - 1) : '')"
    return (
        alt.Chart(
            table(alt, dict.fromkeys(("t", "t2", "k", "log2"), "number"), rows),
            title=titled(
                "Loss step by use step",
                contributions(parameter),
                "A row is a step at which the loss enters, a column one at which the weights are "
                "used: the brighter, the larger. The lag is the distance from the slanting edge.",
            ),
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
            x=alt.X("k:Q", title="use step k", scale=scale, axis=counting(alt)),
            x2=alt.X2("k2:Q"),
            y=alt.Y("t:Q", title="loss step t", scale=scale, axis=counting(alt)),
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


def _one_loss_step(alt: Any, rows: Sequence[tuple[int, int, float]], parameter: str | None) -> Any:
    """The single row of a map as a curve: the loss enters at one step alone."""
    t = rows[0][0]
    chart = (
        alt.Chart(table(alt, dict.fromkeys(("t", "k", "log2"), "number"), rows))
        .transform_calculate(lag="datum.t - datum.k", norm=NORM)
        .encode(
            x=alt.X("k:Q", title="use step k", scale=alt.Scale(nice=False), axis=counting(alt)),
            y=alt.Y("log2:Q", title="log2 norm", scale=alt.Scale(zero=False)),
            tooltip=[
                alt.Tooltip("k:Q", title="use step k"),
                alt.Tooltip("lag:Q", title="lag (steps)"),
                alt.Tooltip("norm:N", title="norm"),
            ],
        )
    )
    return alt.layer(
        chart.mark_line(color=INK),
        chart.mark_point(color=INK, size=18, filled=True, opacity=1),
        width=WIDTH,
        height=260,
        title=titled(
            f"What the loss at step {t} gets from each use step",
            contributions(parameter),
            "Further left is further back: a curve that falls to the left is a gradient that "
            "vanishes; one unit is a factor of 2.",
        ),
    )


@figure
def shares_by_lag(lags: Sequence[range], log2: Tensor, share: Tensor) -> Any:
    """Signed share of the gradient in each bin of lags."""
    alt = altair()
    order = [lag_in_words(lag) for lag in lags]
    rows = [
        (name, round(value, 6), in_words(size))
        for name, value, size in zip(order, share.tolist(), log2.tolist(), strict=True)
        if value == value  # a gradient of zero has no shares
    ]
    if not rows:
        return nothing(alt, "Share of the gradient by lag")
    data = table(alt, {"lags": "string", "share": "number", "norm": "string"}, rows)
    title = titled("Share of the gradient by lag", SIGNED)
    return (
        alt.Chart(data, title=title)
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


@figure
def shares(
    axes: Sequence[Mapping[str, Sequence[Any]]], log2: Tensor, share: Tensor, most: int = 60
) -> Any:
    """Signed shares by the labels of the first axis, and of all others in their order.

    One axis gives bars, several a map. Of more places than `most` on the first axis those with the
    largest shares are drawn, in their order.
    """
    alt = altair()
    (down, names), *rest = axes_in_words(axes)
    title = f"Share of the gradient by {down}"
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
        return nothing(alt, title)
    kinds = {"part": "string", "of": "string", "share": "number", "norm": "string"}
    tooltip = [alt.Tooltip("part:N", title=down), alt.Tooltip("share:Q", format=".2%"), "norm:N"]
    y = alt.Y("part:N", sort=[names[at] for at in drawn], title=down, axis=naming(alt))
    of = f"The {most} with the largest shares of {len(names)}." if len(names) > most else ""
    read = "Blue adds to the gradient, orange pulls against it." if rest else SIGNED
    chart = alt.Chart(table(alt, kinds, rows), title=titled(title, of, read)).transform_calculate(
        against="datum.share < 0"
    )
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


@figure
def split_by_lag(
    kind: str, labels: Sequence[str], lags: Sequence[range], log2: Tensor, share: Tensor
) -> Any:
    """Routes or crossings over lag: sizes as lines above, signed shares stacked below."""
    alt = altair()
    title, colours = {
        "route": ("Routes by which the last hop arrives", repeated(SERIES, len(labels))),
        "crossings": ("How often the gradient crossed recurrent weights", ramp(len(labels))),
    }[kind]
    names = [lag_in_words(lag) for lag in lags]
    whole = share.sum().abs()
    rows = [
        (name, label, round(size, 3), round(part, 6) if whole == whole else None, number)
        for number, (label, sizes, parts) in enumerate(
            zip(labels, log2.tolist(), share.tolist(), strict=True)
        )
        for name, size, part in zip(names, sizes, parts, strict=True)
        if math.isfinite(size)
    ]
    if not rows:
        return nothing(alt, title)
    kinds = {"lags": "string", "label": "string", "log2": "number", "share": "number"}
    x = alt.X("lags:O", sort=names, title="lag (steps)", axis=alt.Axis(labelAngle=0))
    domain = list(labels)
    scale = alt.Scale(domain=domain, range=colours)
    color = alt.Color("label:N", title=kind, scale=scale, legend=alt.Legend(labelLimit=240))
    shapes = alt.Scale(domain=domain, range=repeated(SHAPES, len(labels)))
    tooltip = [
        alt.Tooltip("label:N", title=kind),
        alt.Tooltip("lags:O", title="lags (steps)"),
        alt.Tooltip("norm:N", title="norm"),
        alt.Tooltip("share:Q", title="share", format=".2%"),
    ]
    chart = (
        alt.Chart(table(alt, {**kinds, "order": "number"}, rows))
        .transform_calculate(norm=NORM)
        .encode(x=x, color=color, tooltip=tooltip)
    )
    sizes = chart.encode(y=alt.Y("log2:Q", title="log2 norm", scale=alt.Scale(zero=False)))
    points = sizes.mark_point(filled=True, size=45, opacity=1).encode(
        shape=alt.Shape("label:N", title=kind, scale=shapes)
    )
    stacked = chart.mark_bar().encode(
        y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")),
        order=alt.Order("order:Q"),
    )
    return alt.vconcat(
        alt.layer(sizes.mark_line(), points, width=WIDTH - 120, height=200),
        stacked.properties(width=WIDTH - 120, height=150),
        title=titled(
            title,
            "Above, how large each part is: one unit is a factor of 2. Below, how much of the "
            "gradient it makes up: all bars sum to 100 %, those below 0 pull against the whole.",
        ),
    )


@figure
def blocks(names: Sequence[tuple[str, str | None]], log2: Tensor, share: Tensor) -> Any:
    """Size of each block of the gradient: weights down, gates side by side."""
    alt = altair()
    rows = [
        (block_in_words(name), name[0], round(size, 4), round(part, 6), f"{part:.1%}")
        for name, size, part in zip(names, log2.tolist(), share.tolist(), strict=True)
        if math.isfinite(size)
    ]
    if not rows:
        return nothing(alt, "Blocks of the gradient")
    kinds = {"block": "string", "parameter": "string", "log2": "number", "share": "number"}
    order = [block_in_words(name) for name in names]
    chart = (
        alt.Chart(table(alt, {**kinds, "text": "string"}, rows))
        .transform_calculate(norm=NORM)
        .encode(
            y=alt.Y("block:N", sort=order, title="parameter", axis=naming(alt)),
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
    shapes = alt.Scale(domain=parameters, range=repeated(SHAPES, len(parameters)))
    dots = chart.mark_point(filled=True, size=70, opacity=1, color=INK).encode(
        shape=alt.Shape("parameter:N", legend=None, scale=shapes)
    )
    labels = chart.mark_text(align="left", dx=8).encode(text=alt.Text("text:N"))
    return alt.layer(
        dots,
        labels,
        width=WIDTH - 110,
        height={"step": 20 if len(rows) <= 40 else 12},
        title=titled(
            "Blocks of the gradient",
            "Labels: share of the whole. Further right is larger; one unit is a factor of 2.",
        ),
    )


def axes_in_words(axes: Sequence[Mapping[str, Sequence[Any]]]) -> list[tuple[str, list[str]]]:
    """The name of each axis and of each of its places; of no axes, those of a single part."""
    return [
        (
            UNITS.get(" and ".join(axis), " and ".join(axis)),
            [label_in_words(place) for place in zip(*axis.values(), strict=True)],
        )
        for axis in axes
    ] or [("part", ["all"])]


def label_in_words(labels: Sequence[Any]) -> str:
    """The label of a place, or its labels side by side."""
    words = [
        lag_in_words(label) if isinstance(label, range) else str(label)
        for label in labels
        if label is not None
    ]
    return " · ".join(words)


def block_in_words(name: tuple[str, str | None]) -> str:
    return name[0] if name[1] is None else f"{name[0]} · {name[1]}"
