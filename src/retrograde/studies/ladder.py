"""How far back does each recurrence learn to look? Success against lag, and the gradient inside.

A symbol at the first step is asked for after `lag` further steps, each of which shows a distractor.
Eleven recurrences train on it with the same optimiser and the same budget, and while they do it is
noted how far back their gradient reaches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from retrograde.diagnosis.examine import Progress
from retrograde.nn import GRU, LSTM, RNN, AbstractRecurrent, initialise
from retrograde.studies.study import Trial
from retrograde.studies.watched import Inside, Network, short
from retrograde.tasks import FirstSymbol, Sequences

LAGS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
UNCLIPPED = (10, 100, 1000)
"""Lags of recurrences whose gradient is not clipped."""

HIDDEN, BATCH = 16, 16
RATE = 0.01
"""Of Adam, for all recurrences and lags."""

CLIP = 1.0
"""The norm that the whole gradient is clipped to, where a recurrence says so."""

BUDGET = 16_000
"""Sequences, each seen once: 1000 updates. Hochreiter and Schmidhuber (1997) report 31,000 to
49,000 for lags from 100 to 1000 of their experiment 2c, of which this task is a small copy."""

LATEST, RIGHT = 10, 0.99
"""Updates, and the share of their sequences that has to be right before a test is made."""

AT_ONCE = 100
"""Sequences of a test that are answered at once."""

LOOKS = (0, 1, 3, 10, 30, 60, 100, 200, 300, 500, 700)
"""Updates before which it is looked inside, where a trial is watched."""

WATCHED, LONGEST = 1, 1000
"""The first seeds are watched all along, up to this lag. Of the other trials there is a look before
the training and one after it: a look costs as much as some fifty updates."""

DRAWING = 10_000
"""Added to a seed for its sequences, which then are drawn apart from its weights."""

FIRST = 5
"""Losses that are kept, by which a trial can be recognised."""

TOLD = 20
"""Updates from one word on the progress to the next."""


@dataclass(frozen=True)
class Recurrence:
    """One of those that are compared.

    Attributes:
        name: of its rows.
        title: in a table and in a chart.
        make: makes one, by its number of inputs and the lag it will be trained on.
        clip: whether its gradient is clipped.
    """

    name: str
    title: str
    make: Callable[[int, int], AbstractRecurrent]
    clip: bool = True


def _made(
    kind: Callable[..., AbstractRecurrent], name: str = "", **options: Any
) -> Callable[[int, int], AbstractRecurrent]:
    """A recurrence with torch's own weights, some of which an initialisation sets anew."""
    layer = {key: options.pop(key) for key in ("nonlinearity", "generation") if key in options}

    def make(inputs: int, lag: int) -> AbstractRecurrent:
        module = kind(inputs, HIDDEN, **layer)
        if name == "input-bias":
            spread_input_bias(module)
        elif name:
            initialise(module, name, horizon=lag if name == "chrono" else None, **options)
        return module

    return make


@torch.no_grad()
def spread_input_bias(module: AbstractRecurrent) -> None:
    """Set the biases of an LSTM's input gates to -1 to -6, in equal steps from unit to unit.

    Hochreiter and Schmidhuber (1997, section 4) set them apart and below 0 against the drift of
    the state; in their tables they stand between -1 and -6.
    """
    bias, other = module.bias_ih_l0, module.bias_hh_l0
    assert isinstance(bias, Tensor) and isinstance(other, Tensor)
    bias[:HIDDEN] = -torch.linspace(1, 6, HIDDEN)
    other[:HIDDEN] = 0


RECURRENCES = {
    each.name: each
    for each in (
        Recurrence("rnn", "plain RNN (tanh)", _made(RNN)),
        Recurrence("rnn-orthogonal", "orthogonal RNN", _made(RNN, "orthogonal")),
        Recurrence(
            "rnn-identity",
            "identity RNN (relu)",
            _made(RNN, "identity", nonlinearity="relu"),
        ),
        Recurrence("cec", "bare carousel", _made(LSTM, generation="cec")),
        Recurrence("lstm-1997", "LSTM of 1997", _made(LSTM, generation="lstm-1997")),
        Recurrence(
            "lstm-1997-bias",
            "LSTM of 1997, input bias",
            _made(LSTM, "input-bias", generation="lstm-1997"),
        ),
        Recurrence("lstm-2000", "LSTM of 2000", _made(LSTM)),
        Recurrence(
            "lstm-2000-bias", "LSTM of 2000, forget bias 1", _made(LSTM, "forget-bias", value=1.0)
        ),
        Recurrence("lstm-2002", "LSTM of 2002", _made(LSTM, generation="lstm-2002")),
        Recurrence("gru", "GRU", _made(GRU)),
        Recurrence("chrono", "LSTM of 2000, chrono", _made(LSTM, "chrono")),
        Recurrence(
            "rnn-orthogonal-unclipped",
            "orthogonal RNN, not clipped",
            _made(RNN, "orthogonal"),
            clip=False,
        ),
        Recurrence(
            "rnn-identity-unclipped",
            "identity RNN, not clipped",
            _made(RNN, "identity", nonlinearity="relu"),
            clip=False,
        ),
        Recurrence(
            "chrono-unclipped",
            "chrono, not clipped",
            _made(LSTM, "chrono"),
            clip=False,
        ),
    )
}


