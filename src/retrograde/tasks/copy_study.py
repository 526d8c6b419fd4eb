"""How long a truncation does the copy task need? One network's own curve, and trainings beside it.

    python -m retrograde.tasks.copy_study

trains the network of Aicher, Foti and Fox (UAI 2019, arXiv 1905.07473, table C.1) with truncated
back-propagation over 5 and over 10 steps, which takes a quarter of an hour, and writes what came
out beside this file. The page docs/is-my-window-long-enough.md is made of it, and the tests begin
both trainings anew.

The protocol is theirs, from the paper and from `aicherc/adaptive_tbptt`, which it refers to (its
`synth_script.py` with the options of `copy_fixed-lstm.sh`): an LSTM of 2 layers of 50 units between
two linear layers; weights uniform in +-sqrt(3 / longer side), biases 0; 64 sequences of 4000 steps;
SGD on the mean loss of K steps, its rate 1.0 sqrt(K), weight decay 1e-5, the norm of the gradient
clipped to 1 / K. A window begins K - 1 steps before the first of its K loss steps, so that these
look back over K to 2 K - 1 steps. Perplexity is exp of the mean loss over all steps of 64 further
sequences of 1000 steps.

Not theirs: the state is handed on from the first of the 4000 steps to the last (they lose K - 1
steps of it every 500), there is one seed instead of nine, and training ends after fewer epochs
(theirs goes on for up to 210, or three hours).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from retrograde import horizons
from retrograde.decomposition import Flow, decompose
from retrograde.recording import record
from retrograde.truncation import Horizon

FILE = Path(__file__).with_suffix(".json")
SYMBOLS = 6
"""0 is a blank, 1 begins a sequence, 2 to 5 are to be copied."""

LENGTH = 10
"""m: symbols to be copied, the first one included, and steps after which they are due."""

BATCH, HIDDEN, LAYERS = 64, 50, 2
TRAINING, TEST = 4000, 1000
"""Steps of the sequences to train on, and of those to test on."""

RATE, DECAY, CLIP = 1.0, 1e-5, 1.0
SEED = 0
EPOCHS = {5: 60, 10: 60}
"""Passes over the training sequences, for each K."""

LOOKS = (0, 5, 10, 15, 20, 30, 60)
"""Epochs after which perplexity is measured and the horizon looked at."""

WINDOWS = range(1, 2 * LENGTH + 1)
"""The K whose bias is looked at under their truncation."""

LOOK = 60
"""Steps of the sequences whose gradient is looked at; the task's lag is 10."""

BEGINNING = 100
"""Steps of the first few updates, which the tests repeat."""

PUBLISHED = {5: 1.646, 10: 1.036, 15: 1.039, 20: 1.040, 30: 1.043}
"""Their test perplexity for each K."""

State = tuple[Tensor, Tensor]


