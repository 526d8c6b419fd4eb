"""The published tables of networks that were trained on line, each as a study."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from statistics import median

import torch

from retrograde.diagnosis.examine import Progress
from retrograde.studies.outcomes import shipped
from retrograde.studies.study import Row, Study, Trial
from retrograde.studies.trials import Trials, beginning
from retrograde.tasks.experiments import EXPERIMENTS, Experiment

PATIENCE = 10
"""A trial fails after this many times as many sequences as the paper's networks needed."""

LOOKED_AT = 100
"""Sequences drawn to see how long they are."""

MOST = 10
"""Trials of a row, unless more are asked for; some tables have up to 30."""

ABOUT = {
    "1": (
        "Embedded Reber grammar",
        "all symbols of 256 training and 256 test strings are predicted",
    ),
    "2a": (
        "One symbol remembered over 100 steps that are always the same",
        "no output errs by .25 or more in 10,000 sequences",
    ),
    "2b": (
        "One symbol remembered over 100 random steps",
        "no output errs by .25 or more at the end of 10,000 sequences",
    ),
    "2c": (
        "One symbol remembered over 50 to 1000 steps of distractors",
        "both outputs err by less than .2 in 10,000 sequences",
    ),
    "3a": (
        "Two sequences told apart by their first elements",
        "all of 256 sequences are right, and the mean error is below .01",
    ),
    "3b": (
        "Two sequences told apart by their first elements, with noise on these",
        "fewer than 6 of 256 sequences are wrong, and the mean error is below .04",
    ),
    "3c": (
        "Two sequences told apart by their first elements, with noise on the targets",
        "no answer is further than .1 from the mean target of its class, and the mean error is "
        "below .015, in 256 sequences",
    ),
    "4": (
        "The adding problem",
        "the mean training error is below .01, and the last 2000 sequences err by less than .04",
    ),
    "5": (
        "The multiplication problem",
        "of the last 2000 sequences fewer err by .04 or more than the row's number",
    ),
    "6a": (
        "Temporal order of two symbols",
        "the mean training error is below .1, and the last 2000 sequences are right",
    ),
    "6b": (
        "Temporal order of three symbols",
        "the mean training error is below .1, and the last 2000 sequences are right",
    ),
    "2000": (
        "Continual embedded Reber grammar",
        "ten streams of 100,000 symbols are predicted without an error",
    ),
}
"""By the paper's number, or its year: what is asked, and when a trial counts as solved."""

STREAMS = 30_000
"""The training streams of Gers, Schmidhuber and Cummins (2000)."""


@dataclass(frozen=True)
class OnLine:
    """Trials of one experiment, trained as its paper did.

    Attributes:
        experiment: whose networks they are.
    """

    experiment: Experiment

    def __call__(
        self,
        seeds: Sequence[int],
        budget: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Trial]:
        """As `Run` says; a budget is rounded up to hundreds of sequences.

        The figures of each trial hold the mean error of its first 100 sequences, by which it can be
        recognised.
        """
        found = Trials(self.experiment, seeds).run(budget, checkpoint, progress)
        return [recognisable(self.experiment, trial) for trial in found]


def recognisable(experiment: Experiment, trial: Trial) -> Trial:
    """The same with the mean error of its first 100 sequences."""
    error = round(beginning(experiment, trial.seed), 4)
    return replace(trial, figures={**trial.figures, "error of the first 100": error})


@cache
def seconds_of_a_step() -> float | None:
    """The median CPU time of a step of one network, over the rows that have shipped results."""
    taken = []
    for study in published():
        results = shipped(study.name)
        if results is None or study.counts != "sequences":
            continue
        for one in study.rows:
            assert isinstance(one.run, OnLine)
            trials = results.trials(one.name)
            if sequences := sum(trial.sequences for trial in trials):
                seconds = sum(trial.seconds for trial in trials)
                taken.append(seconds / sequences / mean_steps(one.run.experiment))
    return median(taken) if taken else None


def mean_steps(experiment: Experiment) -> float:
    """The mean number of steps of a sequence, over some that are drawn."""
    drawn = experiment.task.lot(torch.Generator().manual_seed(0)).training(LOOKED_AT)
    return float(drawn.lengths.float().mean())


def expected(row: Row) -> float | None:
    """The CPU time of a trial in seconds, if it needs as many sequences as the paper's.

    None where there is nothing to tell it by.
    """
    one = seconds_of_a_step()
    if not isinstance(row.run, OnLine) or row.published is None or one is None:
        return None
    if row.published.sequences is None:
        return None
    return row.published.sequences * mean_steps(row.run.experiment) * one


def row(experiment: Experiment) -> Row:
    """A row of a table, with a budget of several times what the paper's networks needed."""
    published = experiment.published
    assert published is not None
    budget = STREAMS if published.sequences is None else PATIENCE * published.sequences
    return Row(
        experiment.name,
        experiment.name,
        OnLine(experiment),
        min(published.trials, MOST),
        -(-budget // 1000) * 1000,
        published,
    )


def published() -> Iterator[Study]:
    """The tables of Hochreiter and Schmidhuber (1997) and of Gers et al. (2000)."""
    for name, experiments in groupby(EXPERIMENTS.values(), lambda each: each.name.split("-")[0]):
        rows = tuple(row(experiment) for experiment in experiments)
        title, success = ABOUT[name]
        if name == "2000":
            paper, counts = "Gers, Schmidhuber and Cummins (2000), table 2", "streams"
        else:
            paper, counts = f"Hochreiter and Schmidhuber (1997), experiment {name}", "sequences"
        notes = partial(_readings, rows)
        yield Study(name, title, paper, success, rows, counts, together=MOST, notes=notes)


def _readings(rows: Sequence[Row], results: object) -> list[str]:
    """What tells rows apart that the paper has not printed."""
    found = list[str]()
    for one in rows:
        assert isinstance(one.run, OnLine)
        experiment = one.run.experiment
        if experiment.reading:
            ending = experiment.name.rpartition("-")[2]
            found.append(
                f"Rows that end with {ending} depart from the paper: {experiment.reading}."
            )
    return list(dict.fromkeys(found))