def made(recurrence: Recurrence, lag: int, seed: int) -> Network:
    """A network with the weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(recurrence.make(FirstSymbol.inputs, lag), FirstSymbol.outputs)


@dataclass(frozen=True)
class Ladder:
    """Trials of one recurrence at one lag.

    Attributes:
        recurrence: what trains.
        lag: how far back the answer lies.
    """

    recurrence: Recurrence
    lag: int

    def __call__(
        self,
        seeds: Sequence[int],
        budget: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Trial]:
        """As `Run` says; trials are short, and leave no checkpoint."""
        return [self.trained(seed, budget, progress)[1] for seed in seeds]

    def trained(
        self, seed: int, budget: int, progress: Progress | None = None
    ) -> tuple[Network, Trial]:
        """A network as it is after its training, and the trial.

        Args:
            seed: of its weights and sequences.
            budget: sequences.
            progress: called now and then with (sequences done, budget, what is going on).
        """
        task, generator = FirstSymbol(self.lag), torch.Generator().manual_seed(DRAWING + seed)
        model = made(self.recurrence, self.lag, seed)
        optimiser = torch.optim.Adam(model.parameters(), RATE)
        inside = Inside(model, self.lag, samples=BATCH, entries=1)  # all of the pass
        watched = seed < WATCHED and self.lag <= LONGEST
        latest, first = [0.0] * LATEST, list[float | None]()
        solved, finite, update = False, True, 0
        while not solved and finite and update * BATCH < budget:
            sequences = task.draw(BATCH, generator)
            if not update or (watched and update in LOOKS):
                loss, answers = looked(inside, update, sequences, crossings=watched)
            else:
                loss, answers = passed(model, sequences)
            if self.recurrence.clip:
                nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            optimiser.zero_grad()
            latest[update % LATEST] = share_right(answers, sequences)
            first += [short(loss)] if update < FIRST else []
            finite = math.isfinite(loss)
            update += 1
            if progress is not None and update % TOLD == 0:
                progress(update * BATCH, budget, f"seed {seed}: loss {loss:.3f}")
            solved = sum(latest) >= RIGHT * LATEST and learned(model, task, generator)
        looked(inside, update, task.draw(BATCH, generator), crossings=watched)
        share = short(sum(latest) / LATEST)
        figures = {"right": share, "first": first, "inside": inside.figures}
        return model, Trial(seed, update * BATCH, solved, figures)


def looked(
    inside: Inside, update: int, sequences: Sequences, crossings: bool
) -> tuple[float, Tensor]:
    """A pass as `passed` makes it, looked at by the monitor."""
    with inside.look(update, sequences.x, crossings) as monitor:
        loss, answers = passed(inside.model, sequences, recorded=True)
        monitor.loss(torch.tensor(loss))  # which may be NaN
    return loss, answers


def passed(model: Network, sequences: Sequences, recorded: bool = False) -> tuple[float, Tensor]:
    """A forward and a backward pass, which leaves its gradients in `.grad`.

    Returns:
        The loss and the answers.
    """
    answers = model(sequences.x, recorded)
    loss = cross_entropy(answers, sequences.y[-1])
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), answers.detach()


def share_right(answers: Tensor, sequences: Sequences) -> float:
    """The share of sequences whose class has the larger logit."""
    return float((answers.argmax(1) == sequences.y[-1].argmax(1)).double().mean())


@torch.no_grad()
def learned(model: Network, task: FirstSymbol, generator: torch.Generator) -> bool:
    """Whether it answers fresh sequences as the task asks."""
    lots = task.lot(generator).tests(AT_ONCE)
    right = torch.cat([model(lot.x).argmax(1) == lot.y[-1].argmax(1) for lot in lots])
    return task.solved(right, 1 - right.float())
