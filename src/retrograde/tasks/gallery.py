"""Sick models, each made sick in one known way, and healthy ones: what the diagnosis is held to.

python -m retrograde.tasks.gallery        prints which rule comes first for each of them
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis import limits
from retrograde.diagnosis.examine import examine
from retrograde.diagnosis.finding import Finding, at_least
from retrograde.nn import LSTM, initialise

Batch = tuple[Tensor, Tensor]
Made = tuple["Forecaster", Batch]

FEATURES, BATCH, HIDDEN = 3, 8, 16


class Forecaster(nn.Module):
    """A recurrent layer and a linear output layer, read at the last step or at every one."""

    recurrent: Any

    def __init__(self, recurrent: nn.Module, size: int = HIDDEN, last: bool = True):
        super().__init__()
        self.recurrent, self.head, self.last = recurrent, nn.Linear(size, 1), last

    def forward(self, x: Tensor) -> Tensor:
        """x [T, B, I] to a forecast [B, 1], or [T, B, 1]."""
        h = self.recurrent(x)[0]
        forecast: Tensor = self.head(h[-1] if self.last else h)
        return forecast


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error."""
    x, y = batch
    loss: Tensor = (model(x) - y).square().mean()
    return loss


@dataclass(frozen=True)
class Case:
    """A model with its batch, and the rule that must come first.

    Attributes:
        name: what was done to it.
        make: gives model and batch, from torch's random numbers.
        expected: the rule; None for a healthy model.
        options: further arguments of the examination.
    """

    name: str
    make: Callable[[], Made]
    expected: str | None
    options: dict[str, Any] = field(default_factory=dict)


def _data(steps: int, last: bool = True) -> Batch:
    shape = (BATCH, 1) if last else (steps, BATCH, 1)
    return torch.randn(steps, BATCH, FEATURES), torch.randn(shape)


def _changed(
    kind: Callable[..., nn.Module],
    *changes: Callable[[Any], object],
    steps: int = 40,
    last: bool = True,
    hidden: int = HIDDEN,
    **options: Any,
) -> Callable[[], Made]:
    """A model whose recurrent layer is changed in place, on random numbers."""

    def make() -> Made:
        model = Forecaster(kind(FEATURES, hidden, **options), hidden, last)
        with torch.no_grad():
            for change in changes:
                change(model.recurrent)
        return model, _data(steps, last)

    return make


def _recurrent_weights(layer: nn.Module) -> list[Tensor]:
    return [w for name, w in layer.named_parameters() if name.startswith("weight_hh")]


def _scaled(factor: float) -> Callable[[Any], None]:
    def change(layer: nn.Module) -> None:
        for weight in _recurrent_weights(layer):
            weight *= factor

    return change


def _orthogonal(gain: float) -> Callable[[Any], None]:
    def change(layer: nn.Module) -> None:
        for weight in _recurrent_weights(layer):
            nn.init.orthogonal_(weight, gain)

    return change


def _positive(radius: float) -> Callable[[Any], None]:
    """Positive weights of this spectral radius, on which all relu units stay active."""

    def change(layer: Any) -> None:
        weight = layer.weight_hh_l0.abs_()
        weight *= radius / torch.linalg.eigvals(weight).abs().max()
        layer.bias_ih_l0.fill_(1.0)

    return change


def _keeping_bias(value: float, both: bool = False) -> Callable[[Any], None]:
    """The bias of the second gate: an LSTM's forget gate, a GRU's update gate."""

    def change(layer: Any) -> None:
        gate = slice(layer.hidden_size, 2 * layer.hidden_size)
        layer.bias_ih_l0[gate] = value
        layer.bias_hh_l0[gate] = value if both else 0.0

    return change


def _chrono(horizon: int) -> Callable[[Any], None]:
    return partial(initialise, name="chrono", horizon=horizon)


def _nan_in_a_gate(layer: Any) -> None:
    layer.weight_hh_l0[2 * HIDDEN + 3, 1] = torch.nan


