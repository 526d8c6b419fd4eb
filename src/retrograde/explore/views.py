"""The explorer's pictures of one pass: for each a question, the chart, how to read it, the answer.

A view is computed when it is shown, and nothing that it does not show is.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from retrograde._words import half_life_in_words, power_of_two, share
from retrograde.decomposition import Flow
from retrograde.explore.lesson import Setting, flow_of, recorded
from retrograde.spectra import spectrum
from retrograde.spectra.exponents import Exponents
from retrograde.truncation.horizon import DELTA

CROSSINGS = 5
"""Paths with this many crossings and more are drawn as one."""

NEAR = 9
"""Lags below this are called near."""

PARAMETER = "weight_hh"
"""The weights whose gradient is shown."""


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
    draw: Callable[[Setting], Any]
    reading: str
    answer: Callable[[Setting], str]


def _map_in_words(setting: Setting) -> str:
    flow, lag = flow_of(setting), setting.steps // 2
    sizes = flow.by_time(PARAMETER).log2_mean_by_lag
    fell = float(sizes[lag] - sizes[0])
    words = "as large as" if abs(fell) < 0.05 else f"{power_of_two(fell)} times"
    return f"A contribution over {lag} steps is on average **{words}** one at lag 0."


def _reach_in_words(setting: Setting) -> str:
    flow = flow_of(setting)
    near = flow.by_lag().select(lag=range(NEAR))
    return (
        f"The gradient **reaches {flow.reach} of {flow.steps - 1} steps** back. Lags 0 to "
        f"{near.labels[-1].stop - 1} are {share(float(near.share.sum()))} of it. Half-life of the "
        f"adjoint: {half_life_in_words(flow.half_life)}."
    )


def _routes_in_words(setting: Setting) -> str:
    parts = flow_of(setting).by_route(PARAMETER).sum("lag")
    shares = dict(zip(parts.labels, parts.share.tolist(), strict=True))
    if any(map(math.isnan, shares.values())):
        return "The gradient is zero, so there are no parts."
    listed = ", ".join(f"`{name}` {share(part)}" for name, part in shares.items())
    return f"Shares of the whole gradient, by the last hop: {listed}."


def _crossings(flow: Flow) -> Any:
    return flow.by_crossing(PARAMETER, max_crossings=CROSSINGS)


def _crossings_in_words(setting: Setting) -> str:
    parts = _crossings(flow_of(setting))
    whole, far = parts.share.sum(1), parts.log2[:, -1]
    lags = parts.lags[-1]
    if not bool(far.isfinite().any()):
        return f"Over lags {lags.start} to {lags.stop - 1} nothing is left."
    most = int(far.argmax())
    count = f"{most} or more" if most == CROSSINGS else str(most)
    return (
        f"Paths without a crossing are **{share(float(whole[0]))}** of the gradient. Over lags "
        f"{lags.start} to {lags.stop - 1} the largest part has **{count} crossings**."
    )


@lru_cache(maxsize=8)
def _exponents(setting: Setting) -> Exponents:
    with warnings.catch_warnings():  # that it has not settled is seen in the chart
        warnings.simplefilter("ignore", UserWarning)
        return spectrum(recorded(setting)).exponents


def _exponents_in_words(setting: Setting) -> str:
    leading = _exponents(setting).leading
    words = "grows" if leading > 0 else "shrinks"
    return (
        f"In the direction that preserves it best, an adjoint **{words} by a factor of "
        f"{math.exp(leading):.3g} per step** ({leading:.3g} nats per step)."
    )


def _window_in_words(setting: Setting) -> str:
    horizon = flow_of(setting).horizon()
    window = horizon.window(DELTA)
    if window is None:
        return f"**No**: at every K, more than {share(DELTA)} of the gradient is lost."
    return (
        f"The shortest window that loses at most {share(DELTA)} of the gradient looks back over "
        f"**{window} of {setting.steps} steps**. That holds for these weights: a network that has "
        "learnt to remember needs a longer window."
    )


VIEWS = {
    "map": View(
        "Which uses of the weights does each loss step learn from?",
        lambda setting: flow_of(setting).by_time(PARAMETER).chart(),
        "Each cell is one term C[t,k]: the loss enters at step t, the weights are used at step k. "
        "The diagonal is lag 0, and the past lies to its left.",
        _map_in_words,
    ),
    "lags": View(
        "How far back does the gradient reach?",
        lambda setting: flow_of(setting).chart(),
        "A straight line is a constant factor per step; the dotted one is the half-life of the "
        "adjoint. "
        "Reach is the last lag above 1 % of lag 0.",
        _reach_in_words,
    ),
    "routes": View(
        "Which way does it come back?",
        lambda setting: flow_of(setting).by_route(PARAMETER).chart(),
        "Top: the size of each part. Bottom: its signed share of the whole gradient. A part is "
        "named after the route of its last hop.",
        _routes_in_words,
    ),
    "crossings": View(
        "How often did it cross recurrent weights?",
        lambda setting: _crossings(flow_of(setting)).chart(),
        "No crossings: the carousel alone. Where the lines of many crossings rise, the gradient "
        "explodes through the gates.",
        _crossings_in_words,
    ),
    "spectrum": View(
        "What would become of any other gradient?",
        lambda setting: _exponents(setting).chart(),
        "Each line is one direction of the state: above 0 an adjoint grows on its way back, "
        "below 0 it shrinks.",
        _exponents_in_words,
    ),
    "window": View(
        "Is my window long enough?",
        lambda setting: flow_of(setting).horizon().chart(DELTA),
        "What truncated back-propagation over K steps loses, as a fraction of the gradient's norm.",
        _window_in_words,
    ),
}
"""The views by name, in the order in which they are told."""
