"""What looks at networks in training say: networks side by side, and what a start foretells."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import charts
from retrograde.charts.studies import Quantity
from retrograde.studies.outcomes import CONFIDENCE
from retrograde.studies.study import Table, Trial

Rows = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

RESAMPLES = 1000
"""Of the trials, for the interval of a rank correlation."""

FEW = 20
"""Of fewer trials no correlation is told."""

PREDICTORS = {
    "reach": "reach",
    "horizon": "horizon",
    "needed": "log2 at the lag",
}
"""What is known before the first update, by its name among a trial's figures."""

WORDS = (
    "Reach: the largest lag at which the gradient is still 1 % of what it is at lag 0. Horizon: "
    "the lag at which 1 % of the gradient with respect to the state would be left, at the rate at "
    "which it shrinks. Log2 at the lag: the contribution at the lag of the task over that at lag "
    "0. Share of carousel: of the gradient that crosses no recurrent weights. Time constant: of "
    "the unit that forgets slowest, by its forget gate.",
    "Correlations are Spearman's, with a 95 % interval and the number of trials, and are not given "
    f"for fewer than {FEW}.",
)
"""What the words in charts and tables mean."""


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
        if not self.told:
            return f"{'too few' if self.trials < FEW else 'all alike'}: {self.trials} trials"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f}) of {self.trials}"


def spearman(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Spearman's rank correlation, ties with their mean rank, and its interval.

    The interval is that of resampled pairs, drawn with a fixed seed.

    Example:
        >>> from retrograde.studies.looks import spearman
        >>> print(spearman([float(n) for n in range(30)], [float(n // 2) for n in range(30)]))
        1.00 (0.99 to 1.00) of 30
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
        group: its recurrence and its task.
        task: what it had to learn.
        seen: the predictors.
        trial: what became of it.
    """

    group: str
    task: Any
    seen: Mapping[str, float]
    trial: Trial


def start(group: str, task: Any, trial: Trial) -> Start:
    """A trial whose figures hold what was seen inside."""
    return Start(group, task, {name: _first(trial, name) for name in PREDICTORS}, trial)


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
    "trials of the same task": lambda start: start.task,
    "seeds of one recurrence and task": lambda start: start.group,
}
"""Which trials are compared with each other. A longer lag is harder, and lets a reach be longer."""


def foretelling(found: Sequence[Start], predictors: Sequence[str]) -> Table:
    """Does what is seen before training tell whether, and how soon, the task will be solved?

    Nothing is said of fewer than 20 trials.
    """
    rows = []
    for name in predictors:
        for among, by in AMONG.items():
            both = [foretold(name, found, solved, by) for solved in (True, False)]
            if any(each.told for each in both):
                rows.append((PREDICTORS[name], among, *map(str, both)))
    return ("seen before training", "among", "with success", "with the sequences it took"), rows


def foretelling_each(found: Sequence[Start], predictors: Sequence[str], title: str) -> Table:
    """The same with success, task by task."""
    rows = []
    for task in dict.fromkeys(start.task for start in found):
        own = [start for start in found if start.task == task]
        told = [foretold(name, own, True) for name in predictors]
        if any(each.told for each in told):
            rows.append((str(task), *map(str, told)))
    return (title, *(PREDICTORS[name] for name in predictors)), rows


def inside(first: Mapping[str, Trial], where: str, lag: int | None = None) -> Any:
    """An Altair chart of several networks while they train, side by side.

    Args:
        first: a trial of each network, by its title.
        where: for the title.
        lag: of the task, if it has one.
    """

    def curves(name: str, part: int | None = None) -> dict[str, list[tuple[float, float]]]:
        return {title: over_training(trial, name, part) for title, trial in first.items()}

    constants = curves("time_constants", 1)
    quantities = [
        Quantity("reach (steps)", curves("reach"), needed=lag),
        Quantity("horizon (steps)", curves("horizon"), log=True, needed=lag),
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