def sequences(
    steps: int, batch: int, generator: torch.Generator
) -> tuple[Float[Tensor, "T B C"], Int[Tensor, "T B"]]:
    """Sequences and what is due at each of their steps.

        input   # 2 3 4 5 2 3 4 5 2 - - - - - - - - - - # 3 ...
        output  - - - - - - - - - - # 2 3 4 5 2 3 4 5 2 - - ...

    A symbol is due m steps after it was read. Each sequence begins somewhere in its period of 2 m.
    """
    period = 2 * LENGTH
    rounds = -(-steps // period) + 1
    symbols = torch.randint(2, SYMBOLS, (rounds, LENGTH, batch), generator=generator)
    symbols[:, 0] = 1
    blank = torch.zeros_like(symbols)
    read = torch.cat((symbols, blank), 1).flatten(0, 1)
    due = torch.cat((blank, symbols), 1).flatten(0, 1)
    shift = torch.randint(period, (batch,), generator=generator)
    at = shift + torch.arange(steps).unsqueeze(1)
    return one_hot(read.gather(0, at), SYMBOLS).float(), due.gather(0, at)


class Copier(nn.Module):
    """A linear layer, an LSTM and a linear layer.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.encoder = nn.Linear(SYMBOLS, HIDDEN)
        self.rnn = nn.LSTM(HIDDEN, HIDDEN, LAYERS)
        self.decoder = nn.Linear(HIDDEN, SYMBOLS)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                bound = math.sqrt(3 / max(parameter.shape)) if parameter.ndim > 1 else 0.0
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(
        self, x: Float[Tensor, "T B C"], state: State | None = None
    ) -> tuple[Float[Tensor, "T B C"], State]:
        output, state = self.rnn(self.encoder(x), state)
        return self.decoder(output), state


def loss_of(logits: Float[Tensor, "T B C"], due: Int[Tensor, "T B"]) -> Tensor:
    """The mean cross-entropy, in nats."""
    return cross_entropy(logits.flatten(0, 1), due.flatten())


def train(model: Copier, x: Tensor, due: Tensor, window: int) -> float:
    """One pass over the sequences with truncated back-propagation; the mean loss."""
    rate = RATE * math.sqrt(window)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=DECAY)
    start, state, losses = 0, None, []
    for end in range(window, len(x) + 1, window):
        following = end - window + 1  # where the next window begins
        first, carried = model(x[start:following], state)
        rest, _ = model(x[following:end], carried)
        loss = loss_of(torch.cat((first, rest))[-window:], due[end - window : end])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), CLIP / window)
        optimiser.step()
        start, state = following, (carried[0].detach(), carried[1].detach())
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def perplexity(model: Copier, x: Tensor, due: Tensor) -> float:
    """exp of the mean loss."""
    with torch.no_grad():
        return math.exp(float(loss_of(model(x)[0], due)))


@dataclass(frozen=True)
class Look:
    """A network after some epochs.

    Attributes:
        epoch: how many.
        perplexity: on the test sequences.
        window: the smallest K whose bias is at most 0.1.
        reach: of its gradient.
        bias: of truncations to K = 1, 2, ... steps.
        theirs: the bias of their truncation, which looks back over K to 2 K - 1 steps, by K.
    """

    epoch: int
    perplexity: float
    window: int | None
    reach: int
    bias: tuple[float, ...]
    theirs: Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        window: its K.
        beginning: the mean loss of its first updates.
        looks: what became of it.
    """

    window: int
    beginning: float
    looks: tuple[Look, ...]


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training sequences and what is due, then those to test on."""
    generator = torch.Generator().manual_seed(100 + SEED)
    training, test = (sequences(steps, BATCH, generator) for steps in (TRAINING, TEST))
    return *training, *test


def run(window: int) -> Run:
    """One training, with a look now and then."""
    x, due, test_x, test_due = data()
    beginning = begin(window)
    model, looks = Copier(SEED), []
    for epoch in range(EPOCHS[window] + 1):
        if epoch:
            train(model, x, due, window)
        if epoch in LOOKS:
            looks.append(look(model, epoch, perplexity(model, test_x, test_due)))
    return Run(window, beginning, tuple(looks))


def begin(window: int) -> float:
    """The mean loss of the first few updates."""
    x, due, *_ = data()
    return train(Copier(SEED), x[:BEGINNING], due[:BEGINNING], window)


def look(model: Copier, epoch: int, found: float) -> Look:
    """The horizon of a network, on two batches that it was not trained on."""

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        return sequences(LOOK, BATCH, torch.Generator().manual_seed(1000 + seed))

    def loss_fn(copier: nn.Module, some: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(copier(some[0])[0], some[1])

    horizon: Horizon = horizons.horizon(model, batch, loss_fn, most=2)
    with record(model) as recording:
        loss_fn(model, batch(0)).backward()  # type: ignore[no-untyped-call]
    flow = decompose(recording)
    model.zero_grad()
    return Look(
        epoch,
        round(found, 4),
        horizon.window(),
        horizon.reach,
        tuple(round(float(bias), 4) for bias in horizon.bias[: 3 * LENGTH]),
        {str(window): round(bias_of_theirs(flow, window), 4) for window in WINDOWS},
    )


def bias_of_theirs(flow: Flow, window: int) -> float:
    """The bias of their truncation: loss step j of the K in a window looks back over K + j steps.

    g_K = sum over lags l of g_l min(1, max(0, (2 K - 1 - l) / K))
    """
    parts = flow.by_lag(bins="every").parts()
    lag = torch.arange(len(parts)).to(parts)
    kept = ((2 * window - 1 - lag) / window).clamp(0, 1)
    whole = parts.sum(0)
    return float((whole - kept @ parts).norm() / whole.norm())


@cache
def results() -> tuple[Run, ...]:
    """What came out of the trainings."""
    found = json.loads(FILE.read_text())
    return tuple(
        Run(one["window"], one["beginning"], tuple(Look(**each) for each in one["looks"]))
        for one in found
    )


def write(runs: tuple[Run, ...]) -> None:
    """Keep what came out."""
    FILE.write_text(json.dumps([asdict(one) for one in runs], indent=1) + "\n")


if __name__ == "__main__":
    write(tuple(run(window) for window in EPOCHS))
