"""Plain numbers to Altair charts. Charts know no results; results hand over their numbers.

Altair is imported when the first chart is drawn, not with the package.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

WIDTH = 500
DEPTH = 40
"""The colours of the map span at most so many powers of two below its largest norm."""

INK, ACCENT, COUNTER = "#31688e", "#b5367a", "#e08214"


def entry_by_use(
    entries: Sequence[int],
    uses: Sequence[int],
    log2: Sequence[Sequence[float]],
    parameter: str | None,
) -> Any:
    """The map of C[t,k]: entry step t upwards, use step k to the right, log2 norm as colour.

    `entries` and `uses` say where each row and column begins, and where the last one ends.
    """
    alt = _altair()
    rows = [
        {"t": t, "k": k, "v": round(size, 2)} | ({"t2": t2} if t2 > t + 1 else {})
        for (t, t2), row in zip(pairwise(entries), log2, strict=True)
        for k, size in zip(uses, row, strict=False)
        if size > -torch.inf
    ]
    wide, steps = (uses[1] - uses[0] if len(uses) > 1 else 1), uses[-1]
    sizes = [row["v"] for row in rows] or [0.0]
    top, least = max(sizes), min(sizes)
    scale = alt.Scale(nice=False, zero=False)
    step = "datum.{0} + (datum.{1} > datum.{0} + 1 ? '-' + (datum.{1} - 1) : '')"
    return (
        alt.Chart(alt.Data(values=rows), title=_titled("Entry by use", parameter))
        .transform_calculate(
            t2="isValid(datum.t2) ? datum.t2 : datum.t + 1",
            k2=f"min(datum.k + {wide}, {steps})",
        )
        .transform_calculate(
            entry=step.format("t", "t2"),
            use=step.format("k", "k2"),
            lag="max(datum.t - datum.k, 0)",
            norm="abs(datum.v) < 1000 ? format(pow(2, datum.v), '.3g') : '2^' + datum.v",
        )
        .mark_rect()
        .encode(
            x=alt.X("k:Q", title="use step k", scale=scale),
            x2="k2:Q",
            y=alt.Y("t:Q", title="entry step t", scale=scale),
            y2="t2:Q",
            color=alt.Color(
                "v:Q",
                title="log2 norm",
                scale=alt.Scale(
                    scheme="viridis", domain=[max(least, top - DEPTH), top], clamp=True
                ),
            ),
            tooltip=[
                alt.Tooltip("entry:N", title="entry step t"),
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
    rows = [
        {"lag": lag, "log2": round(value, 4), "norm": in_words(value)}
        for lag, value in enumerate(log2_mean.tolist())
        if value > -torch.inf
    ]
    start = rows[0]["log2"] if rows else 0.0
    least = min((row["log2"] for row in rows), default=0.0)
    x = alt.X("lag:Q", title="lag (steps)", axis=alt.Axis(tickMinStep=1))
    y = alt.Y("log2:Q", title="log2 of the mean contribution", scale=alt.Scale(zero=False))
    tooltip = [alt.Tooltip("lag:Q", title="lag (steps)"), alt.Tooltip("norm:N", title="mean norm")]
    curve = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    layers = [
        curve.mark_line(color=INK),
        curve.mark_circle(color=INK, size=18).encode(tooltip=tooltip),
    ]
    if len(rows) > 1 and half_life == half_life:
        level = start + _log2(floor)
        layers += [
            _slope(alt, start, least, len(log2_mean) - 1, half_life),
            _rule(alt, {"lag": reach}, "x", f"reach: {reach} steps", WIDTH),
            _rule(alt, {"log2": level}, "y", f"{floor:.0%} of lag 0", WIDTH),
        ]
    return alt.layer(*layers).properties(
        width=WIDTH,
        height=260,
        title={
            "text": "How far back the gradient reaches",
            "subtitle": "dotted: the half-life of the adjoint, " + half_life_in_words(half_life),
        },
    )


def shares_by_lag(lags: Sequence[range], log2: Tensor, share: Tensor) -> Any:
    """Signed share of the gradient in each bin of lags."""
    alt = _altair()
    order = [lag_in_words(lag) for lag in lags]
    rows = [
        {"lags": name, "share": round(value, 6), "norm": in_words(size)}
        for name, value, size in zip(order, share.tolist(), log2.tolist(), strict=True)
        if value == value  # a gradient of zero has no shares
    ]
    return (
        alt.Chart(alt.Data(values=rows), title="Share of the gradient by lag")
        .mark_bar()
        .encode(
            x=alt.X("lags:N", sort=order, title="lag (steps)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")),
            color=alt.condition("datum.share < 0", alt.value(COUNTER), alt.value(INK)),
            tooltip=[
                alt.Tooltip("lags:N", title="lags (steps)"),
                alt.Tooltip("share:Q", title="share", format=".2%"),
                alt.Tooltip("norm:N", title="norm"),
            ],
        )
        .properties(width=WIDTH, height=220)
    )


def ways_by_lag(
    kind: str, ways: Sequence[str], lags: Sequence[range], log2: Tensor, share: Tensor
) -> Any:
    """Routes or crossings over lag: sizes as lines above, signed shares stacked below."""
    alt = _altair()
    title, scheme = {
        "route": ("Routes by which the gradient arrives", "tableau10"),
        "crossings": ("How often the gradient crossed recurrent weights", "viridis"),
    }[kind]
    if scheme == "tableau10" and len(ways) > 10:
        scheme = "tableau20"
    names = [lag_in_words(lag) for lag in lags]
    whole = share.sum().abs()
    rows = [
        {
            "lags": name,
            "way": way,
            "log2": round(size, 3),
            "norm": in_words(size),
            "share": round(part, 6) if whole == whole else None,
            "order": number,
        }
        for number, (way, sizes, parts) in enumerate(
            zip(ways, log2.tolist(), share.tolist(), strict=True)
        )
        for name, size, part in zip(names, sizes, parts, strict=True)
        if size > -torch.inf
    ]
    x = alt.X("lags:O", sort=names, title="lag (steps)", axis=alt.Axis(labelAngle=0))
    color = alt.Color(
        "way:N",
        title=kind,
        sort=list(ways),
        scale=alt.Scale(scheme=scheme, domain=list(ways)),
    )
    tooltip = [
        alt.Tooltip("way:N", title=kind),
        alt.Tooltip("lags:O", title="lags (steps)"),
        alt.Tooltip("norm:N", title="norm"),
        alt.Tooltip("share:Q", title="share", format=".2%"),
    ]
    chart = alt.Chart(alt.Data(values=rows)).encode(x=x, color=color, tooltip=tooltip)
    sizes = chart.mark_line(point=True).encode(
        y=alt.Y("log2:Q", title="log2 norm", scale=alt.Scale(zero=False))
    )
    stacked = chart.mark_bar().encode(
        y=alt.Y("share:Q", title="signed share", axis=alt.Axis(format="%")), order="order:Q"
    )
    return alt.vconcat(
        sizes.properties(width=WIDTH - 70, height=200, title=title),
        stacked.properties(width=WIDTH - 70, height=150),
    )


def blocks(names: Sequence[tuple[str, str | None]], log2: Tensor, share: Tensor) -> Any:
    """Size of each block of the gradient: weights down, gates side by side."""
    alt = _altair()
    rows = [
        {"block": _block(name), "parameter": name[0], "log2": round(size, 4), "share": part}
        | {"norm": in_words(size), "text": f"{part:.1%}"}
        for name, size, part in zip(names, log2.tolist(), share.tolist(), strict=True)
        if size > -torch.inf
    ]
    order = [_block(name) for name in names]
    chart = alt.Chart(alt.Data(values=rows)).encode(
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
    dots = chart.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("parameter:N", legend=None, scale=alt.Scale(scheme="viridis")),
        shape=alt.Shape("parameter:N", legend=None),
    )
    labels = chart.mark_text(align="left", dx=8).encode(text="text:N")
    return (dots + labels).properties(
        width=WIDTH - 110,
        height={"step": 20},
        title={"text": "Blocks of the gradient", "subtitle": "labels: share of the whole"},
    )


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


def _rule(alt: Any, where: Mapping[str, int | float], axis: str, text: str, width: int) -> Any:
    """A dashed line with a label, vertical at a lag or horizontal at a size."""
    data = alt.Data(values=[{**where, "text": text}])
    name = next(iter(where))
    line = alt.Chart(data).mark_rule(strokeDash=[4, 4], color=ACCENT).encode(**{axis: f"{name}:Q"})
    if axis == "x":
        label = alt.Chart(data).mark_text(align="left", dx=5, dy=6, color=ACCENT, baseline="top")
        return line + label.encode(x=f"{name}:Q", y=alt.value(0), text="text:N")
    label = alt.Chart(data).mark_text(align="right", dy=-6, color=ACCENT)
    return line + label.encode(y=f"{name}:Q", x=alt.value(width), text="text:N")


def _slope(alt: Any, start: float, least: float, lags: int, half_life: float) -> Any:
    """The straight line that the half-life stands for, as far as the chart goes down."""
    end = min(lags, (start - least) * half_life) if half_life > 0 else lags
    ends = [{"lag": 0, "log2": start}, {"lag": end, "log2": start - end / half_life}]
    line = alt.Chart(alt.Data(values=ends)).mark_line(color=COUNTER, strokeDash=[2, 3])
    return line.encode(x="lag:Q", y="log2:Q")


def _block(name: tuple[str, str | None]) -> str:
    return name[0] if name[1] is None else f"{name[0]} · {name[1]}"


def _titled(title: str, parameter: str | None) -> dict[str, str]:
    return {"text": title, "subtitle": f"contributions to {parameter or 'the whole gradient'}"}


def _log2(value: float) -> float:
    return float(torch.log2(torch.tensor(value, dtype=torch.float64)))


def _altair() -> Any:
    import altair

    return altair
