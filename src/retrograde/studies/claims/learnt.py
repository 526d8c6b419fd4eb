"""What is said of how far recurrent networks learn to look, from the study of the ladder."""

from collections.abc import Callable

from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.exploding import LEFT
from retrograde.studies.ladder import LAGS, RECURRENCES
from retrograde.studies.ladder_study import name_of
from retrograde.studies.outcomes import Results, shipped
from retrograde.studies.study import Trial

FEW, SOME, MANY = 10, 50, 1000
"""Lags that are asked about: about ten, clearly more, and a thousand."""

INSIDE = 100
"""The lag at which it is looked inside."""


def _from_ladder(read: Callable[[Results], dict[str, float]]) -> Callable[[range], Figures]:
    """Figures from the shipped results of the ladder; none if there are none yet."""

    def measure(_: range) -> Figures:
        results = shipped("ladder")
        return {} if results is None else read(results)

    return measure


def _solved(results: Results | None, row: str, name: str) -> dict[str, float]:
    """How many trials of a row solved the task, and how many there are; nothing without any."""
    outcome = None if results is None else results.outcome(row)
    if outcome is None:
        return {}
    return {name: outcome.solved, f"{name}_of": outcome.trials}


def _most(name: str) -> Callable[[Figures], bool]:
    """Whether more than half of the trials solved it."""
    return lambda f: f[name] > f[f"{name}_of"] / 2


def _few(name: str) -> Callable[[Figures], bool]:
    """Whether fewer than half of the trials solved it."""
    return lambda f: f[name] < f[f"{name}_of"] / 2


def _plain(results: Results) -> dict[str, float]:
    return {
        "near": FEW,
        "far": SOME,
        **_solved(results, name_of("rnn", FEW), "at_near"),
        **_solved(results, name_of("rnn", SOME), "at_far"),
        **_solved(results, name_of("rnn-orthogonal", SOME), "orthogonal"),
        **_middle(results, name_of("rnn", SOME), 0, "start"),
    }


def _thousand(results: Results) -> dict[str, float]:
    return {
        "many": MANY,
        **_solved(results, name_of("lstm-1997", MANY), "of_1997"),
        **_solved(results, name_of("lstm-1997-bias", MANY), "with_bias"),
        **_solved(results, name_of("lstm-2000", MANY), "of_2000"),
        **_solved(results, name_of("chrono", MANY), "chrono"),
        **_solved(results, name_of("rnn", MANY), "rnn"),
        **_solved(shipped("2c"), "2c-1000-1000", "published"),
        **_solved(shipped("2c"), "2c-1000-1000-unfed", "unfed"),
    }


def _needed(trial: Trial, look: int) -> float | None:
    """log2 of the contribution at the lag of the symbol over that at lag 0; None where it is 0."""
    found: float | None = trial.figures["inside"].get("needed", [None])[look]
    return found


