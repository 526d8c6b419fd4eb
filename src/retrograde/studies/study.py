"""What a study is: the rows of a table, how a trial of each is run, and what counts as success."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retrograde import _checks
from retrograde.diagnosis.examine import Progress
from retrograde.tasks.experiments import Published

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Titles of columns, and rows of words."""


@dataclass(frozen=True)
class Trial:
    """What became of one network.

    Attributes:
        seed: of its weights and of its sequences.
        sequences: how many it was trained on, or whatever else its study counts.
        solved: whether it then solved the task.
        figures: what else was measured, by name: numbers, words, and lists and dicts of them.
        seconds: of CPU time; what a killed process had used is not counted.

    Example:
        >>> from retrograde.studies import results
        >>> trial = results("6a").trials("6a")[0]
        >>> trial.seed, trial.solved
        (0, True)
    """

    seed: int
    sequences: int
    solved: bool
    figures: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seconds: float = field(default=0.0, repr=False, compare=False)


@runtime_checkable
class Run(Protocol):
    """How trials of a row are run: a function of a module, or an object that can be pickled.

    Example:
        >>> from retrograde.studies import STUDIES
        >>> run = STUDIES["1"].row("1-4x1-0.5").run
        >>> run(seeds=(3,), budget=100)
        [Trial(seed=3, sequences=100, solved=False)]
    """

    def __call__(
        self,
        seeds: Sequence[int],
        budget: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Trial]:
        """Train one network for each seed, until it has solved the task or spent the budget.

        What becomes of a seed depends neither on the other seeds nor on where the training was
        interrupted.

        Args:
            seeds: of the networks.
            budget: of each: sequences, or whatever else the study counts.
            checkpoint: a file for the state of the training. Where it is there the training goes
                on from it; a row whose trials are short need not write any.
            progress: to be called now and then with (done, in all, what is going on). An exception
                that it raises ends the training, which a later call takes up again.

        Returns:
            The trials, in the order of the seeds.
        """


@dataclass(frozen=True)
class Row:
    """One row of a table: trials under the same conditions.

    Attributes:
        name: by which it is asked for.
        title: what tells it apart from the other rows.
        run: how its trials are run.
        trials: how many there are unless another number is asked for; their seeds are 0, 1, ...
        budget: of each trial.
        published: what a paper reports of it, if any does.

    Example:
        >>> from retrograde.studies import STUDIES
        >>> row = STUDIES["2a"].row("2a")
        >>> row.budget, row.published.succeeded
        (51000, 1.0)
    """

    name: str
    title: str
    run: Run
    trials: int
    budget: int
    published: Published | None = None


@dataclass(frozen=True)
class Study:
    """A table of results that one command repeats.

    Attributes:
        name: as in `retrograde study NAME`.
        title: what is asked.
        paper: where the table stands, or the task comes from.
        success: when a trial counts as solved; fixed before anything is run.
        rows: the table.
        counts: what a budget counts.
        together: number of trials that are trained side by side, where that is faster than one
            after the other. A checkpoint holds as many.
        table: of the results, in place of published figures beside ours: titles, and rows.
        notes: what else the results say, in sentences.
        tables: the same as further tables, by heading.
        found: what came of trials, in place of how many of them were solved.
        charts: of the results, by a name that stands in no other; each says what it shows.

    Example:
        >>> from retrograde.studies import STUDIES
        >>> study = STUDIES["4"]
        >>> [row.name for row in study.rows]
        ['4-100', '4-100-linear', '4-500', '4-500-linear', '4-1000', '4-1000-linear']
        >>> study.row("4-100").published.sequences
        74000
    """

    name: str
    title: str
    paper: str
    success: str
    rows: tuple[Row, ...]
    counts: str = "sequences"
    together: int = 1
    table: Callable[[Any], Table] | None = None
    notes: Callable[[Any], Sequence[str]] | None = None
    tables: Callable[[Any], Mapping[str, Table]] | None = None
    found: Callable[[Sequence[Trial]], str] | None = None
    charts: Callable[[Any], Mapping[str, Any]] | None = None

    def row(self, name: str) -> Row:
        """A row by its name.

        Raises:
            ArgumentError: if there is none, with those that there are.
        """
        rows = {row.name: row for row in self.rows}
        return rows[_checks.existing(f"row of the study {self.name}", name, rows)]
