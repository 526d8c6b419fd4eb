"""What is said of how far recurrent networks learn to look, from the study of the ladder."""

from collections.abc import Callable, Iterator

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


def _solved(results: Results, recurrence: str, lag: int) -> tuple[int, int]:
    trials = results.trials(name_of(recurrence, lag))
    return sum(trial.solved for trial in trials), len(trials)


def _plain(results: Results) -> dict[str, float]:
    found: dict[str, float] = {"few": FEW, "some": SOME}
    found["few_solved"], found["trials"] = _solved(results, "rnn", FEW)
    found["some_solved"], _ = _solved(results, "rnn", SOME)
    found["orthogonal"], _ = _solved(results, "rnn-orthogonal", SOME)
    return found


def _thousand(results: Results) -> dict[str, float]:
    found: dict[str, float] = {"many": MANY}
    for name, recurrence in (
        ("of_1997", "lstm-1997"),
        ("of_1997_bias", "lstm-1997-bias"),
        ("of_2000", "lstm-2000"),
        ("chrono", "chrono"),
        ("rnn", "rnn"),
    ):
        found[name], found["trials"] = _solved(results, recurrence, MANY)
    return found


def _needed(trial: Trial, look: int) -> float:
    """log2 of the contribution at the lag of the symbol over that at lag 0; -inf where it is 0."""
    value = trial.figures["inside"].get("needed", [None])[look]
    return float("-inf") if value is None else float(value)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _learning(results: Results) -> dict[str, float]:
    found: dict[str, float] = {"lag": INSIDE}
    for name, recurrence in (("default", "lstm-2000"), ("chrono", "chrono")):
        trials = results.trials(name_of(recurrence, INSIDE))
        found[f"{name}_before"] = _middle([_needed(trial, 0) for trial in trials])
        found[f"{name}_after"] = _middle([_needed(trial, -1) for trial in trials])
    return found


def _far(results: Results) -> dict[str, float]:
    def trials() -> Iterator[Trial]:
        for each in RECURRENCES.values():
            for lag in LAGS:
                if each.clip and lag >= SOME:
                    yield from results.trials(name_of(each.name, lag))

    seen = [trial for trial in trials() if _needed(trial, 0) > LEFT]
    unseen = [trial for trial in trials() if _needed(trial, 0) <= LEFT]
    return {
        "some": SOME,
        "seen": len(seen),
        "unseen": len(unseen),
        "seen_solved": sum(trial.solved for trial in seen) / max(1, len(seen)),
        "unseen_solved": sum(trial.solved for trial in unseen) / max(1, len(unseen)),
    }


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
        "lag 0 or more. The reach at the start tells much, and not all: weights move in "
        "training, and a network may come upon a latch by chance.",
        seeds=1,
    ),
    Claim(
        "rnn-about-ten-steps",
        "002",
        "長期依存の学習ができない(10ステップ程度が限界)",
        "RNNs cannot learn long dependencies: about ten steps is the limit.",
        _from_ladder(_plain),
        (
            Statement(
                "a plain RNN learns a symbol {few:.0f} steps back ({few_solved:.0f} of "
                "{trials:.0f} trials)",
                lambda f: f["few_solved"] > 5,
            ),
            Statement(
                "and not {some:.0f} steps back (measured: {some_solved:.0f} of {trials:.0f})",
                lambda f: f["some_solved"] < 5,
            ),
            Statement(
                "nor does one with orthogonal weights (measured: {orthogonal:.0f} of {trials:.0f})",
                lambda f: f["orthogonal"] < 5,
            ),
        ),
        "",
        seeds=1,
    ),
    Claim(
        "lstm-a-thousand-steps",
        "002",
        "1000ステップ以上記憶可能",
        "LSTMs can remember over a thousand steps and more.",
        _from_ladder(_thousand),
        (
            Statement(
                "the LSTM of 1997 learns a symbol {many:.0f} steps back with the input biases of "
                "its paper (measured: {of_1997_bias:.0f} of {trials:.0f} trials)",
                lambda f: f["of_1997_bias"] > 5,
            ),
            Statement("it does without them (measured: {of_1997:.0f})", lambda f: f["of_1997"] > 5),
            Statement(
                "torch's LSTM does by default (measured: {of_2000:.0f})",
                lambda f: f["of_2000"] > 5,
            ),
            Statement(
                "it does with chrono initialisation (measured: {chrono:.0f})",
                lambda f: f["chrono"] > 5,
            ),
        ),
        "An LSTM can, if its carousel stands open when the training begins. (A plain RNN: "
        "{rnn:.0f} of {trials:.0f}.)",
        seeds=1,
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
        "Not by architecture, but where gates were set for it. Learning does not mend a gradient "
        "that vanishes: it has nothing to go by.",
        seeds=1,
    ),
)
