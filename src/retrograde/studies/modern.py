"""Later benchmarks of long memory, each as its paper asks, by recurrences trained with Adam.

Pascanu et al. (2013) order, Arjovsky et al. (2016) add and copy, Le et al. (2015) add with a relu
RNN that begins as the identity and read images pixel by pixel. Sizes are those of a laptop.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis.examine import Progress
from retrograde.nn import GRU, LSTM, RNN, AbstractRecurrent, initialise
from retrograde.studies import looks
from retrograde.studies.outcomes import Results
from retrograde.studies.study import Row, Study, Table, Trial
from retrograde.studies.watched import Inside, Network, short
from retrograde.tasks import (
    AbstractTask,
    Copying,
    ModernAdding,
    ModernTemporalOrder,
    Sequences,
    SequentialDigits,
)
from retrograde.tasks.task import Lot

HIDDEN, BATCH = 32, 32
RATE, CLIP = 0.003, 1.0
"""The rate of Adam, and the norm that the whole gradient is clipped to."""

BUDGET, TRIALS = 96_000, 3
"""Sequences (3000 updates), and seeds."""

CHECKED = 50
"""Updates after which it is asked whether their sequences were answered as the task asks; where
they were, the test itself is made."""

AT_ONCE = 400
"""Sequences of a test that are answered at once; all held-out digits, each of them once, are."""

LOOKS = (0, 3, 10, 30, 100, 300, 1000, 2000)
"""Updates before which the monitor looks inside; it does once more after the last one."""

TOLD = 20
"""Updates from one word on the progress to the next."""

DRAWING = 10_000
"""Added to a seed for its sequences, which then are drawn apart from its weights."""


def _identity(inputs: int) -> AbstractRecurrent:
    module = RNN(inputs, HIDDEN, nonlinearity="relu")
    initialise(module, "identity")
    return module


def _forget_bias(inputs: int) -> AbstractRecurrent:
    module = LSTM(inputs, HIDDEN)
    initialise(module, "forget-bias", value=1.0)
    return module


RECURRENCES: Mapping[str, tuple[str, Callable[[int], AbstractRecurrent]]] = {
    "rnn": ("plain RNN, tanh", lambda inputs: RNN(inputs, HIDDEN)),
    "irnn": ("plain RNN, relu, identity", _identity),
    "lstm": ("LSTM, forget bias 1", _forget_bias),
    "gru": ("GRU", lambda inputs: GRU(inputs, HIDDEN)),
}
"""By name: a title, and what makes one for a number of inputs."""


@dataclass(frozen=True)
class Modern:
    """Trials of one recurrence on one task.

    Attributes:
        task: what it trains on.
        test: what it is tested on; None for the same.
        make: makes the recurrence, by its number of inputs.
    """

    task: AbstractTask
    test: AbstractTask | None
    make: Callable[[int], AbstractRecurrent]

    def __call__(
        self,
        seeds: Sequence[int],
        budget: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Trial]:
        """As `Run` says; trials are short, and leave no checkpoint."""
        return [self._trial(seed, budget, progress) for seed in seeds]

    def _trial(self, seed: int, budget: int, progress: Progress | None) -> Trial:
        task, generator = self.task, torch.Generator().manual_seed(DRAWING + seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Network(self.make(task.inputs), task.outputs, every_step=True)
        inside = Inside(model)
        optimiser, lot = torch.optim.Adam(model.parameters(), RATE), task.lot(generator)
        test = (self.test or task).lot(generator)
        losses, judged, update, solved = list[float](), list[tuple[Tensor, Tensor]](), 0, False
        while not solved and update * BATCH < budget:
            sequences = lot.training(BATCH)
            optimiser.zero_grad()
            if update in LOOKS:
                loss, answers = _looked(inside, update, task, sequences)
            else:
                loss, answers = _passed(model, task, sequences)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            losses.append(loss)
            judged.append(_judged(task, answers, sequences))
            update += 1
            if not math.isfinite(losses[-1]):
                break
            if progress is not None and update % TOLD == 0:
                progress(update * BATCH, budget, f"seed {seed}: loss {losses[-1]:.3f}")
            if update % CHECKED == 0:
                solved = _solved(task, judged[-CHECKED:]) and _solved(
                    task, _test(model, task, test)
                )
        _looked(inside, update, task, lot.training(BATCH))
        latest = losses[-CHECKED:]
        mean = sum(latest) / len(latest)
        figures = {
            "loss": short(mean),
            "guess": short(task.guess.loss),
            "first": [short(loss) for loss in losses[:5] if math.isfinite(loss)],
            "inside": inside.figures,
        }
        return Trial(seed, update * BATCH, solved, figures)


def _passed(
    model: Network, task: AbstractTask, sequences: Sequences, recorded: bool = False
) -> tuple[float, Tensor]:
    """A forward and a backward pass, which leaves its gradients in `.grad`: loss and answers."""
    answers = model(sequences.x, recorded)
    loss = task.loss(answers, sequences)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), answers.detach()


def _looked(
    inside: Inside, update: int, task: AbstractTask, sequences: Sequences
) -> tuple[float, Tensor]:
    """The same, looked at by the monitor."""
    with inside.look(update, sequences.x) as monitor:
        loss, answers = _passed(inside.model, task, sequences, recorded=True)
        monitor.loss(torch.tensor(loss))  # which may be NaN
    return loss, answers


def _judged(task: AbstractTask, answers: Tensor, sequences: Sequences) -> tuple[Tensor, Tensor]:
    return task.right(answers, sequences), task.errors(answers, sequences)


def _solved(task: AbstractTask, judged: Sequence[tuple[Tensor, Tensor]]) -> bool:
    right, errors = (torch.cat(each) for each in zip(*judged, strict=True))
    return task.solved(right, errors)


@torch.no_grad()
def _test(model: Network, task: AbstractTask, lot: Lot) -> list[tuple[Tensor, Tensor]]:
    return [_judged(task, model(some.x), some) for some in lot.tests(AT_ONCE)]


TASKS: Mapping[str, tuple[str, AbstractTask, AbstractTask | None]] = {
    "order": ("temporal order, T = 50", ModernTemporalOrder(50), None),
    "adding": ("adding, T = 100", ModernAdding(100), None),
    "copying": ("copying, T = 100", Copying(100), None),
    "digits": ("digits by pixels", SequentialDigits(), SequentialDigits(held_out=True)),
    "permuted": (
        "digits by pixels, permuted",
        SequentialDigits(permuted=True),
        SequentialDigits(permuted=True, held_out=True),
    ),
}
"""By name: a title, what is trained on, and what the test is made on if that is something else."""


def table(results: Results) -> Table:
    """How many trials solved each task, and their mean loss at the end beside that of guessing."""
    titles = ["task", "recurrence", "solved", "sequences", "loss", "guessing"]
    rows = []
    for row in STUDY.rows:
        outcome, trials = results.outcome(row.name), results.trials(row.name)
        if outcome is None:
            continue
        losses = [trial.figures["loss"] for trial in trials if trial.figures["loss"] is not None]
        task, recurrence = row.title.split(": ")
        rows.append(
            [
                task,
                recurrence,
                f"{outcome.solved} of {outcome.trials}",
                f"{outcome.sequences[0]:,.0f}" if outcome.sequences else "",
                f"{sum(losses) / len(losses):.3g}" if losses else "not finite",
                f"{trials[0].figures['guess']:.3g}",
            ]
        )
    return titles, rows


def _name_of(task: str, recurrence: str) -> str:
    return f"{task}-{recurrence}"


def foretelling(results: Results) -> dict[str, Table]:
    """Rank correlations of what is seen before training."""
    found = [
        looks.start(row, task, trial)
        for task in TASKS
        for row in (_name_of(task, recurrence) for recurrence in RECURRENCES)
        for trial in results.trials(row)
    ]
    told = looks.foretelling(found, ("reach", "horizon"))
    return {"Rank correlation of what is seen before training": told}


def drawn(results: Results) -> dict[str, Any]:
    """The first seed of each recurrence while it trains, side by side, task by task."""
    found = {}
    for task, (title, *_) in TASKS.items():
        trials = {name.upper(): results.trials(_name_of(task, name)) for name in RECURRENCES}
        if first := {name: of[0] for name, of in trials.items() if of}:
            found[f"inside, {title}"] = looks.inside(first, title)
    return found


STUDY = Study(
    "modern",
    "Later benchmarks of long memory",
    "Pascanu et al. (2013), Le et al. (2015), Arjovsky et al. (2016); smaller",
    "as each task of retrograde.tasks says, on fresh sequences or held-out images",
    tuple(
        Row(
            _name_of(task, name),
            f"{what}: {title}",
            Modern(trained, test, make),
            TRIALS,
            BUDGET,
        )
        for task, (what, trained, test) in TASKS.items()
        for name, (title, make) in RECURRENCES.items()
    ),
    table=table,
    notes=lambda results: looks.WORDS,
    tables=foretelling,
    charts=drawn,
)
