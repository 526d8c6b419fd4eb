"""How far back does each recurrence learn to look? Success against lag, and the gradient inside.

A symbol at the first step is asked for after `lag` further steps, each of which shows a distractor.
Ten recurrences train on it with the same optimiser and the same budget, and while they do it is
noted how far back their gradient reaches.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells.gates import with_role
from retrograde.decomposition import decompose
from retrograde.decomposition.summary import summarise
from retrograde.nn import GRU, LSTM, RNN, AbstractRecurrent, initialise
from retrograde.recording import Recorded, record
from retrograde.tasks import FirstSymbol, Sequences

LAGS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
HIDDEN, BATCH = 16, 16
RATE = 0.01
"""Of Adam, for all recurrences and lags."""

CLIP = 1.0
"""The norm that the whole gradient is clipped to, where a recurrence says so."""

BUDGET = 2000
"""Updates, each on 16 fresh sequences."""

SUCCESS = 0.99
"""The share of fresh sequences that have to be right."""

LATEST = 10
"""Updates whose sequences all together have to be right that often before it is tested."""

TESTED = 1000
"""Sequences of a test."""

LOOKS = (0, 1, 3, 10, 30, 100, 300, 1000)


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
        if name:
            horizon = {"horizon": lag} if name == "chrono" else {}
            initialise(module, name, **options, **horizon)
        return module

    return make


RECURRENCES = {
    each.name: each
    for each in (
        Recurrence("rnn", "plain RNN, tanh", _made(RNN)),
        Recurrence("rnn-orthogonal", "plain RNN, tanh, orthogonal", _made(RNN, "orthogonal")),
        Recurrence(
            "rnn-identity",
            "plain RNN, relu, identity",
            _made(RNN, "identity", nonlinearity="relu"),
        ),
        Recurrence("cec", "the bare carousel", _made(LSTM, generation="cec")),
        Recurrence("lstm-1997", "LSTM of 1997", _made(LSTM, generation="lstm-1997")),
        Recurrence("lstm-2000", "LSTM of 2000", _made(LSTM)),
        Recurrence(
            "lstm-2000-bias", "LSTM of 2000, forget bias 1", _made(LSTM, "forget-bias", value=1.0)
        ),
        Recurrence("lstm-2002", "LSTM of 2002", _made(LSTM, generation="lstm-2002")),
        Recurrence("gru", "GRU", _made(GRU)),
        Recurrence("chrono", "LSTM of 2000, chrono", _made(LSTM, "chrono")),
    )
}


class Reader(nn.Module):
    """A recurrence, and a linear layer that reads its last output.

    Args:
        recurrent: the recurrence.
        outputs: number of answers.
    """

    def __init__(self, recurrent: AbstractRecurrent, outputs: int):
        super().__init__()
        self.recurrent = recurrent
        self.readout = nn.Linear(HIDDEN, outputs)

    def forward(self, x: Tensor) -> Tensor:
        # With activations the package's own pass runs, which at 16 units is faster than torch's.
        output = self.recurrent(x, return_activations=True)[0]
        answer: Tensor = self.readout(output[-1])
        return answer
