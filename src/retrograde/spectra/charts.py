"""Spectra as charts: plain numbers in, Altair charts out, with the look of `retrograde.charts`."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from retrograde.charts import WIDTH, _altair, _nothing, _ramp, _table

DIRECTIONS = 12
"""Of more directions so many are drawn, evenly from the first to the last."""


def singular_values(lengths: Sequence[int], log2: Float[Tensor, "W n"]) -> Any:
    """log2 of the singular values over the length of the window, one line a direction."""
    title = "Singular values of the Jacobians' product"
    return _lines(title, "length of the window (steps)", "log2 singular value", lengths, log2)


def convergence(steps: Int[Tensor, "K"], exponents: Float[Tensor, "K n"]) -> Any:
    """Lyapunov exponents as they are known after so many steps, one line a direction."""
    title = "How the Lyapunov exponents settle"
    return _lines(title, "steps", "exponent so far (nats per step)", steps.tolist(), exponents)


def _lines(title: str, along: str, what: str, at: Sequence[int], values: Tensor) -> Any:
    alt = _altair()
    last = values.shape[1] - 1
    shown = sorted({round(i * last / max(1, DIRECTIONS - 1)) for i in range(DIRECTIONS)})
    shown = list(range(last + 1)) if last < DIRECTIONS else shown
    rows = [
        (place, direction + 1, round(value, 4))
        for direction in shown
        for place, value in zip(at, values[:, direction].tolist(), strict=True)
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
    lost = sum(not math.isfinite(value) for value in values[-1].tolist())
    text = f"{len(shown)} of {last + 1} directions"
    text += f"; {lost} of them are lost entirely (rank)" if lost else ""
    return alt.layer(
        chart.mark_line(),
        chart.mark_point(size=12, filled=True, opacity=1),
        width=WIDTH - 90,
        height=260,
        title={"text": title, "subtitle": text},
    )
