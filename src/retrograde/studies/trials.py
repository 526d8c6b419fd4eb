"""Trials of an experiment: networks that train until the task is solved, or the budget is spent."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks, _files
from retrograde.diagnosis.examine import Progress
from retrograde.errors import InputError
from retrograde.studies.online import Networks
from retrograde.studies.study import Trial
from retrograde.tasks.experiments import Experiment
from retrograde.tasks.reber import ContinualReber, Stream

CHECKED = 100
"""Sequences that a network draws and learns before it is asked whether the task is solved."""

OF_TEST = 10
"""A test of its own is made after a tenth as many sequences as it has, and no fewer than are drawn
at once, if all of these were right. Where weights change at each step, and one error ends a test,
it is made each time: what a network answered while it changed is not what it would answer now."""

LATEST = 10
"""Of sequences that end with their first error as many have to be right as these, the latest."""

TESTED = 500
"""Sequences of a test that are answered at once."""

FIRST, LONGEST = 64, 8192
"""Symbols of a stream that are taken at once, at its beginning and later."""

KEPT = 1000
"""Sequences after which the training is kept in the checkpoint."""


class Trials:
    """Networks of one experiment, each with a seed of its own, trained side by side.

    Args:
        experiment: what they learn.
        seeds: one for each network.

    Attributes:
        done: what became of those that are through.

    Example:
        >>> from retrograde.studies.trials import Trials
        >>> from retrograde.tasks.experiments import EXPERIMENTS
        >>> Trials(EXPERIMENTS["1-4x1-0.5"], seeds=range(2)).run(budget=100)
        (Trial(seed=0, sequences=100, solved=False), Trial(seed=1, sequences=100, solved=False))
    """

    def __init__(self, experiment: Experiment, seeds: Sequence[int]):
        self.experiment = experiment
        self.seeds = tuple(_checks.whole_numbers("seeds", seeds))
        self.done: list[Trial] = []
        self._learning = list(self.seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        dtype = torch.float64 if experiment.double else torch.float32
        drawn = [
            {name: weight.to(dtype) for name, weight in experiment.network.draw(each).items()}
            for each in generators
        ]
        self._networks = Networks(
            experiment.network, drawn, experiment.each_step, experiment.momentum
        )
        if experiment.cells_after:
            self._networks.without_cells()
        self._lots = [experiment.task.lot(generator) for generator in generators]
        self._sequences = 0
        remembered = experiment.task.judged_on
        if experiment.task.fresh:
            remembered = max(CHECKED, remembered // OF_TEST)
        self._right = torch.zeros(len(generators), remembered, dtype=torch.bool)
        self._errors = torch.zeros(len(generators), remembered)

    def run(
        self, budget: int, checkpoint: Path | None = None, progress: Progress | None = None
    ) -> tuple[Trial, ...]:
        """Train until each network has solved the task or has seen `budget` sequences.

        Args:
            budget: rounded up to a multiple of 100.
            checkpoint: a file to keep the training in, and to go on from where it is there.
            progress: called with (sequences done, budget, what is going on).

        Returns:
            The trials, in the order of the seeds. Those without success have seen the budget.

        Raises:
            InputError: for a checkpoint of other trials, or a file that cannot be used.
        """
        budget = _checks.whole("budget", budget)
        if checkpoint is not None and checkpoint.exists():
            self._go_on(checkpoint, budget)
        while self._learning and self._sequences < budget:
            if isinstance(self.experiment.task, ContinualReber):
                self._follow_streams(self.experiment.task)
            else:
                self._learn()
                self._let_go([n for n in range(len(self._learning)) if self._solved(n)])
            if checkpoint is not None and (
                self._sequences % KEPT == 0 or self._sequences >= budget or not self._learning
            ):
                checkpoint.parent.mkdir(exist_ok=True)  # another command may have removed it
                _files.write(checkpoint, lambda file: torch.save(self._state(), file))
            if progress is not None:
                learning = f"{len(self._learning)} of {len(self.seeds)} networks are learning"
                progress(min(self._sequences, budget), budget, learning)
        late = [Trial(seed, self._sequences, solved=False) for seed in self._learning]
        return tuple(sorted([*self.done, *late], key=lambda trial: self.seeds.index(trial.seed)))

    @property
    def _often(self) -> bool:
        """Whether a test is made each time."""
        return self.experiment.each_step and self.experiment.task.flawless

    def _drawn(self, seed: int) -> dict[str, torch.Tensor]:
        """The first weights of a network."""
        return self.experiment.network.draw(torch.Generator().manual_seed(seed))

    def _learn(self) -> None:
        """Train each network on the next sequences of its own."""
        if 0 < self._sequences == self.experiment.cells_after:
            self._networks.add_cells([self._drawn(seed) for seed in self._learning])
        pools = [lot.training(CHECKED) for lot in self._lots]
        answers = self._networks.train(pools, self.experiment.rate, self.experiment.task.limit)
        first = self._sequences % self._right.shape[1]
        latest = slice(first, first + CHECKED)
        for row, (pool, given) in enumerate(zip(pools, answers, strict=True)):
            self._right[row, latest] = self.experiment.task.right(given, pool)
            self._errors[row, latest] = self.experiment.task.errors(given, pool)
        self._sequences += CHECKED

    def _follow_streams(self, task: ContinualReber) -> None:
        """Train each network on the next streams of its own, and test it after each of them."""
        streams = cast(list[Stream], self._lots)
        for stream in range(CHECKED):
            right = followed(self._networks, streams, self.experiment.rate, self.experiment.decay)
            self._errors[:, stream] = torch.tensor(right)
            self._sequences += 1
            tested = followed(self._networks, streams, 0.0)
            self._let_go(
                [
                    row
                    for row, symbols in enumerate(tested)
                    if symbols == task.steps and self._predicts(row, task)
                ]
            )
            streams = cast(list[Stream], self._lots)
        for lot in streams:
            lot.forget()  # a checkpoint holds the generator, and nothing that it has drawn

    def _predicts(self, row: int, task: ContinualReber) -> bool:
        """Whether a network predicts all the streams of a test, the first of which it has."""
        copies = [self._networks.weights(row)] * (task.judged_on - 1)
        streams = [task.lot(self._lots[row].generator) for _ in copies]
        right = followed(Networks(self.experiment.network, copies), streams, 0.0)
        return all(symbols == task.steps for symbols in right)

    def _solved(self, row: int) -> bool:
        """Whether a network has solved the task, by its latest sequences or by a test."""
        task, right, errors = self.experiment.task, self._right[row], self._errors[row]
        if self._often:
            return self._tested(row)
        if self._sequences < len(right):
            return False
        if not task.fresh:
            return task.solved(right, errors)
        latest = right[-LATEST:] if task.limit else right
        due = self._sequences % len(right) == 0
        return due and bool(latest.all()) and self._tested(row)

    def _tested(self, row: int) -> bool:
        """Whether a network solves the task on sequences that are drawn for the test."""
        task = self.experiment.task
        right, errors = list[Bool[Tensor, "N"]](), list[Float[Tensor, "N"]]()
        for sequences in self._lots[row].tests(CHECKED if self._often else TESTED):
            output = self._networks.answers(row, sequences)
            right.append(task.right(output, sequences))
            errors.append(task.errors(output, sequences))
            if task.flawless and not right[-1].all():
                return False
        return task.solved(torch.cat(right), torch.cat(errors))

    def _let_go(self, solved: list[int]) -> None:
        """Keep only the networks that have not solved the task."""
        if not solved:
            return
        self.done += [Trial(self._learning[row], self._sequences, solved=True) for row in solved]
        rest = [row for row in range(len(self._learning)) if row not in solved]
        self._learning = [self._learning[row] for row in rest]
        self._lots = [self._lots[row] for row in rest]
        self._right, self._errors = self._right[rest], self._errors[rest]
        self._networks.only(rest)

    def _state(self) -> dict[str, Any]:
        """All that the training goes on from."""
        return {
            "experiment": self.experiment.name,
            "seeds": list(self.seeds),
            "done": [asdict(trial) for trial in self.done],
            "learning": self._learning,
            "sequences": self._sequences,
            "hidden": self._networks.hidden,
            "output": self._networks.output,
            "by_hidden": self._networks.by_hidden,
            "by_output": self._networks.by_output,
            "drawing": [lot.generator.get_state() for lot in self._lots],
            "right": self._right,
            "errors": self._errors,
        }

    def _go_on(self, checkpoint: Path, budget: int) -> None:
        """Take up the training that a checkpoint holds.

        Raises:
            InputError: if it cannot be read, or holds another training, or a longer one.
        """
        name = _files.named(checkpoint)
        try:
            state = torch.load(checkpoint, weights_only=True)
            found = state["experiment"], tuple(state["seeds"])
        except Exception as error:
            raise InputError(
                f"{name} is no checkpoint of a study: {_files.why(error).splitlines()[0]}; give "
                "another file, or remove this one to begin anew"
            ) from error
        if found != (self.experiment.name, self.seeds):
            raise InputError(
                f"{name} holds the training of {found[0]} with seeds {_checks.listed(found[1])}, "
                f"not of {self.experiment.name} with {_checks.listed(self.seeds)}; give another "
                "file, or remove this one to begin anew"
            )
        if state["sequences"] > -(-budget // CHECKED) * CHECKED:
            raise InputError(
                f"{name} holds a training of {state['sequences']} sequences already, more than the "
                f"budget of {budget}; give a larger budget, or remove the file to begin anew"
            )
        self.done = [Trial(**trial) for trial in state["done"]]
        rest = [row for row, seed in enumerate(self.seeds) if seed in state["learning"]]
        self._learning, self._sequences = state["learning"], state["sequences"]
        for part in ("hidden", "output", "by_hidden", "by_output"):
            setattr(self._networks, part, state[part])
        self._lots = [self._lots[row] for row in rest]
        for lot, drawing in zip(self._lots, state["drawing"], strict=True):
            lot.generator.set_state(drawing)
        self._right, self._errors = state["right"], state["errors"]


def followed(
    networks: Networks, streams: Sequence[Stream], rate: float, decay: float = 1.0
) -> list[int]:
    """Train each network on one stream, to its first error or its end.

    Args:
        networks: that are trained.
        streams: one for each.
        rate: the learning rate at the first symbol.
        decay: what it is multiplied by after each symbol.

    Returns:
        The symbols that each predicts before its first error.
    """
    steps = [stream.task.steps for stream in streams]
    right, going, most = [0] * len(streams), [True] * len(streams), FIRST
    for row, stream in enumerate(streams):
        stream.begin()
        networks.begin(row)
    while any(going):
        sizes = [
            min(most, steps[row] - right[row]) if going[row] else 0 for row in range(len(streams))
        ]
        some = [stream.take(size) for stream, size in zip(streams, sizes, strict=True)]
        rates = [rate * decay**symbols for symbols in right]
        before = networks.follow(some, rates, decay, ContinualReber.limit)
        for row, stream in enumerate(streams):
            stream.move(min(before[row] + 1, sizes[row]))
            right[row] += before[row]
            going[row] = before[row] == sizes[row] > 0 and right[row] < steps[row]
        most = min(2 * most, LONGEST)
    return right


def beginning(experiment: Experiment, seed: int) -> float:
    """The mean error of the first 100 sequences that a network is trained on; of streams, the
    mean number of symbols before the first error.

    It is the same on all processors to about three digits, while what comes later is not: training
    multiplies rounding.
    """
    trials = Trials(experiment, (seed,))
    trials.run(CHECKED)
    return float(trials._errors[0, :CHECKED].mean())
