"""The ladder as a study: its rows, and what its results say of the gradient's reach."""

from collections.abc import Sequence
from typing import Any

from retrograde import charts
from retrograde.studies import looks
from retrograde.studies.ladder import BUDGET, LAGS, RECURRENCES, UNCLIPPED, Ladder, Recurrence
from retrograde.studies.looks import PREDICTORS, Start
from retrograde.studies.outcomes import Results
from retrograde.studies.study import Row, Study, Table
from retrograde.tasks import FirstSymbol

TRIALS = 10

BESIDE = {
    "at lag 20": (20, ("rnn", "rnn-orthogonal", "lstm-2000", "lstm-2000-bias")),
    "at lag 100": (100, ("rnn", "lstm-1997", "lstm-1997-bias", "chrono")),
    "at lag 1000": (1000, ("rnn", "lstm-2000-bias", "lstm-1997-bias", "chrono")),
    "clipped and not, at lag 100": (
        100,
        ("rnn-orthogonal", "rnn-orthogonal-unclipped", "rnn-identity", "rnn-identity-unclipped"),
    ),
    "default and chrono, at lag 100": (
        100,
        ("lstm-2000", "lstm-2000-bias", "chrono", "chrono-unclipped"),
    ),
}
"""Networks that are shown side by side, by where."""


def name_of(recurrence: str, lag: int) -> str:
    """The name of a row."""
    return f"{recurrence}-{lag}"


def lags_of(recurrence: Recurrence) -> tuple[int, ...]:
    """The lags at which a recurrence is tried."""
    return LAGS if recurrence.clip else UNCLIPPED


def rows() -> tuple[Row, ...]:
    """Every recurrence at every lag of its."""
    return tuple(
        Row(
            name_of(each.name, lag),
            f"{each.title}, lag {lag}",
            Ladder(each, lag),
            TRIALS,
            BUDGET,
        )
        for each in RECURRENCES.values()
        for lag in lags_of(each)
    )


def table(results: Results) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """How many trials of each recurrence solved the task at each lag, of those that were run."""
    run = {part.row for part in results.parts}
    lags = [lag for lag in LAGS if any(name_of(name, lag) in run for name in RECURRENCES)]
    rows = [
        [each.title, *(_solved(results, name_of(each.name, lag)) for lag in lags)]
        for each in RECURRENCES.values()
    ]
    titles = ["recurrence", *(f"lag {lag}" for lag in lags)]
    return titles, [row for row in rows if any(row[1:])]


def _solved(results: Results, row: str) -> str:
    """ "9 of 10"; nothing where it was not run."""
    outcome = results.outcome(row)
    return "" if outcome is None else f"{outcome.solved} of {outcome.trials}"


def starts(results: Results) -> list[Start]:
    """All trials of recurrences that are clipped, with what was seen at their start."""
    return [
        looks.start(row, lag, trial)
        for each in RECURRENCES.values()
        if each.clip
        for lag in LAGS
        for row in [name_of(each.name, lag)]
        for trial in results.trials(row)
    ]


def foretelling(results: Results) -> dict[str, Table]:
    """Rank correlations of what is seen before training, over all trials and lag by lag."""
    found, predictors = starts(results), list(PREDICTORS)
    return {
        "Rank correlation of what is seen before training": looks.foretelling(found, predictors),
        "The same with success, lag by lag": looks.foretelling_each(found, predictors, "lag"),
    }


def drawn(results: Results) -> dict[str, Any]:
    """Success against lag, and networks side by side while they train."""
    found = {"success against lag": success(results)}
    for where, (lag, names) in BESIDE.items():
        if any(results.trials(name_of(name, lag)) for name in names):
            found[f"inside, {where}"] = inside(results, lag, names, where)
    return found


def success(results: Results) -> Any:
    """An Altair chart of success against lag."""
    shown = []
    for each in RECURRENCES.values():
        outcomes = [(lag, results.outcome(name_of(each.name, lag))) for lag in LAGS]
        run = [(lag, outcome.share) for lag, outcome in outcomes if outcome is not None]
        if each.clip and run:
            shown.append((each.title, run))
    return charts.success_by_lag(
        [title for title, _ in shown],
        [[lag for lag, _ in run] for _, run in shown],
        [[share for _, (share, _) in run] for _, run in shown],
        [[low for _, (_, (low, _)) in run] for _, run in shown],
        [[high for _, (_, (_, high)) in run] for _, run in shown],
        f"One symbol is to be told after so many steps of distractors, within {BUDGET:,} "
        f"sequences; 16 units, Adam, {TRIALS} seeds.",
    )


def inside(results: Results, lag: int, names: Sequence[str], where: str) -> Any:
    """An Altair chart of the first seed of several recurrences while they train.

    Args:
        results: of the ladder.
        lag: of the task.
        names: of the recurrences.
        where: for the title.
    """
    trials = {RECURRENCES[name].title: results.trials(name_of(name, lag)) for name in names}
    return looks.inside({title: of[0] for title, of in trials.items() if of}, where, lag)


STUDY = Study(
    "ladder",
    "How far back does each recurrence learn to look?",
    "after Hochreiter and Schmidhuber (1997), experiment 2c",
    f"at least 99 % of {FirstSymbol.judged_on} fresh sequences are right, within "
    f"{BUDGET:,} training sequences",
    rows(),
    table=table,
    notes=lambda results: looks.WORDS,
    tables=foretelling,
    charts=drawn,
)
