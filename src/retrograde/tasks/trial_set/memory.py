"""Does the gradient reach, in time and in depth? Models in which it does not, or goes too far."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.nn import LSTM, initialise
from retrograde.tasks.trial_set.case import REFUSED, Case, Made
from retrograde.tasks.trial_set.models import (
    BATCH,
    FEATURES,
    HIDDEN,
    Forecaster,
    H,
    I,
    changed,
    cross_entropy,
    data,
    gru,
    keeping_bias,
    last,
    linear,
    lstm,
    made,
    orthogonal,
    read_last,
    regression,
    scaled,
    squared,
)


def forecaster(
    kind: Callable[..., nn.Module],
    *changes: Callable[[Any], object],
    steps: int = 40,
    every: bool = False,
    hidden: int = HIDDEN,
    **options: Any,
) -> Callable[[], Made]:
    """A forecaster whose recurrent layer is changed in place, on random numbers."""

    def make() -> Made:
        layer = changed(lambda: kind(FEATURES, hidden, **options), *changes)()
        y = (steps, BATCH, 1) if every else (BATCH, 1)
        batch = torch.randn(steps, BATCH, FEATURES), torch.randn(y)
        return Forecaster(layer, hidden, last=not every), batch, squared

    return make


def chrono(horizon: int) -> Callable[[Any], None]:
    """Biases for lags up to a horizon."""
    return partial(initialise, name="chrono", horizon=horizon)


def positive(radius: float) -> Callable[[Any], None]:
    """Positive weights of this spectral radius, on which all relu units stay active."""

    def change(layer: Any) -> None:
        weight = layer.weight_hh_l0.abs_()
        weight *= radius / torch.linalg.eigvals(weight).abs().max()
        layer.bias_ih_l0.fill_(1.0)

    return change


# ------------------------------------------------------------------------------- vanishing


def _season() -> Made:
    """A season of 24 steps in the input, and a plain RNN that sees a few."""
    time = torch.arange(96.0).view(-1, 1, 1)
    phase = torch.randn(1, BATCH, FEATURES)
    x = torch.sin(2 * torch.pi * time / 24 + phase) + 0.2 * torch.randn(96, BATCH, FEATURES)
    return Forecaster(nn.RNN(FEATURES, HIDDEN)), (x, torch.randn(BATCH, 1)), squared


def marked(samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """The adding problem: the sum of two marked numbers, one early and one past the middle."""
    x, rows = torch.rand(samples, steps, 2), torch.arange(samples)
    early = torch.randint(0, steps // 10, (samples,))
    later = torch.randint(steps // 2, steps // 2 + steps // 10, (samples,))
    x[..., 1] = 0
    x[rows, early, 1] = x[rows, later, 1] = 1
    return x, (x[rows, early, 0] + x[rows, later, 0]).unsqueeze(1)


class OwnCell(nn.Module):
    """An LSTM written by hand in one linear layer."""

    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.gates = nn.Linear(inputs + hidden, 4 * hidden)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One step."""
        h, c = state
        i, f, g, o = self.gates(torch.cat((x, h), 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


def loop_over(m: Any, x: Tensor) -> Tensor:
    """A loop over a cell with a state of h and c, from zero, read at the end."""
    h = c = x.new_zeros(len(x), m.head.in_features)
    for step in x.unbind(1):
        h, c = m.cell(step, (h, c))
    read: Tensor = m.head(h)
    return read


def early(samples: int, steps: int, at: int) -> tuple[Tensor, Tensor]:
    """What was read at some step."""
    x = torch.randn(samples, steps, 2)
    return x, x[:, at, :1]


SHORT = ("forget-gate-too-short", "vanishing")
VANISHING = (
    Case(
        "tiny recurrent weights (RNN)",
        ("vanishing",),
        forecaster(nn.RNN, scaled(0.01)),
        options={"needs_lag": 20},
        seen=True,
    ),
    Case(
        "a named lag beyond its reach",
        ("vanishing",),
        forecaster(nn.RNN, orthogonal(0.8)),
        options={"needs_lag": 30},
        seen=True,
    ),
    Case(
        "a season beyond its reach",
        ("vanishing",),
        _season,
        strength="mild",
        options={"needs_lag": 24},
        seen=True,
    ),
    Case(
        "forget bias -2",
        ("forget-gate-too-short",),
        forecaster(nn.LSTM, keeping_bias(-2.0), steps=60),
        options={"needs_lag": 30},
        seen=True,
    ),
    Case(
        "update gate shut (GRU)",
        ("forget-gate-too-short",),
        forecaster(nn.GRU, keeping_bias(-3.0), steps=60),
        options={"needs_lag": 30},
        seen=True,
    ),
    Case(
        "the adding problem over 100 steps, GRU as torch draws it",
        SHORT,
        made(read_last, lambda: marked(64, 100), rnn=gru(2, 32), head=linear(1, 32)),
        options={"needs_lag": 90},
        seen=True,
    ),
    Case(
        "an LSTM written by hand, lag 40 of 60",
        (REFUSED, "vanishing", "forget-gate-too-short"),
        made(
            loop_over,
            lambda: early(16, 60, 19),
            cell=lambda: OwnCell(2, 24),
            head=linear(1, 24),
        ),
        options={"needs_lag": 40},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- exploding

EXPLODING = (
    Case(
        "huge recurrent weights (RNN)", ("exploding",), forecaster(nn.RNN, scaled(8.0)), seen=True
    ),
    Case(
        "huge recurrent weights (LSTM)",
        ("exploding",),
        forecaster(nn.LSTM, scaled(20.0), steps=60),
        seen=True,
    ),
    Case(
        "large recurrent weights, open forget gate",
        ("exploding",),
        forecaster(nn.LSTM, scaled(12.0), keeping_bias(3.0), steps=60, hidden=32),
        seen=True,
    ),
    Case(
        "relu RNN, spectral radius 1.3",
        ("exploding",),
        forecaster(nn.RNN, positive(1.3), steps=60, nonlinearity="relu"),
        strength="mild",
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- gates and units


def _half_dead(layer: Any) -> None:
    layer.bias_ih_l0[: layer.hidden_size // 2] = -20.0
    layer.weight_hh_l0 *= 0.5


def _drifting_state() -> Made:
    def more_input(layer: Any) -> None:
        layer.bias_ih_l0 += 1.0

    model, (x, y), loss = forecaster(LSTM, more_input, steps=80, generation="nfg")()
    return model, (x + 1, y), loss


GATES = (
    Case("a cell state that drifts (no forget gate)", ("saturated",), _drifting_state, seen=True),
    Case(
        "half of the relu units dead",
        ("dead-units",),
        forecaster(nn.RNN, _half_dead, steps=10, nonlinearity="relu"),
        seen=True,
    ),
    Case(
        "forget bias 1 in both biases",
        ("double-bias",),
        forecaster(nn.LSTM, keeping_bias(1.0, both=True)),
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- balance


def output_layer(factor: float) -> Callable[[], Made]:
    """An output layer that is not of the usual size."""

    def make() -> Made:
        model, batch, loss = forecaster(nn.LSTM, keeping_bias(3.0))()
        with torch.no_grad():
            model.head.weight *= factor  # type: ignore[operator,union-attr]
        return model, batch, loss

    return make


def _frozen_zeros() -> Made:
    model, batch, loss = output_layer(0.0)()
    model.head.requires_grad_(False)
    return model, batch, loss


def _near_lags() -> Made:
    """A fast unit that the loss is about, and a slow one with a twentieth of its weight."""
    model = Forecaster(nn.RNN(FEATURES, 2, bias=False), 2, last=False)
    with torch.no_grad():
        model.recurrent.weight_hh_l0.copy_(torch.diag(torch.tensor([0.0, 1.0])))
        model.recurrent.weight_ih_l0.copy_(torch.tensor([[0.5], [0.02]]).expand(2, FEATURES))
        model.head.weight.copy_(torch.tensor([[1.0, 0.05]]))
        model.head.bias.zero_()
    return model, (torch.randn(80, 32, FEATURES), torch.zeros(80, 32, 1)), squared


def _conflict() -> Made:
    """A sum over time that is too large at step 10 and too small at the end."""
    model = Forecaster(nn.RNN(1, 1, nonlinearity="relu"), 1, last=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(0.0 if name.startswith("recurrent.bias") else 1.0)
        x = 0.01 * torch.rand(31, BATCH, 1)
        y = model(x)
        y[10] -= 3.0
        y[-1] += 1.0
    return model, (x, y), squared


BALANCE = (
    Case("frozen output layer of zeros", ("no-gradient",), _frozen_zeros, seen=True),
    Case("output layer times 100", ("output-outweighs",), output_layer(100.0), seen=True),
    Case(
        "a fast unit drowns a slow one",
        ("near-lags-dominate",),
        _near_lags,
        options={"needs_lag": 40},
        seen=True,
    ),
    Case("near and far errors opposed", ("conflicting-lags",), _conflict, seen=True),
)

# ------------------------------------------------------------------------------- depth


def past_each(m: Any, x: Tensor) -> Tensor:
    """A stack of layers, each of which is added to what it reads."""
    x = m.first(x)
    for layer in m.layers:
        x = x + layer(x)[0]
    read: Tensor = m.head(x[:, -1])
    return read


def through_all(m: Any, x: Tensor) -> Tensor:
    """A stack of layers, each of which reads the one below."""
    x = m.first(x)
    for layer in m.layers:
        x = layer(x)[0]
    read: Tensor = m.head(x[:, -1])
    return read


def deep(
    depth: int,
    forward: Callable[..., Tensor] = through_all,
    layer: Callable[..., Callable[[], nn.Module]] = lstm,
) -> Callable[[], Made]:
    """A stack of layers, each a module."""
    return made(
        forward,
        data(),
        first=linear(H, I),
        layers=lambda: nn.ModuleList(layer(H, H)() for _ in range(depth)),
        head=linear(),
    )


def _last_five() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 16, 4)
    return x, (x[:, -5:, 0].sum(1) > 0).long()


DEPTH = (
    Case("eight layers", ("vanishing-in-depth",), deep(8), strength="mild", seen=True),
    Case(
        "twelve layers in one module",
        ("vanishing-in-depth",),
        regression(last, lambda: nn.LSTM(I, H, 12, batch_first=True)),
        seen=True,
    ),
    Case(
        "eight layers in one module, classes of the last five steps",
        ("vanishing-in-depth",),
        made(
            read_last,
            _last_five,
            cross_entropy,
            rnn=lstm(4, 24, num_layers=8),
            head=linear(2, 24),
        ),
        options={"needs_lag": 5},
        seen=True,
    ),
)

# ------------------------------------------------------------------------------- long sequences

LONG = (
    Case(
        "2,000 steps of a cell, of which the last hundred matter",
        ("window",),
        made(
            loop_over,
            lambda: (x := torch.randn(8, 2000, 3), x[:, -100:, :1].sum(1) / 10),
            cell=lambda: nn.LSTMCell(3, 32),
            head=linear(1, 32),
        ),
        least="info",
        seen=True,
    ),
)

CASES = (*VANISHING, *EXPLODING, *GATES, *BALANCE, *DEPTH, *LONG)
