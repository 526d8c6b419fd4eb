"""Reach, horizon and rate of growth while a model trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from retrograde import charts
from retrograde._optional import optional

Curves = Mapping[str, Sequence[tuple[int, float]]]

MOST = 10
"""A horizon is drawn up to this multiple of the longest reach; beyond it the axis would be its."""


def chart(layers: Mapping[str, Curves], needs_lag: int | None) -> Any:
    """For each layer two panels, one above the other.

    Args:
        layers: for each, (block, value) of "reach", "horizon" and "rate".
        needs_lag: a lag to mark, None for none.
    """
    with optional("a chart", "report"):
        import altair as alt

    panels = []
    for name, curves in layers.items():
        longest = max([needs_lag or 1, *(value for _, value in curves["reach"])])
        rows = [
            {"block": at, "steps": round(value, 3), "what": what}
            for what in ("reach", "horizon")
            for at, value in curves[what]
            if value <= MOST * longest
        ]
        base = alt.Chart(_data(alt, rows)).encode(
            x=alt.X("block:Q", title=None),
            y=alt.Y("steps:Q", title="steps"),
            color=alt.Color("what:N", title=None).scale(
                domain=["reach", "horizon"], range=[charts.INK, charts.COUNTER]
            ),
            tooltip=["what:N", "block:Q", "steps:Q"],
        )
        above = [base.mark_line(), base.mark_point(size=14, filled=True, opacity=1)]
        if needs_lag is not None:
            rule = alt.Chart(_data(alt, [{"steps": needs_lag}]))
            above.append(rule.mark_rule(strokeDash=[4, 3]).encode(y="steps:Q"))
        rates = [{"block": at, "rate": round(value, 5)} for at, value in curves["rate"]]
        below = alt.Chart(_data(alt, rates)).encode(
            x=alt.X("block:Q", title="block (training step)"),
            y=alt.Y("rate:Q", title="log2 per step"),
            tooltip=["block:Q", "rate:Q"],
        )
        zero = alt.Chart(_data(alt, [{"rate": 0}])).mark_rule(strokeDash=[4, 3])
        size = {"width": charts.WIDTH - 90}
        panels.append(
            alt.vconcat(
                alt.layer(*above, **size, height=180, title=f"{name}: reach and horizon"),
                alt.layer(
                    below.mark_line(color=charts.INK),
                    zero.encode(y="rate:Q"),
                    **size,
                    height=90,
                    title="growth of the adjoint, per step back: below 0 it shrinks",
                ),
            ).resolve_scale(x="shared")
        )
    return alt.vconcat(*panels)


def _data(alt: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Data(values=rows)
