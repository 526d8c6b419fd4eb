"""Results of a study: its trials, where they were run, and what they say of each row."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

from retrograde import _checks, _files
from retrograde.compiled import backend
from retrograde.errors import InputError
from retrograde.report import json
from retrograde.studies.study import Trial

SCHEMA = "retrograde-study/1"

CONFIDENCE = 0.95
RESAMPLES = 10_000
"""Of the trials, for the interval of their mean."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Machine:
    """What trials were run with.

    Attributes:
        processor: its name.
        torch, retrograde: versions.
        backend: what computed recurrences, "compiled" or "eager".

    Example:
        >>> from retrograde.studies import Machine
        >>> Machine.here().backend in ("compiled", "eager")
        True
    """

    processor: str
    torch: str
    retrograde: str
    backend: str

    @classmethod
    def here(cls) -> "Machine":
        """This one."""
        return cls(_processor(), torch.__version__, version("retrograde"), backend())


@dataclass(frozen=True)
class Part:
    """Trials of one row that were run under the same conditions.

    Attributes:
        row: its name.
        budget: of each trial.
        machine: where they were run.
        trials: in the order of their seeds.

    Example:
        >>> from retrograde.studies import results
        >>> part = results("6a").parts[0]
        >>> part.row, part.budget, len(part.trials)
        ('6a', 95000, 10)
    """

    row: str
    budget: int
    machine: Machine
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Outcome:
    """What the trials of a row say.

    Attributes:
        trials: how many there are.
        solved: how many solved the task.
        share: of those that did, with Wilson's interval.
        sequences: the mean over those that did, with an interval from resampled trials; None where
            none did, and without an interval where only one did.
        seconds: of CPU time, of all trials together.
        budget: the sequences that those without success were trained on; None where there are none.

    Example:
        >>> from retrograde.studies import results
        >>> outcome = results("6a").outcome("6a")
        >>> outcome.solved, outcome.trials
        (10, 10)
    """

    trials: int
    solved: int
    share: tuple[float, Interval]
    sequences: tuple[float, Interval | None] | None
    seconds: float
    budget: int | None


@dataclass(frozen=True)
class Results:
    """Trials of a study.

    Attributes:
        study: its name.
        parts: the trials.

    Example:
        >>> from retrograde.studies import Machine, Part, Results, Trial
        >>> trials = (Trial(0, 500, True), Trial(1, 700, True), Trial(2, 900, False))
        >>> results = Results("6a", (Part("6a", 900, Machine.here(), trials),))
        >>> outcome = results.outcome("6a")
        >>> outcome.solved, outcome.sequences
        (2, (600.0, (500.0, 700.0)))
    """

    study: str
    parts: tuple[Part, ...]

    def trials(self, row: str) -> tuple[Trial, ...]:
        """The trials of a row, in the order of their seeds; none if it was not run."""
        found = [trial for part in self.parts if part.row == row for trial in part.trials]
        return tuple(sorted(found, key=lambda trial: trial.seed))

    def outcome(self, row: str) -> Outcome | None:
        """What the trials of a row say; None if it was not run."""
        return outcome(self.trials(row))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write them.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.write_text(path, json.render(self, SCHEMA))

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> "Results":
        """Read what `to_json` wrote.

        Raises:
            InputError: if the file cannot be read, or holds no results of this version.
        """
        return json.read(path, cls, SCHEMA)


def outcome(trials: Sequence[Trial]) -> Outcome | None:
    """What trials under the same conditions say; None where there are none."""
    if not trials:
        return None
    solved = [float(trial.sequences) for trial in trials if trial.solved]
    return Outcome(
        len(trials),
        len(solved),
        (len(solved) / len(trials), wilson(len(solved), len(trials))),
        (float(np.mean(solved)), resampled(solved)) if solved else None,
        sum(trial.seconds for trial in trials),
        max((trial.sequences for trial in trials if not trial.solved), default=None),
    )


def merged(several: Iterable[Results]) -> Results:
    """The trials of all, each once.

    Args:
        several: results of one study.

    Raises:
        ArgumentError: for what is no sequence of results, or is empty.
        InputError: for results of different studies, of one row with different budgets, and for
            trials with the same seed that came out differently.

    Example:
        >>> from retrograde.studies import merged, results
        >>> merged([results("6a"), results("6a")]) == results("6a")
        True
    """
    several = tuple(several) if isinstance(several, Iterable) else several
    _checks.tuple_of("several", several, Results, "results")
    found: dict[tuple[str, int], tuple[Part, Trial]] = {}
    budgets: dict[str, int] = {}
    for results in several:
        if results.study != several[0].study:
            raise InputError(
                f"these are results of different studies: {several[0].study} and {results.study}"
            )
        for part in results.parts:
            if budgets.setdefault(part.row, part.budget) != part.budget:
                raise InputError(
                    f"the trials of {part.row} had different budgets: {budgets[part.row]} and "
                    f"{part.budget}; give results of one of them"
                )
            for trial in part.trials:
                _, other = found.setdefault((part.row, trial.seed), (part, trial))
                if other != trial:
                    raise InputError(
                        f"seed {trial.seed} of {part.row} came out differently in two of these "
                        f"results: {other} and {trial}; give one of them"
                    )
    parts: dict[Part, list[Trial]] = {}
    for part, trial in found.values():
        bare = Part(part.row, part.budget, part.machine, ())
        parts.setdefault(bare, []).append(trial)
    return Results(
        several[0].study,
        tuple(
            Part(part.row, part.budget, part.machine, tuple(sorted(trials, key=lambda t: t.seed)))
            for part, trials in parts.items()
        ),
    )


def wilson(solved: int, trials: int) -> Interval:
    """Wilson's interval of a share, of 95 % confidence.

    Wilson, Probable inference, the law of succession, and statistical inference, Journal of the
    American Statistical Association 22 (1927).
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, scale = solved / trials, 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z**2 / (4 * trials**2)) ** 0.5
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return (0.0 if not solved else low), (1.0 if solved == trials else high)


def resampled(values: Sequence[float]) -> Interval | None:
    """The interval of a mean, of 95 % confidence, from the means of resampled values.

    It is drawn with a fixed seed: the same values have the same interval.
    """
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn.mean(1), (tail, 1 - tail))
    return float(low), float(high)


@cache
def shipped(name: str) -> Results | None:
    """The results of a study that come with the package, if there are any."""
    place = resources.files("retrograde.studies") / "results" / f"{name}.json"
    if not place.is_file():
        return None
    with resources.as_file(place) as file:
        return Results.from_json(file)


def _processor() -> str:
    """The processor's name, or its kind where the system does not say."""
    with_names = Path("/proc/cpuinfo")
    lines = with_names.read_text().splitlines() if with_names.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