def _middle(results: Results, row: str, look: int, name: str) -> dict[str, float]:
    """The median of that over the trials of a row; nothing without any."""
    seen = [_needed(trial, look) for trial in results.trials(row)]
    known = sorted(value for value in seen if value is not None)
    return {name: known[len(known) // 2]} if known else {}


def _reached(trial: Trial) -> bool:
    """Whether a hundredth was there, at least, before the training."""
    value = _needed(trial, 0)
    return value is not None and value > LEFT


def _learning(results: Results) -> dict[str, float]:
    found: dict[str, float] = {"lag": INSIDE}
    for name, recurrence in (("default", "lstm-2000"), ("chrono", "chrono")):
        row = name_of(recurrence, INSIDE)
        found |= _middle(results, row, 0, f"{name}_before")
        found |= _middle(results, row, -1, f"{name}_after")
    return found


def _far(results: Results) -> dict[str, float]:
    trials = [
        trial
        for each in RECURRENCES.values()
        for lag in LAGS
        if each.clip and lag >= SOME
        for trial in results.trials(name_of(each.name, lag))
    ]
    found: dict[str, float] = {"some": SOME}
    for name, reached in (("seen", True), ("unseen", False)):
        some = [trial for trial in trials if _reached(trial) == reached]
        if some:
            found[name] = len(some)
            found[f"{name}_solved"] = sum(trial.solved for trial in some) / len(some)
    return found


CLAIMS = (
    Claim(
        "far-is-hard-to-learn",
        "001",
        "导致模型难以学到远距离的依赖关系",
        "That the near part dominates makes it hard for the model to learn distant dependencies.",
        _from_ladder(_far),
        (
            Statement(
                "networks trained on a symbol {some:.0f} and more steps back: where the gradient "
                "reaches it before the training ({seen:.0f} trials), {seen_solved:.0%} learn it, "
                "elsewhere ({unseen:.0f}) {unseen_solved:.0%}",
                lambda f: f["seen_solved"] > f["unseen_solved"] + 0.2,
            ),
            Statement(
                "where it does not reach, none learns it (measured: {unseen_solved:.0%})",
                lambda f: f["unseen_solved"] == 0,
            ),
        ),
        "Reaching means that the contribution at the lag of the symbol is a hundredth of that at "
        "lag 0 or more, before the training. A network out of reach may learn all the same: noise "
        "moves its weights until the first symbol happens to decide between two stable states, and "
        "then the gradient reaches. That is luck, and not to be relied on.",
        seeds=1,
        reads=("ladder",),
    ),
    Claim(
        "rnn-about-ten-steps",
        "002",
        "長期依存の学習ができない(10ステップ程度が限界)",
        "RNNs cannot learn long dependencies: about ten steps is the limit.",
        _from_ladder(_plain),
        (
            Statement(
                "a plain RNN learns a symbol {near:.0f} steps back ({at_near:.0f} of "
                "{at_near_of:.0f} trials)",
                _most("at_near"),
            ),
            Statement(
                "and not {far:.0f} steps back (measured: {at_far:.0f} of {at_far_of:.0f})",
                _few("at_far"),
            ),
            Statement(
                "nor does one with orthogonal weights (measured: {orthogonal:.0f} of "
                "{orthogonal_of:.0f})",
                _few("orthogonal"),
            ),
        ),
        "Ten steps are what its gradient reaches when the training begins: {far:.0f} steps back "
        "there is 2^{start:.0f} of the contribution at lag 0 (median). Where it learns more, its "
        "weights came upon a latch on the way.",
        seeds=1,
        reads=("ladder",),
    ),
    Claim(
        "lstm-a-thousand-steps",
        "002",
        "1000ステップ以上記憶可能",
        "LSTMs can remember over a thousand steps and more.",
        _from_ladder(_thousand),
        (
            Statement(
                "the LSTM of 1997, trained as in its paper (experiment 2c), solves a task of lag "
                "{many:.0f} ({published:.0f} of {published_of:.0f} trials)",
                _most("published"),
            ),
            Statement(
                "it does where its hidden layer sees the inputs alone ({unfed:.0f} of "
                "{unfed_of:.0f})",
                _most("unfed"),
            ),
            Statement(
                "the LSTM of 1997, trained with Adam, learns a symbol {many:.0f} steps back with "
                "input biases as in its paper (measured: {with_bias:.0f} of {with_bias_of:.0f} "
                "trials)",
                _most("with_bias"),
            ),
            Statement(
                "it does with torch's biases (measured: {of_1997:.0f} of {of_1997_of:.0f})",
                _most("of_1997"),
            ),
            Statement(
                "torch's LSTM does by default (measured: {of_2000:.0f} of {of_2000_of:.0f})",
                _most("of_2000"),
            ),
            Statement(
                "it does with chrono initialisation (measured: {chrono:.0f} of {chrono_of:.0f})",
                _most("chrono"),
            ),
        ),
        "An LSTM can, if its carousel stands open when the training begins. (A plain RNN: "
        "{rnn:.0f} of {rnn_of:.0f}.)",
        seeds=1,
        reads=("ladder", "2c"),
    ),
    Claim(
        "learning-neither-explodes-nor-vanishes",
        "002",
        "学習によって誤差が発散・消失しない",
        "With an LSTM the error neither diverges nor vanishes through learning.",
        _from_ladder(_learning),
        (
            Statement(
                "torch's LSTM, a symbol {lag:.0f} steps back: the contribution at its lag is a "
                "hundredth of that at lag 0 or more before the training (median: "
                "2^{default_before:.0f})",
                lambda f: f["default_before"] > LEFT,
            ),
            Statement("and after it (2^{default_after:.0f})", lambda f: f["default_after"] > LEFT),
            Statement(
                "with chrono initialisation it is so, before and after, and does not grow "
                "(2^{chrono_before:.1f}, 2^{chrono_after:.1f})",
                lambda f: (
                    LEFT < min(f["chrono_before"], f["chrono_after"])
                    and max(f["chrono_before"], f["chrono_after"]) < -LEFT
                ),
            ),
        ),
        "Not by architecture, but where the gates were set for it.",
        seeds=1,
        reads=("ladder",),
    ),
)