def _half_dead(layer: Any) -> None:
    layer.bias_ih_l0[: HIDDEN // 2] = -20.0
    layer.weight_hh_l0 *= 0.5


def _identity(layer: Any) -> None:
    nn.init.eye_(layer.weight_hh_l0)


def _input_not_scaled() -> Made:
    model, (x, y) = _changed(nn.LSTM)()
    return model, (1000 + 400 * x, y)


def _infinite_input() -> Made:
    model, (x, y) = _changed(nn.GRU)()
    x[11, 2, 1] = torch.inf
    return model, (x, y)


def _output_layer(factor: float) -> Callable[[], Made]:
    def make() -> Made:
        model, batch = _changed(nn.LSTM, _keeping_bias(3.0))()
        with torch.no_grad():
            model.head.weight *= factor
        return model, batch

    return make


def _frozen_zeros() -> Made:
    model, batch = _output_layer(0.0)()
    model.head.requires_grad_(False)
    return model, batch


def _near_lags() -> Made:
    """A fast unit that the loss is about, and a slow one with a twentieth of its weight."""
    model = Forecaster(nn.RNN(FEATURES, 2, bias=False), 2, last=False)
    with torch.no_grad():
        model.recurrent.weight_hh_l0.copy_(torch.diag(torch.tensor([0.0, 1.0])))
        model.recurrent.weight_ih_l0.copy_(torch.tensor([[0.5], [0.02]]).expand(2, FEATURES))
        model.head.weight.copy_(torch.tensor([[1.0, 0.05]]))
        model.head.bias.zero_()
    return model, (torch.randn(80, 32, FEATURES), torch.zeros(80, 32, 1))


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
    return model, (x, y)


def _drifting_state() -> Made:
    model, (x, y) = _changed(LSTM, steps=80, generation="nfg")()
    with torch.no_grad():
        model.recurrent.bias_ih_l0 += 1.0
    return model, (x + 1, y)


def _season() -> Made:
    """A season of 24 steps in the input, and a plain RNN that sees a few."""
    time = torch.arange(96.0).view(-1, 1, 1)
    phase = torch.randn(1, BATCH, FEATURES)
    x = torch.sin(2 * torch.pi * time / 24 + phase) + 0.2 * torch.randn(96, BATCH, FEATURES)
    return Forecaster(nn.RNN(FEATURES, HIDDEN)), (x, torch.randn(BATCH, 1))


class _Detaching(nn.Module):
    """A layer whose state is detached every ten steps."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        state = None
        for part in torch.split(x, 10):
            h, state = self.layer(part, state)
            state = tuple(piece.detach() for piece in state)
        return h, state


def _detached() -> Made:
    model, batch = _changed(nn.LSTM, _keeping_bias(4.0))()
    model.recurrent = _Detaching(model.recurrent)
    return model, batch


SICK: Sequence[Case] = (
    Case(
        "tiny recurrent weights (RNN)",
        _changed(nn.RNN, _scaled(0.01)),
        "vanishing",
        {"needs_lag": 20},
    ),
    Case(
        "a named lag beyond its reach",
        _changed(nn.RNN, _orthogonal(0.8)),
        "vanishing",
        {"needs_lag": 30},
    ),
    Case("a season beyond its reach", _season, "vanishing", {"needs_lag": 24}),
    Case("state detached every 10 steps", _detached, "no-time", {"needs_lag": 20}),
    Case("huge recurrent weights (RNN)", _changed(nn.RNN, _scaled(8.0)), "exploding"),
    Case("huge recurrent weights (LSTM)", _changed(nn.LSTM, _scaled(20.0), steps=60), "exploding"),
    Case(
        "large recurrent weights, open forget gate",
        _changed(nn.LSTM, _scaled(12.0), _keeping_bias(3.0), steps=60, hidden=32),
        "exploding",
    ),
    Case(
        "relu RNN, spectral radius 1.3",
        _changed(nn.RNN, _positive(1.3), steps=60, nonlinearity="relu"),
        "exploding",
    ),
    Case("input that is not scaled", _input_not_scaled, "input-scale"),
    Case("a cell state that drifts (no forget gate)", _drifting_state, "saturated"),
    Case(
        "forget bias -2",
        _changed(nn.LSTM, _keeping_bias(-2.0), steps=60),
        "forget-gate-too-short",
        {"needs_lag": 30},
    ),
    Case(
        "update gate shut (GRU)",
        _changed(nn.GRU, _keeping_bias(-3.0), steps=60),
        "forget-gate-too-short",
        {"needs_lag": 30},
    ),
    Case(
        "half of the relu units dead",
        _changed(nn.RNN, _half_dead, steps=10, nonlinearity="relu"),
        "dead-units",
    ),
    Case(
        "forget bias 1 in both biases",
        _changed(nn.LSTM, _keeping_bias(1.0, both=True)),
        "double-bias",
    ),
    Case("NaN in one gate", _changed(nn.LSTM, _nan_in_a_gate), "non-finite"),
    Case("infinity in the input", _infinite_input, "non-finite-data"),
    Case(
        "states beyond float32",
        _changed(nn.RNN, _orthogonal(4.0), steps=120, nonlinearity="relu"),
        "non-finite",
    ),
    Case("frozen output layer of zeros", _frozen_zeros, "no-gradient"),
    Case("output layer times 100", _output_layer(100.0), "output-outweighs"),
    Case("a fast unit drowns a slow one", _near_lags, "near-lags-dominate", {"needs_lag": 40}),
    Case("near and far errors opposed", _conflict, "conflicting-lags"),
)

HEALTHY: Sequence[Case] = (
    Case("LSTM, forget bias 3", _changed(nn.LSTM, _keeping_bias(3.0)), None),
    Case("LSTM, chrono", _changed(nn.LSTM, _chrono(60), steps=60), None, {"needs_lag": 30}),
    Case(
        "LSTM, loss at every step",
        _changed(nn.LSTM, _keeping_bias(2.0), steps=30, last=False),
        None,
    ),
    Case("output layer of zeros", _output_layer(0.0), None),
    Case("output layer times 0.001", _output_layer(0.001), None),
    Case("LSTM, two layers", _changed(nn.LSTM, steps=20, num_layers=2), None),
    Case("GRU, torch's default, short", _changed(nn.GRU, steps=20), None),
    Case("GRU, chrono, a lag named", _changed(nn.GRU, _chrono(40)), None, {"needs_lag": 15}),
    Case("RNN, orthogonal", _changed(nn.RNN, _orthogonal(1.0)), None),
    Case("relu RNN, identity", _changed(nn.RNN, _identity, steps=30, nonlinearity="relu"), None),
)


def findings(case: Case, seed: int = 0) -> tuple[Finding, ...]:
    """What the rules find in a case, without trying remedies."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, batch = case.make()
    return examine(model, batch, loss_fn, limits(), remedies=False, **case.options).findings


def confusion(seeds: Sequence[int] = (0,)) -> str:
    """For each rule how many models it was meant for, and which rule came first in them."""
    counts: dict[str, dict[str, int]] = {}
    for case in (*SICK, *HEALTHY):
        for seed in seeds:
            found = findings(case, seed)
            serious = [finding for finding in found if at_least(finding.severity, "warning")]
            first = serious[0].rule if serious else "ok"
            row = counts.setdefault(case.expected or "ok", {})
            row[first] = row.get(first, 0) + 1
    lines = [f"{'made sick with':24}{'models':>7}   comes first"]
    for expected, row in counts.items():
        told = ", ".join(f"{name} {count}" for name, count in row.items())
        lines.append(f"{expected:24}{sum(row.values()):7}   {told}")
    right = sum(row.get(expected, 0) for expected, row in counts.items())
    lines.append(f"{'right':24}{right:7}   of {sum(sum(row.values()) for row in counts.values())}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(confusion(range(4)))
