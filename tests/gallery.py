"""Sick models, each made sick in one known way, and healthy ones: what the diagnosis is held to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


class Forecaster(nn.Module):
    """A recurrent layer and a linear output layer, as most people write it."""

    def __init__(self, recurrent: nn.Module, size: int, last: bool = True):
        super().__init__()
        self.recurrent, self.head, self.last = recurrent, nn.Linear(size, 1), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.recurrent(x)[0]
        return self.head(h[-1] if self.last else h)


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


@dataclass(frozen=True)
class Case:
    """A model, its batch, and the rule that must come first; None for a healthy one.

    Attributes:
        name: what was done to it.
        make: gives the model and its batch.
        expected: the rule.
        options: further arguments of `diagnose`.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Any]]
    expected: str | None
    options: dict[str, Any] = field(default_factory=dict)


def data(steps: int = 40, batch: int = 8, features: int = 3, last: bool = True) -> Any:
    shape = (batch, 1) if last else (steps, batch, 1)
    return torch.randn(steps, batch, features), torch.randn(shape)


def model(
    kind: Callable[..., nn.Module], hidden: int = 16, last: bool = True, **options: Any
) -> Forecaster:
    return Forecaster(kind(3, hidden, **options), hidden, last)


def changed(make: Callable[[], Forecaster], change: Callable[[Any], Any], **shape: Any) -> Any:
    """A model whose recurrent layer was changed in place."""

    def made() -> tuple[nn.Module, Any]:
        whole = make()
        with torch.no_grad():
            change(whole.recurrent)
        return whole, data(**shape)

    return made


