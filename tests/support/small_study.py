"""A study whose trials take no time, and one that is killed in the middle."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

from retrograde.studies import Row, Study, Trial, trials
from retrograde.tasks import TwoSequences
from retrograde.tasks.blocks import Blocks
from retrograde.tasks.experiments import Experiment, Published


def count(seeds: Sequence[int], budget: int, checkpoint=None, progress=None) -> list[Trial]:
    """Trials that are through at once; those with odd seeds fail."""
    if progress is not None:
        progress(1, 1, "counting")
    return [Trial(seed, min(10 * seed + 5, budget), seed % 2 == 0) for seed in seeds]


COUNTING = Study(
    "counting",
    "How far do seeds count?",
    "No paper",
    "the seed is even",
    (
        Row("first", "the first", count, 3, 100, Published(0, 12, 1.0, 4)),
        Row("second", "the second", count, 2, 50),
    ),
)

HARD = Experiment(
    "hard",
    TwoSequences(10, 2, "noisy inputs"),
    Blocks(1, 1, 1, biased="all", spread=1.0),
    5.0,
    Published(0, None, 1.0, 1),
)


@dataclass(frozen=True)
class Killed:
    """Trials whose process is killed in the middle, once; their figures are the final weights.

    Attributes:
        marker: a file that is there as soon as that has happened.
    """

    marker: str

    def __call__(self, seeds, budget, checkpoint=None, progress=None) -> list[Trial]:
        learning = trials.Trials(HARD, seeds)

        def tell(done: int, total: int, what: str) -> None:
            if done == 300 and not os.path.exists(self.marker):
                Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            progress(done, total, what)

        with mock.patch.object(trials, "KEPT", 200):
            found = learning.run(budget, checkpoint, tell)
        weights = learning._networks.hidden.flatten(1).tolist()
        assert len(weights) == len(found), "none is through before the budget is spent"
        return [
            replace(trial, figures={"weights": of})
            for trial, of in zip(found, weights, strict=True)
        ]


def killed(marker: Path, together: int = 1) -> Study:
    """Two trials, in the first of which its process is killed."""
    row = Row("hard", "hard", Killed(str(marker)), 2, 500)
    return Study("killed", "Killed", "No paper", "never", (row,), together=together)
