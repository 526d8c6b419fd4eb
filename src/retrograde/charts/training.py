"""Reach, horizon and rate of growth while a model trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from retrograde.charts.drawing import (
    ACCENT,
    COUNTER,
    INK,
    WIDTH,
    altair,
    counting,
    nothing,
    rule,
    table,
    titled,
)
from retrograde.charts.figure import figure

Curve = Sequence[tuple[int, float]]

MOST = 10
"""A horizon is drawn up to this multiple of the longest reach; the axis would be all its own."""


@figure
def training_run(layers: Mapping[str, Mapping[str, Curve]], needs_lag: int | None) -> Any:
    """Two panels for each layer: reach and horizon, and below them the rate of growth.

    Args:
        layers: for each, (block, value) of "reach", "horizon" and "rate".
        needs_lag: a lag to mark, None for none.
    """
    alt = altair()
    panels = []
    for name, curves in layers.items():
        if curves["reach"]:
            panels.append(_steps(alt, name, curves, needs_lag))
        if curves["rate"]:
            panels.append(_rate(alt, name, curves["rate"]))
    if not panels:
        return nothing(alt, "Reach and horizon over training")
    return alt.vconcat(*panels).resolve_scale(x="shared", color="independent")


def _steps(alt: Any, name: str, curves: Mapping[str, Curve], needs_lag: int | None) -> Any:
    longest = max(needs_lag or 1, *(value for _, value in curves["reach"]), 1)
    rows = [
        (what, at, float(f"{value:.4g}"))
        for what in ("reach", "horizon")
        for at, value in curves[what]
        if value <= MOST * longest
    ]
    chart = alt.Chart(table(alt, {"what": "string", "block": "number", "lag": "number"}, rows))
    scale = alt.Scale(domain=["reach", "horizon"], range=[INK, COUNTER])
    drawn = chart.encode(
        x=alt.X("block:Q", title="block", scale=alt.Scale(nice=False), axis=counting(alt)),
        y=alt.Y("lag:Q", title="lag (steps)", axis=counting(alt)),
        color=alt.Color("what:N", title=None, scale=scale),
        tooltip=[alt.Tooltip("what:N"), alt.Tooltip("block:Q"), alt.Tooltip("lag:Q")],
    )
    layers = [drawn.mark_line(), drawn.mark_point(size=14, filled=True, opacity=1)]
    if needs_lag is not None:
        layers += rule(alt, {"lag": needs_lag}, "y", f"needed: {needs_lag} steps")
    return alt.layer(
        *layers,
        width=WIDTH - 90,
        height=180,
        title=titled(
            f"{name}: reach and horizon over training",
            "Horizon: the lag at which 1 % of the adjoint is left, by its rate. What lies below a "
            "lag that is needed does not see so far.",
        ),
    )


def _rate(alt: Any, name: str, rate: Curve) -> Any:
    rows = [(at, round(value, 5)) for at, value in rate]
    chart = alt.Chart(table(alt, {"block": "number", "rate": "number"}, rows)).encode(
        x=alt.X("block:Q", title="block", scale=alt.Scale(nice=False), axis=counting(alt)),
        y=alt.Y("rate:Q", title="log2 per step"),
        tooltip=[alt.Tooltip("block:Q"), alt.Tooltip("rate:Q")],
    )
    zero = alt.Chart(table(alt, {"rate": "number"}, [(0,)])).mark_rule(
        strokeDash=[4, 4], color=ACCENT
    )
    return alt.layer(
        chart.mark_line(color=INK),
        zero.encode(y=alt.Y("rate:Q")),
        width=WIDTH - 90,
        height=90,
        title=titled(f"{name}: growth of the adjoint", "Below the dashed 0 it shrinks on its way."),
    )
