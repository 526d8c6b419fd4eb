"""Does the gradient reach, in time and in depth? Models in which it does not, or goes too far."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.nn import LSTM, initialise
from retrograde.tasks.trial_set.case import REFUSED, Case, Made, Training
from retrograde.tasks.trial_set.models import (
    BATCH,
    FEATURES,
    HIDDEN,
    B,
    Forecaster,
    H,
    I,
    T,
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
    rnn,
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


def times(factor: float) -> Callable[[Any], None]:
    """What too large a step makes of recurrent weights."""

    def change(model: Any) -> None:
        model.rnn.weight_hh_l0 *= factor

    return change


def _last_four() -> tuple[Tensor, Tensor]:
    x = torch.rand(32, 30, 2)
    return x, x[:, -4:, :1].sum(1) - 2


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
    Case(
        "a tanh RNN that had learned, after too large a step",
        ("exploding", "saturated", "weight-scale"),
        made(read_last, _last_four, rnn=rnn(2, 40), head=linear(1, 40)),
        training=Training(100, afterwards=times(6.0)),
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

# ------------------------------------------------------------------------------- new at the split


def of_lag(lag: int, steps: int, samples: int = 16) -> Callable[[], tuple[Tensor, Tensor]]:
    """What was read some steps before the last."""
    return lambda: (x := torch.randn(samples, steps, I), x[:, -1 - lag, :1])


def of_two_lags(near: int, far: int, steps: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """The sum of what was read at two steps before the last."""
    return lambda: (x := torch.randn(16, steps, I), x[:, -1 - near, :1] + x[:, -1 - far, :1])


def _at_every_step(lag: int, steps: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """What was read some steps before, at every step."""
    return lambda: (x := torch.randn(16, steps, I), x.roll(lag, 1)[..., :1])


def every(m: Any, x: Tensor) -> Tensor:
    """All steps of a layer called rnn."""
    read: Tensor = m.head(m.rnn(x)[0])
    return read


def _all_biases(value: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                parameter.fill_(value)

    return change


def _gate_bias(gate: int, value: float, share: float = 1.0) -> Callable[[Any], None]:
    """The bias of one gate of some of the units."""

    def change(layer: Any) -> None:
        size = layer.hidden_size
        layer.bias_ih_l0[gate * size : gate * size + int(share * size)] = value

    return change


def _dead(share: float, value: float = -20.0) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer.bias_ih_l0[: int(share * layer.hidden_size)] = value

    return change


def _eye(factor: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer.weight_hh_l0.copy_(factor * torch.eye(layer.hidden_size))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()

    return change


def rotation(angle: float, factor: float, inputs: float, steps: int) -> Callable[[], Made]:
    """Two units that a rotation and a factor make of each other, and inputs of some size."""

    def change(layer: Any) -> None:
        turn = torch.tensor(angle)
        rows = [[turn.cos(), turn.sin()], [-turn.sin(), turn.cos()]]
        layer.weight_hh_l0.copy_(factor * torch.tensor(rows))
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()

    return made(
        read_last,
        lambda: (inputs * torch.randn(B, steps, 1), torch.randn(B, 1)),
        rnn=changed(rnn(1, 2), change),
        head=linear(1, 2),
    )


def chaotic(factor: float, steps: int, hidden: int = 24) -> Callable[[], Made]:
    """A plain RNN with recurrent weights so large that rounding grows in it."""
    return made(
        read_last,
        data(x=(B, steps, I)),
        rnn=changed(rnn(I, hidden), scaled(factor)),
        head=linear(1, hidden),
    )


def _two_units(slow: float, steps: int, samples: int) -> Callable[[], Made]:
    """A fast unit and a slow one, and the weight of the slow one in the output."""

    def make() -> Made:
        model, _, loss = _near_lags()
        with torch.no_grad():
            model.head.weight.copy_(torch.tensor([[1.0, slow]]))  # type: ignore[operator,union-attr]
        return model, (torch.randn(steps, samples, FEATURES), torch.zeros(steps, samples, 1)), loss

    return make


def _opposed(first: int, steps: int, too_much: float, too_little: float) -> Callable[[], Made]:
    """A sum over time that is too large at one step and too small at the end."""

    def make() -> Made:
        model, _, loss = _conflict()
        with torch.no_grad():
            x = 0.01 * torch.rand(steps, BATCH, 1)
            y = model(x)
            y[first] -= too_much
            y[-1] += too_little
        return model, (x, y), loss

    return make


def _shut(m: Any, x: Tensor) -> Tensor:
    """What comes out of the recurrence is cut off below 0 after a bias of -30."""
    h = m.rnn(x)[0][:, -1]
    read: Tensor = m.head((h - 30).relu())
    return read


def _clamped(m: Any, x: Tensor) -> Tensor:
    """Predictions are clamped to a range that none of them lies in."""
    read: Tensor = (m.head(m.rnn(x)[0][:, -1]) - 50).clamp(-1, 1)
    return read


def _masked_out(m: Any, x: Tensor) -> Tensor:
    """A mask that was meant for other data leaves nothing."""
    read: Tensor = m.head(m.rnn(x)[0] * (x[..., :1] > 100)).mean(1)
    return read


def _push_biases(share: float) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        _dead(share)(model.rnn)

    return change


def _saturate(model: Any) -> None:
    """What too large a step makes of biases."""
    model.rnn.bias_ih_l0 += 8 * model.rnn.bias_ih_l0.sign()


def _halving_loop(
    m: Any, x: Tensor, change: Callable[[Tensor], Tensor] = lambda gradient: gradient / 2
) -> Tensor:
    """A loop over a cell in which a hook changes the gradient of every state."""
    h = x.new_zeros(len(x), H)
    for step in x.unbind(1):
        h = m.cell(step, h)
        if h.requires_grad:
            h.register_hook(change)
    read: Tensor = m.head(h)
    return read


EXPLODES = ("exploding", "weight-scale", "non-finite")
NEW = (
    Case(
        "LSTM as torch draws it, lag 50 of 80",
        SHORT,
        made(read_last, of_lag(50, 80), rnn=lstm(I, 16), head=linear(1, 16)),
        options={"needs_lag": 50},
    ),
    Case(
        "update bias -1, lag 12 of 20",
        SHORT,
        made(
            read_last,
            of_lag(12, 20),
            rnn=changed(gru(I, 12), keeping_bias(-1.0)),
            head=linear(1, 12),
        ),
        strength="mild",
        options={"needs_lag": 12},
    ),
    Case(
        "trained on a lag of 1, lag 60 needed",
        SHORT,
        made(read_last, of_two_lags(1, 60, 80), rnn=lstm(I, 12), head=linear(1, 12)),
        training=Training(100),
        options={"needs_lag": 60},
    ),
    Case(
        "two layers as torch draws them, lag 30 at every step of 60",
        SHORT,
        made(every, _at_every_step(30, 60), rnn=gru(I, 12, num_layers=2), head=linear(1, 12)),
        options={"needs_lag": 30},
    ),
    Case(
        "RNN, half of the identity, lag 20",
        ("vanishing",),
        made(read_last, of_lag(20, 30), rnn=changed(rnn(I, 12), _eye(0.5)), head=linear(1, 12)),
        options={"needs_lag": 20},
    ),
    Case(
        "relu RNN, 0.8 of the identity, lag 30",
        ("vanishing",),
        made(
            read_last,
            of_lag(30, 40),
            rnn=changed(rnn(I, 12, nonlinearity="relu"), _eye(0.8)),
            head=linear(1, 12),
        ),
        strength="mild",
        options={"needs_lag": 30},
    ),
    Case(
        "RNN as torch draws it, lag 25 at every step",
        ("vanishing",),
        made(every, _at_every_step(25, 40), rnn=rnn(I, 16), head=linear(1, 16)),
        options={"needs_lag": 25},
    ),
    Case(
        "RNN trained on a lag of 1, lag 25 needed",
        ("vanishing",),
        made(read_last, of_two_lags(1, 25, 40), rnn=rnn(I, 12), head=linear(1, 12)),
        training=Training(80),
        options={"needs_lag": 25},
    ),
    Case(
        "relu RNN, 1.12 times the identity, 80 steps",
        EXPLODES,
        made(
            read_last,
            data(x=(B, 80, I)),
            rnn=changed(rnn(I, 12, nonlinearity="relu"), _eye(1.12)),
            head=linear(1, 12),
        ),
        strength="mild",
    ),
    Case(
        "GRU with recurrent weights times 15",
        EXPLODES,
        made(
            read_last, data(x=(B, 40, I)), rnn=changed(gru(I, 24), scaled(15.0)), head=linear(1, 24)
        ),
    ),
    Case(
        "two LSTM layers with recurrent weights times 15",
        EXPLODES,
        made(
            read_last,
            data(x=(B, 50, I)),
            rnn=changed(lstm(I, 24, num_layers=2), scaled(15.0)),
            head=linear(1, 24),
        ),
    ),
    Case(
        "a trained RNN after too large a step",
        (*EXPLODES, "saturated"),
        made(read_last, of_lag(2, 40), rnn=rnn(I, 24), head=linear(1, 24)),
        training=Training(80, afterwards=times(6.0)),
    ),
    Case(
        "chaos, recurrent weights times 6, 100 steps",
        ("rounding-decides", "exploding"),
        chaotic(6.0, 100),
    ),
    Case(
        "chaos, recurrent weights times 9, 150 steps",
        ("rounding-decides", "exploding"),
        chaotic(9.0, 150),
    ),
    Case(
        "chaos, recurrent weights times 5, 200 steps",
        ("rounding-decides", "exploding"),
        chaotic(5.0, 200, 32),
        strength="mild",
    ),
    Case(
        "an input gate of zeros",
        ("saturated",),
        made(
            read_last,
            data(x=(B, 20, I)),
            rnn=changed(lstm(I, 12), _gate_bias(0, -9.0)),
            head=linear(1, 12),
        ),
    ),
    Case(
        "two thirds of an output gate shut",
        ("saturated",),
        made(
            every,
            data(B, 20, 1, x=(B, 20, I)),
            rnn=changed(lstm(I, 12), _gate_bias(3, -8.0, 0.67)),
            head=linear(1, 12),
        ),
        strength="mild",
    ),
    Case(
        "a candidate with a bias of 5",
        ("saturated",),
        made(
            every,
            data(B, 20, 1, x=(B, 20, I)),
            rnn=changed(gru(I, 12), _gate_bias(2, 5.0)),
            head=linear(1, 12),
        ),
    ),
    Case(
        "a trained LSTM whose biases too large a step has pushed",
        ("saturated",),
        made(read_last, of_lag(2, 12), rnn=lstm(I, 12), head=linear(1, 12)),
        training=Training(80, afterwards=_saturate),
    ),
    Case(
        "a quarter of the relu units dead",
        ("dead-units",),
        made(
            every,
            data(B, T, 1),
            rnn=changed(rnn(I, 16, nonlinearity="relu"), _dead(0.25)),
            head=linear(1, 16),
        ),
        strength="mild",
    ),
    Case(
        "nearly all relu units dead",
        ("dead-units",),
        made(
            every,
            data(B, T, 1),
            rnn=changed(rnn(I, 16, nonlinearity="relu"), _dead(0.9)),
            head=linear(1, 16),
        ),
    ),
    Case(
        "a trained relu RNN after too large a step",
        ("dead-units",),
        made(read_last, of_lag(1, 12), rnn=rnn(I, 16, nonlinearity="relu"), head=linear(1, 16)),
        training=Training(80, afterwards=_push_biases(0.6)),
    ),
    Case(
        "update bias 1 in both biases (GRU)",
        ("double-bias",),
        made(read_last, data(), rnn=changed(gru(), keeping_bias(1.0, both=True)), head=linear()),
    ),
    Case(
        "all biases 1",
        ("double-bias",),
        made(read_last, data(), rnn=changed(lstm(), _all_biases(1.0)), head=linear()),
    ),
    Case(
        "forget bias 2 in both biases of the upper layer",
        ("double-bias",),
        made(
            read_last,
            data(),
            rnn=changed(lstm(num_layers=2), keeping_bias(2.0, both=True, suffix="_l1")),
            head=linear(),
        ),
        strength="mild",
    ),
    Case(
        "forget bias 1 in both biases, trained",
        ("double-bias",),
        made(
            read_last,
            of_lag(3, 12),
            rnn=changed(lstm(I, 12), keeping_bias(1.0, both=True)),
            head=linear(1, 12),
        ),
        training=Training(60),
    ),
    Case(
        "a relu behind the recurrence that nothing passes",
        ("no-gradient", "unreached"),
        made(_shut, data(), rnn=gru(), head=linear()),
    ),
    Case(
        "predictions clamped to a range that none lies in",
        ("no-gradient", "unreached"),
        made(_clamped, data(), rnn=lstm(), head=linear()),
    ),
    Case(
        "a mask that leaves no step",
        ("no-gradient", "unreached"),
        made(_masked_out, data(), rnn=gru(), head=linear()),
    ),
    Case("output layer times 3,000", ("output-outweighs",), output_layer(3000.0)),
    Case("output layer times 300", ("output-outweighs",), output_layer(300.0), strength="mild"),
    Case(
        "a fast unit drowns a slow one of weight 0.03",
        ("near-lags-dominate",),
        _two_units(0.03, 90, 32),
        options={"needs_lag": 50},
    ),
    Case(
        "a fast unit drowns a slow one of weight 0.06",
        ("near-lags-dominate",),
        _two_units(0.06, 80, 24),
        strength="mild",
        options={"needs_lag": 40},
    ),
    Case("errors opposed at 5 and 20 steps", ("conflicting-lags",), _opposed(5, 21, 3.0, 1.0)),
    Case(
        "errors opposed at 20 and 50 steps",
        ("conflicting-lags",),
        _opposed(20, 51, 2.5, 1.0),
        strength="mild",
    ),
    Case(
        "twelve layers of a GRU and no way past them",
        ("vanishing-in-depth",),
        deep(12, layer=gru),
        strength="mild",
    ),
    Case(
        "ten layers of an LSTM, one module each",
        ("vanishing-in-depth",),
        deep(10),
    ),
    Case(
        "fourteen layers with a loss at every step",
        ("vanishing-in-depth",),
        made(every, data(B, T, 1), rnn=lstm(I, 8, num_layers=14), head=linear(1, 8)),
    ),
    Case(
        "nine layers, trained by a few steps",
        ("vanishing-in-depth",),
        made(read_last, of_lag(1, 8), rnn=lstm(I, 8, num_layers=9), head=linear(1, 8)),
        training=Training(5, 1e-3),
    ),
    Case(
        "a GRU over 400 steps",
        ("window",),
        made(read_last, data(4, 1, x=(4, 400, I)), rnn=gru(I, 8), head=linear(1, 8)),
        least="info",
    ),
    Case(
        "an LSTM over 600 steps with a loss at every step",
        ("window",),
        made(every, data(3, 600, 1, x=(3, 600, I)), rnn=lstm(I, 8), head=linear(1, 8)),
        least="info",
    ),
    Case(
        "a loop over 300 steps",
        ("window",),
        made(
            loop_over,
            data(4, 1, x=(4, 300, I)),
            cell=lambda: nn.LSTMCell(I, 8),
            head=linear(1, 8),
        ),
        least="info",
    ),
    Case(
        "a rotation times 1.5, held by its inputs",
        ("misleading-radius",),
        rotation(0.64, 1.5, 4.0, 60),
        least="info",
    ),
    Case(
        "a rotation times 1.3, held by its inputs",
        ("misleading-radius",),
        rotation(0.3, 1.3, 3.0, 100),
        least="info",
    ),
    Case(
        "a rotation times 1.8, held by its inputs",
        ("misleading-radius",),
        rotation(1.1, 1.8, 4.5, 70),
        least="info",
    ),
    Case(
        "gradients that a hook halves at every step",
        (REFUSED, "void"),
        made(
            lambda m, x: _halving_loop(m, x),
            data(),
            cell=lambda: nn.GRUCell(I, H),
            head=linear(),
        ),
    ),
    Case(
        "gradients that a hook clamps at every step",
        (REFUSED, "void"),
        made(
            lambda m, x: _halving_loop(m, x, lambda gradient: gradient.clamp(-1e-3, 1e-3)),
            data(),
            cell=lambda: nn.GRUCell(I, H),
            head=linear(),
        ),
    ),
)

CASES = (*VANISHING, *EXPLODING, *GATES, *BALANCE, *DEPTH, *LONG, *NEW)