def scaled(factor: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        for name, weight in layer.named_parameters():
            if name.startswith("weight_hh"):
                weight *= factor

    return change


def bias(value: float, both: bool = False, gate: int = 1) -> Callable[[Any], None]:
    """Set the forget gate's bias, in both biases or in one."""

    def change(layer: Any) -> None:
        size = layer.hidden_size
        for name, weight in layer.named_parameters():
            if name.startswith("bias"):
                first = name.startswith("bias_ih")
                weight[gate * size : (gate + 1) * size] = value if first or both else 0.0

    return change


def orthogonal(gain: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        for name, weight in layer.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(weight, gain)

    return change


def positive(radius: float) -> Callable[[Any], None]:
    """Positive weights of this spectral radius: all units stay active."""

    def change(layer: Any) -> None:
        weight = layer.weight_hh_l0.abs_()
        weight *= radius / torch.linalg.eigvals(weight).abs().max()
        layer.bias_ih_l0.fill_(1.0)

    return change


def nan_in_a_gate(layer: Any) -> None:
    layer.weight_hh_l0[2 * layer.hidden_size + 3, 1] = torch.nan


def dying(layer: Any) -> None:
    layer.bias_ih_l0[: layer.hidden_size // 2] = -20.0
    layer.weight_hh_l0 *= 0.5


def chrono(horizon: int) -> Callable[[Any], None]:
    import retrograde

    return lambda layer: retrograde.nn.initialise(layer, "chrono", horizon=horizon)


def unscaled() -> tuple[nn.Module, Any]:
    x, y = data()
    return model(nn.LSTM), (1000 + 400 * x, y)


def loud_output(factor: float) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        whole = model(nn.LSTM)
        with torch.no_grad():
            whole.head.weight *= factor
            bias(3.0)(whole.recurrent)
        return whole, data()

    return make


def infinite_input() -> tuple[nn.Module, Any]:
    x, y = data()
    x[11, 2, 1] = torch.inf
    return model(nn.GRU), (x, y)


def overflowing() -> tuple[nn.Module, Any]:
    whole = model(nn.RNN, nonlinearity="relu")
    with torch.no_grad():
        orthogonal(4.0)(whole.recurrent)
    return whole, data(steps=120)


def near_lags() -> tuple[nn.Module, Any]:
    """A fast unit that the loss is about, and a slow one with a twentieth of its weight."""
    whole = model(nn.RNN, hidden=2, last=False, bias=False)
    with torch.no_grad():
        whole.recurrent.weight_hh_l0.copy_(torch.diag(torch.tensor([0.0, 1.0])))
        whole.recurrent.weight_ih_l0.copy_(torch.tensor([[0.5], [0.02]]).expand(2, 3))
        whole.head.bias.zero_()
        whole.head.weight.copy_(torch.tensor([[1.0, 0.05]]))
    x, y = data(steps=80, batch=32, last=False)
    return whole, (x, 0 * y)


def conflict() -> tuple[nn.Module, Any]:
    """A sum over time that is too large at step 10 and too small at the end."""
    whole = Forecaster(nn.RNN(1, 1, nonlinearity="relu"), 1, last=False)
    with torch.no_grad():
        for weight in whole.parameters():
            weight.fill_(1.0)
        whole.recurrent.bias_ih_l0.zero_(), whole.recurrent.bias_hh_l0.zero_()
        x = 0.01 * torch.rand(31, 8, 1)
        y = whole(x)
        y[10] -= 3.0
        y[-1] += 1.0
    return whole, (x, y)


def drifting() -> tuple[nn.Module, Any]:
    import retrograde

    whole = model(retrograde.nn.LSTM, generation="nfg")
    x, y = data(steps=80)
    with torch.no_grad():
        whole.recurrent.bias_ih_l0 += 1.0
    return whole, (x + 1, y)


def season() -> tuple[nn.Module, Any]:
    """A season of 24 steps in the input, and a plain RNN that sees a few."""
    time = torch.arange(96.0).view(-1, 1, 1)
    x = torch.sin(time * 2 * torch.pi / 24 + torch.randn(1, 8, 3)) + 0.2 * torch.randn(96, 8, 3)
    return model(nn.RNN), (x, torch.randn(8, 1))


def detached() -> tuple[nn.Module, Any]:
    class Truncated(Forecaster):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = None
            for part in x.split(10):
                h, state = self.recurrent(part, state)
                state = tuple(s.detach() for s in state)
            return self.head(h[-1])

    whole = Truncated(nn.LSTM(3, 16), 16)
    with torch.no_grad():
        bias(4.0)(whole.recurrent)
    return whole, data()


SICK = [
    Case("tiny recurrent weights", changed(lambda: model(nn.RNN), scaled(0.01)), "vanishing"),
    Case(
        "huge recurrent weights (LSTM)",
        changed(lambda: model(nn.LSTM), scaled(20.0), steps=60),
        "exploding",
    ),
    Case("huge recurrent weights (RNN)", changed(lambda: model(nn.RNN), scaled(8.0)), "exploding"),
    Case("input that is not scaled", unscaled, "saturated"),
    Case(
        "forget bias -2",
        changed(lambda: model(nn.LSTM), bias(-2.0), steps=60),
        "forget-gate-too-short",
    ),
    Case(
        "a lag beyond its reach",
        changed(lambda: model(nn.RNN), orthogonal(0.8)),
        "vanishing",
        {"needs_lag": 30},
    ),
    Case(
        "relu RNN, spectral radius 1.3",
        changed(lambda: model(nn.RNN, nonlinearity="relu"), positive(1.3), steps=60),
        "exploding",
    ),
    Case(
        "half of the relu units dead",
        changed(lambda: model(nn.RNN, nonlinearity="relu"), dying, steps=10),
        "dead-units",
    ),
    Case("NaN in one gate", changed(lambda: model(nn.LSTM), nan_in_a_gate), "non-finite"),
    Case("infinity in the input", infinite_input, "non-finite"),
    Case("gradient beyond float32", overflowing, "non-finite"),
    Case(
        "forget bias 1 in both biases",
        changed(lambda: model(nn.LSTM), bias(1.0, both=True)),
        "double-bias",
    ),
    Case("output layer times 100", loud_output(100.0), "output-outweighs"),
    Case("output layer times 0.001", loud_output(0.001), "output-outweighs"),
    Case("asked at every step for the last", near_lags, "near-lags-dominate", {"needs_lag": 40}),
    Case("near and far errors opposed", conflict, "conflicting-lags"),
    Case("cell state that drifts", drifting, "saturated"),
    Case("a season out of reach", season, "vanishing"),
    Case("state detached every 10 steps", detached, "vanishing", {"needs_lag": 20}),
    Case(
        "update gate shut (GRU)",
        changed(lambda: model(nn.GRU), bias(-3.0), steps=60),
        "forget-gate-too-short",
    ),
    Case(
        "exploding through the gates (LSTM)",
        changed(
            lambda: model(nn.LSTM, hidden=32),
            lambda layer: (scaled(12.0)(layer), bias(3.0)(layer)),
            steps=60,
        ),
        "exploding",
    ),
]

HEALTHY = [
    Case("LSTM, forget bias 3", changed(lambda: model(nn.LSTM), bias(3.0)), None),
    Case(
        "LSTM, chrono",
        changed(lambda: model(nn.LSTM), chrono(60), steps=60),
        None,
        {"needs_lag": 30},
    ),
    Case(
        "GRU, torch's default, short",
        changed(lambda: model(nn.GRU), lambda layer: None, steps=20),
        None,
    ),
    Case("RNN, orthogonal", changed(lambda: model(nn.RNN), orthogonal(1.0)), None),
    Case(
        "two LSTM layers",
        changed(lambda: model(nn.LSTM, num_layers=2), lambda layer: None, steps=20),
        None,
    ),
    Case(
        "LSTM, loss at every step",
        changed(lambda: model(nn.LSTM, last=False), bias(2.0), steps=30, last=False),
        None,
    ),
    Case(
        "relu RNN, identity",
        changed(
            lambda: model(nn.RNN, nonlinearity="relu"),
            lambda layer: nn.init.eye_(layer.weight_hh_l0),
            steps=30,
        ),
        None,
    ),
    Case(
        "GRU, chrono, lag named",
        changed(lambda: model(nn.GRU), chrono(40), steps=40),
        None,
        {"needs_lag": 15},
    ),
]
