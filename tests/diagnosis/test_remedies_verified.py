"""For every kind of remedy that is called "trained better": a loop of plain torch says so too.

Each task is small and its effect large. What is called better is built again by hand, without
anything of this package, and trained on other seeds and other data.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

import retrograde
from retrograde.diagnosis import training

pytestmark = pytest.mark.usefixtures("unchecked")

SEEDS = (101, 102)


class Net(nn.Module):
    """A recurrent layer, read in some way, and a linear output layer."""

    def __init__(self, rnn, read, features):
        super().__init__()
        self.rnn, self.read, self.head = rnn, read, nn.Linear(features, 1)

    def forward(self, x):
        return self.head(self.read(self.rnn, x))


def last(rnn, x):
    return rnn(x)[0][-1]


def last_column(rnn, x):
    return rnn(x)[0][:, -1]


def data(seed, samples=24, steps=8, scale=1.0, units=1.0, column=-1):
    """Features [T, B, 2], and one of them at a step as the target."""
    x = torch.rand(steps, samples, 2, generator=torch.Generator().manual_seed(seed))
    return x * scale, units * (x[column, :, :1] - 0.5) + (units if units > 1 else 0)


def padded(seed, samples=16, steps=30):
    """Sequences of 3 to 29 steps, padded with zeros; the last real number is the target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(steps, samples, 2, generator=generator) + 0.1
    lengths = torch.arange(samples) * 26 // (samples - 1) + 3
    x[torch.arange(steps).unsqueeze(1) >= lengths] = 0
    return x, x[lengths - 1, torch.arange(samples), :1] - 0.6


def samples_first(seed):
    """Samples along the first axis; the mean of a sequence is the target."""
    x, _ = data(seed, samples=16, steps=5)
    return x.transpose(0, 1).contiguous(), 4 * (x[:, :, :1].mean(0) - 0.5)


def standardised(rnn, x):
    return last(rnn, (x - x.mean((0, 1))) / x.std((0, 1)))


def at_lengths(rnn, x):
    lengths = (x != 0).any(-1).sum(0)
    return rnn(x)[0][lengths - 1, torch.arange(x.shape[1])]


def last_state(rnn, x):
    return rnn(x)[1][-1]


def both_states(rnn, x):
    return rnn(x)[1][-2:].transpose(0, 1).flatten(1)


class Scaled(nn.Module):
    """Predictions in units of the target."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 1e4 + 3e3 * self.net(x)


class Stack(nn.Module):
    """Layers that add their output to what they read."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(2 if n == 0 else 6, 6) for n in range(7))

    def forward(self, x):
        x = self.layers[0](x)[0]
        for layer in self.layers[1:]:
            x = x + layer(x)[0]
        return x, None


def alike(rnn):
    for parameter in rnn.parameters():
        nn.init.constant_(parameter, 0.1)
    return rnn


def large(rnn):
    nn.init.normal_(rnn.weight_hh_l0, std=3.0)
    return rnn


class Task(NamedTuple):
    """What is learned, with what, what a remedy makes of it, and how it is trained."""

    batches: Callable
    make: Callable
    treated: Callable
    steps: int = 28
    rate: float = 3e-2
    treated_rate: float = 3e-2


CASES = {
    "standardise-input": Task(
        partial(data, scale=1e4),
        lambda: Net(nn.GRU(2, 6), last, 6),
        lambda: Net(nn.GRU(2, 6), standardised, 6),
    ),
    "standardise-target": Task(
        partial(data, units=1e4),
        lambda: Net(nn.GRU(2, 6), last, 6),
        lambda: Scaled(Net(nn.GRU(2, 6), last, 6)),
    ),
    "residual": Task(
        partial(data, steps=4),
        lambda: Net(nn.LSTM(2, 6, num_layers=7), last, 6),
        lambda: Net(Stack(), last, 6),
        steps=70,
    ),
    "fresh": Task(
        data,
        lambda: Net(large(nn.RNN(2, 12)), last, 12),
        lambda: Net(nn.RNN(2, 12), last, 12),
    ),
    "read-at-lengths": Task(
        padded,
        lambda: Net(nn.LSTM(2, 6), last, 6),
        lambda: Net(nn.LSTM(2, 6), at_lengths, 6),
    ),
    "both-directions": Task(
        partial(data, steps=14),
        lambda: Net(nn.GRU(2, 6, bidirectional=True), last_state, 6),
        lambda: Net(nn.GRU(2, 6, bidirectional=True), both_states, 12),
        steps=40,
    ),
    "batch-first": Task(
        samples_first,
        lambda: Net(nn.GRU(2, 6), last_column, 6),
        lambda: Net(nn.GRU(2, 6, batch_first=True), last_column, 6),
        steps=65,
    ),
    "lower-rate": Task(
        data,
        lambda: Net(large(nn.RNN(2, 12)), last, 12),
        lambda: Net(large(nn.RNN(2, 12)), last, 12),
        steps=40,
        rate=10.0,
        treated_rate=1.0,
    ),
}


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def learned(make, batches, seed, steps, rate):
    """The loss of fresh data after a plain training."""
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        x, y = batches(1000 * seed + step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        x, y = batches(seed)
        return float((model(x) - y).square().mean())


@pytest.mark.parametrize("remedy", CASES)
def test_a_plain_loop_trains_better_too(remedy, monkeypatch):
    # For the time it takes: findings of one batch, and of the remedies this one alone.
    monkeypatch.setattr(sys.modules["retrograde.report.diagnose"], "LOOKED_AT", 1)
    plan = training.plan
    monkeypatch.setattr(
        training, "plan", lambda *given: [pair for pair in plan(*given) if pair[1] == remedy]
    )
    task = CASES[remedy]
    torch.manual_seed(0)
    adam = partial(torch.optim.Adam, lr=task.rate)
    how = {"optimizer": adam, "try_training": task.steps, "budget": 600.0}
    report = retrograde.diagnose(task.make(), task.batches, loss_fn, **how)
    (trial, *_) = [t for f in report.findings for t in f.trials if t.remedy == remedy]
    assert trial.verdict == "trained better", trial.training
    assert trial.recommended and trial.training.difference < 0
    for seed in SEEDS:
        given = (task.batches, seed, task.steps)
        treated = learned(task.treated, *given, task.treated_rate)
        assert treated < learned(task.make, *given, task.rate)
