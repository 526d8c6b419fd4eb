"""The ladder as a study: its rows, and what its results say of the gradient's reach."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import charts
from retrograde.charts.studies import Quantity
from retrograde.studies.ladder import BUDGET, LAGS, RECURRENCES, UNCLIPPED, Ladder, Recurrence
from retrograde.studies.outcomes import CONFIDENCE, Results
from retrograde.studies.study import Row, Study, Trial
from retrograde.tasks import FirstSymbol

Rows = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

TRIALS = 10

RESAMPLES = 1000
"""Of the trials, for the interval of a rank correlation."""

FEW = 20
"""Of fewer trials no correlation is told."""

PREDICTORS = {
    "reach": "the reach",
    "horizon": "the horizon",
    "needed": "the contribution at the lag of the symbol, over that at lag 0",
}
"""What is known before the first update, by its name among a trial's figures."""

BESIDE = {
    "at lag 20": (20, ("rnn", "rnn-orthogonal", "lstm-2000", "lstm-2000-bias")),
    "at lag 100": (100, ("rnn", "lstm-1997", "lstm-1997-bias", "chrono")),
    "at lag 1000": (1000, ("rnn", "lstm-2000-bias", "lstm-1997-bias", "chrono")),
    "clipped and not, at lag 100": (
        100,
        ("rnn-orthogonal", "rnn-orthogonal-unclipped", "rnn-identity", "rnn-identity-unclipped"),
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


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over trials.

    Attributes:
        value: from -1 to 1; NaN where all trials are alike in one of the two.
        low, high: its interval, from resampled trials.
        trials: how many there are.
    """

    value: float
    low: float
    high: float
    trials: int

    @property
    def told(self) -> bool:
        """Whether there is one, and of enough trials."""
        return self.trials >= FEW and not math.isnan(self.value)

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"none can be told ({self.trials} trials)"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}; {self.trials} trials)"


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Spearman's rank correlation, ties with their mean rank, and its interval.

    The interval is that of resampled pairs, drawn with a fixed seed.

    Example:
        >>> from retrograde.studies.ladder_study import spearman
        >>> print(spearman([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]))
        0.83 (0.20 to 1.00; 6 trials)
    """
    value, low, high = math.nan, math.nan, math.nan
    if len(x):
        a, b = (np.unique(values, return_inverse=True)[1] for values in (x, y))
        value = float(_correlations(a[None], b[None])[0])
        some = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
        found = _correlations(a[some], b[some])
        tail = (1 - CONFIDENCE) / 2
        if np.isfinite(found).any():
            low, high = map(float, np.nanquantile(found, (tail, 1 - tail)))
    return Correlation(value, low, high, len(x))


def _correlations(a: Places, b: Places) -> Rows:
    """Pearson's correlation of the ranks, of each row; NaN where a row is all alike."""
    of_a, of_b = (ranks(rows) - (rows.shape[1] + 1) / 2 for rows in (a, b))
    sizes = np.sqrt((of_a**2).sum(1) * (of_b**2).sum(1))
    found: Rows = np.full(len(sizes), np.nan)
    np.divide((of_a * of_b).sum(1), sizes, out=found, where=sizes > 0)
    return found


def ranks(rows: Places) -> Rows:
    """Ranks from 1 within each row; values that are alike share their mean rank.

    Args:
        rows: whole numbers from 0 in the order of the values, as places among their distinct ones.
    """
    known = int(rows.max()) + 1
    own = rows + known * np.arange(len(rows))[:, None]
    counts = np.bincount(own.ravel(), minlength=known * len(rows)).reshape(-1, known)
    of_values = np.cumsum(counts, 1) - (counts - 1) / 2
    found: Rows = np.take_along_axis(of_values, rows, 1)
    return found


@dataclass(frozen=True)
class Start:
    """A trial, and what was seen before its first update.

    Attributes:
        group: its recurrence and lag.
        lag: of its task.
        seen: the predictors.
        trial: what became of it.
    """

    group: str
    lag: int
    seen: Mapping[str, float]
    trial: Trial


def starts(results: Results) -> list[Start]:
    """All trials of recurrences that are clipped, with what was seen at their start."""
    return [
        Start(row, lag, {name: _first(trial, name) for name in PREDICTORS}, trial)
        for each in RECURRENCES.values()
        if each.clip
        for lag in LAGS
        for row in [name_of(each.name, lag)]
        for trial in results.trials(row)
    ]


def _first(trial: Trial, name: str) -> float:
    """A number of the first look.

    Where there is no horizon, the adjoint does not shrink; where a contribution has no logarithm,
    it is 0.
    """
    value = trial.figures["inside"].get(name, [None])[0]
    if value is None:
        return math.inf if name == "horizon" else -math.inf
    return float(value)


def foretold(
    predictor: str, some: Sequence[Start], solved: bool, by: Callable[[Start], Any] | None = None
) -> Correlation:
    """The rank correlation of what was seen before training with what became of the trials.

    Args:
        predictor: what was seen.
        some: the trials.
        solved: whether success is to be told; otherwise the sequences it took, where there was one.
        by: by which trials are compared among each other alone: ranks are taken within each group
            of trials that it tells apart, where these did not all end alike, and are pooled.
    """
    x, y = list[float](), list[float]()
    taking_part = [s for s in some if solved or s.trial.solved]
    of_trial = {id(s): by(s) if by else 0 for s in taking_part}
    for group in dict.fromkeys(of_trial.values()):
        own = [s for s in taking_part if of_trial[id(s)] == group]
        outcome = [float(s.trial.solved if solved else s.trial.sequences) for s in own]
        if len(set(outcome)) > 1:
            for values, into in (([s.seen[predictor] for s in own], x), (outcome, y)):
                places = np.unique(values, return_inverse=True)[1]
                into += (ranks(places[None])[0] / (len(values) + 1)).tolist()
    return spearman(x, y)


AMONG: Mapping[str, Callable[[Start], Any] | None] = {
    "all trials": None,
    "trials of the same lag": lambda start: start.lag,
    "seeds of the same recurrence and lag": lambda start: start.group,
}
"""Which trials are compared with each other. A longer lag is harder, and lets a reach be longer."""


def notes(results: Results) -> list[str]:
    """Does what is seen before training tell whether, and how soon, the task will be solved?

    Nothing is said of fewer than 20 trials.
    """
    found, said = starts(results), []
    for name, words in PREDICTORS.items():
        for among, by in AMONG.items():
            success, time = (foretold(name, found, solved, by) for solved in (True, False))
            told = {"success": success, "the sequences that success took": time}
            kept = [f"{what} {each}" for what, each in told.items() if each.told]
            if kept:
                said.append(
                    f"Rank correlation of {words} before training, among {among}, with "
                    f"{' and with '.join(kept)}."
                )
    for name, words in PREDICTORS.items():
        by_lag = {lag: foretold(name, [s for s in found if s.lag == lag], True) for lag in LAGS}
        kept = [f"{lag}: {each}" for lag, each in by_lag.items() if each.told]
        if kept:
            said.append(f"Of {words} with success, lag by lag: {'; '.join(kept)}.")
    return said


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
    first = {title: found[0] for title, found in trials.items() if found}

    def curves(name: str, part: int | None = None) -> dict[str, list[tuple[float, float]]]:
        return {title: over_training(trial, name, part) for title, trial in first.items()}

    constants = curves("time_constants", 1)
    quantities = [
        Quantity("reach (steps)", curves("reach"), needed=lag),
        Quantity("log2 at the lag", curves("needed")),
        Quantity("share of carousel", curves("crossings", 0)),
        Quantity("time constant (steps)", constants, log=True, needed=lag),
    ]
    return charts.inside_training(
        list(first),
        {title: trial.solved for title, trial in first.items()},
        quantities,
        f"Inside while they train, {where}",
    )


def over_training(trial: Trial, name: str, part: int | None = None) -> list[tuple[float, float]]:
    """(update, value) of a figure, or of a part of it, where there is one."""
    seen = trial.figures["inside"]
    pairs = zip(seen["updates"], seen.get(name, [None] * len(seen["updates"])), strict=True)
    values = [(at, value if part is None or value is None else value[part]) for at, value in pairs]
    return [(float(at), float(value)) for at, value in values if value is not None]


STUDY = Study(
    "ladder",
    "How far back does each recurrence learn to look?",
    "after Hochreiter and Schmidhuber (1997), experiment 2c",
    f"at least 99 % of {FirstSymbol.judged_on} fresh sequences are right, within "
    f"{BUDGET:,} training sequences",
    rows(),
    table=table,
    notes=notes,
    charts=drawn,
)
