"""Models with two troubles at once: both are to be told."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrograde.tasks.trial_set.case import Case, Training
from retrograde.tasks.trial_set.models import (
    B,
    H,
    I,
    T,
    beyond,
    changed,
    constant,
    data,
    every_step,
    gru,
    keeping_bias,
    last_states,
    lengths_of,
    linear,
    lstm,
    made,
    read_last,
    rnn,
    scaled,
)


def _padded(scale: float) -> tuple[Tensor, Tensor]:
    x = scale * torch.randn(32, 16, I)
    x[beyond(lengths_of(32, 16, 4), 16)] = 0.0
    return x, torch.randn(32, 1)


def _detaching(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(len(x), H)
    for step in x.unbind(1):
        h = m.cell(step, h.detach())
    read: Tensor = m.head(h)
    return read


def _drawn(m: Any, x: Tensor) -> Tensor:
    read: Tensor = m.head(m.rnn(x, torch.randn(1, len(x), H))[0][:, -1])
    return read


def _missing() -> tuple[Tensor, Tensor]:
    x, y = torch.randn(B, T, I), torch.randn(B, 1)
    y[3] = torch.nan
    return x, y


def _softmax(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).softmax(1), batch[1])


def _classes() -> tuple[Tensor, Tensor]:
    return torch.randn(B, T, I), torch.randint(0, 4, (B,))


CASES = (
    Case(
        "batch first not said, and targets of 10,000",
        ("samples-mixed",),
        made(
            read_last,
            lambda: (torch.randn(B, T, I), 1e4 + 1e3 * torch.randn(B, 1)),
            rnn=lambda: nn.LSTM(I, H),
            head=linear(),
        ),
        also=("target-scale",),
    ),
    Case(
        "padding is read, and features of 1,000",
        ("reads-padding",),
        made(read_last, lambda: _padded(1000.0), rnn=lstm(), head=linear()),
        also=("input-scale",),
    ),
    Case(
        "detached at every step, and softmax into cross_entropy",
        ("no-time",),
        made(_detaching, _classes, _softmax, cell=lambda: nn.GRUCell(I, H), head=linear(4)),
        also=("probabilities",),
    ),
    Case(
        "h_n[-1] of both directions, and [B, 1] against [B]",
        ("unreached",),
        made(
            lambda m, x: m.head(last_states(m.rnn, x)[-1]),
            data(B),
            rnn=lstm(bidirectional=True),
            head=linear(),
        ),
        also=("broadcast",),
    ),
    Case(
        "a missing target, and an initial state that is drawn",
        ("non-finite-data",),
        made(_drawn, _missing, rnn=gru(), head=linear()),
        also=("initial-state",),
    ),
    Case(
        "one constant everywhere, and targets of 10,000",
        ("units-alike",),
        made(
            read_last,
            lambda: (torch.randn(B, T, I), 1e4 + 1e3 * torch.randn(B, 1)),
            rnn=lambda: constant(lstm()(), 0.1),
            head=linear(),
        ),
        also=("target-scale",),
    ),
    Case(
        "ten layers, and [B, 1] against [B]",
        ("broadcast",),
        made(read_last, data(B), rnn=lstm(num_layers=10), head=linear()),
        also=("vanishing-in-depth",),
    ),
    Case(
        "features of 1,000, and targets of a million",
        ("input-scale",),
        made(
            read_last,
            lambda: (1e3 * torch.randn(B, T, I), 1e6 + 1e5 * torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
        also=("target-scale",),
    ),
    Case(
        "a doubled forget bias, and [B, 1] against [B]",
        ("broadcast",),
        made(read_last, data(B), rnn=changed(lstm(), keeping_bias(1.0, True)), head=linear()),
        also=("double-bias",),
    ),
    Case(
        "an exploding RNN, and softmax into cross_entropy",
        ("probabilities",),
        made(
            read_last,
            lambda: (torch.randn(B, 40, I), torch.randint(0, 4, (B,))),
            _softmax,
            rnn=changed(rnn(I, 16), scaled(8.0)),
            head=linear(4, 16),
        ),
        also=("exploding",),
    ),
    Case(
        "padding is read, and lag 12 is out of reach, trained",
        ("reads-padding",),
        made(
            read_last, lambda: _padded(1.0), rnn=changed(gru(), keeping_bias(-3.0)), head=linear()
        ),
        also=("forget-gate-too-short",),
        training=Training(20, 1e-3),
        options={"needs_lag": 12},
    ),
    Case(
        "a doubled forget bias, and sigmoid into the logits",
        ("probabilities",),
        made(
            every_step,
            lambda: (torch.randn(B, T, I), torch.rand(B, T, 1).round()),
            lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]).sigmoid(), b[1]),
            rnn=changed(lstm(), keeping_bias(1.5, True)),
            head=linear(),
        ),
        also=("double-bias",),
    ),
)
