"""The explorer's pictures of one pass: for each a question, the chart, how to read it, the answer.

A view is computed when it is shown, and nothing that it does not show is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retrograde._words import half_life_in_words
from retrograde.decomposition import Flow

CROSSINGS = 6
"""Paths with this many crossings and more are drawn as one."""

PARAMETER = "weight_hh"


@dataclass(frozen=True)
class View:
    """One picture of a pass.

    Attributes:
        question: what it answers.
        draw: the chart.
        reading: how to read the chart, in a line.
        answer: the answer of this very pass, in Markdown.
    """

    question: str
    draw: Callable[[Flow], Any]
    reading: str
    answer: Callable[[Flow], str]


def _map_answer(flow: Flow) -> str:
    by_time = flow.by_time(PARAMETER)
    near, far = by_time.log2_mean_by_lag[0], by_time.log2_mean_by_lag[flow.steps // 2]
    return (
        f"A contribution over {flow.steps // 2} steps is on average **2^{float(far - near):.1f}** "
        "times one over none."
    )


def _lag_answer(flow: Flow) -> str:
    near = float(flow.by_lag(PARAMETER, bins=(0, 11) if flow.steps > 11 else (0,)).share[0])
    return (
        f"It **reaches {flow.reach} of {flow.steps - 1} steps**; {near:.1%} of the gradient comes "
        f"from lags 0-10. Half-life of the adjoint: {half_life_in_words(flow.half_life)}."
    )


VIEWS = {
    "Map": View(
        "Which step's use of the weights does each loss step draw on?",
        lambda flow: flow.by_time(PARAMETER).chart(),
        "A cell is the term C[t,k]: the loss enters at step t, the weights are used at step k. The "
        " diagonal is lag 0; to the left of it lies the past.",
        _map_answer,
    ),
    "Lag": View(
        "How far back does the gradient reach?",
        lambda flow: flow.chart(),
        "A straight line down is a factor per step. Reach is where the curve last is 1 % of lag 0.",
        _lag_answer,
    ),
}
