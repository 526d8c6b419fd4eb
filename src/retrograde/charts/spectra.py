"""What the Jacobians of a pass do to directions of the state."""

import math
from collections.abc import Sequence
from typing import Any

from retrograde.charts.drawing import WIDTH, altair, counting, nothing, ramp, table, titled
from retrograde.charts.figure import figure

DIRECTIONS = 12
"""Maximum number of directions drawn, spaced evenly from the first to the last."""


def directions(size: int) -> list[int]:
    """The directions that are drawn: all `size` of them, or `DIRECTIONS` spaced evenly."""
    if size <= DIRECTIONS:
        return list(range(size))
    return [round(i * (size - 1) / (DIRECTIONS - 1)) for i in range(DIRECTIONS)]


@figure
def singular_values(
    lengths: Sequence[int], shown: Sequence[int], size: int, log2: Sequence[Sequence[float]]
) -> Any:
    """log2 of the singular values over the length of the window.

    `shown` are the directions drawn, of `size`; `log2` has a column for each.
    """
    title = "Singular values of the Jacobians' product"
    along, what = "length of the window (steps)", "log2 singular value"
    read = "Above 0 a gradient of that direction grows over the window, below 0 it shrinks."
    return _lines(title, read, along, what, lengths, shown, size, log2)


@figure
def exponents(
    steps: Sequence[int], shown: Sequence[int], size: int, each: Sequence[Sequence[float]]
) -> Any:
    """Lyapunov exponents as estimated from the first steps, for each number of steps.

    `shown` are the directions drawn, of `size`; `each` has a column for each.
    """
    title = "How the Lyapunov exponents settle"
    along, what = "steps seen", "exponent so far (nats per step)"
    read = "Where a line settles below 0, a gradient of that direction vanishes; above 0 it grows."
    return _lines(title, read, along, what, steps, shown, size, each)


def _lines(
    title: str,
    read: str,
    along: str,
    what: str,
    at: Sequence[int],
    shown: Sequence[int],
    size: int,
    values: Sequence[Sequence[float]],
) -> Any:
    alt = altair()
    rows = [
        (place, direction + 1, round(value, 4))
        for place, row in zip(at, values, strict=True)
        for direction, value in zip(shown, row, strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return nothing(alt, title)
    kinds = {"at": "number", "direction": "number", "value": "number"}
    names = [direction + 1 for direction in shown]
    chart = alt.Chart(table(alt, kinds, rows)).encode(
        x=alt.X("at:Q", title=along, scale=alt.Scale(nice=False), axis=counting(alt)),
        y=alt.Y("value:Q", title=what, scale=alt.Scale(zero=False)),
        color=alt.Color(
            "direction:O", scale=alt.Scale(domain=names, range=ramp(len(names))), title="direction"
        ),
        tooltip=[
            alt.Tooltip("direction:O"),
            alt.Tooltip("at:Q", title=along),
            alt.Tooltip("value:Q", title=what),
        ],
    )
    lost = sum(not math.isfinite(value) for value in values[-1])
    text = f"{len(shown)} of {size} directions"
    text += f"; {lost} of these are lost entirely (rank)." if lost else "."
    return alt.layer(
        chart.mark_line(),
        chart.mark_point(size=12, filled=True, opacity=1),
        width=WIDTH - 90,
        height=260,
        title=titled(title, text, read),
    )
