"""Is there anything left to learn? Models that have learned what there is to learn."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retrograde.tasks.trial_set.case import Case, LossFunction, Training
from retrograde.tasks.trial_set.models import (
    cross_entropy,
    each_step,
    every_step,
    gru,
    linear,
    lstm,
    made,
    mse,
    read_last,
    rnn,
)


def sum_of_last_two() -> tuple[Tensor, Tensor]:
    """Numbers, and half the sum of the last two."""
    x = torch.randn(32, 10, 1)
    return x, x[:, -2:].mean(1)


def sign_of_last() -> tuple[Tensor, Tensor]:
    """Numbers, and whether the last one is positive; none of them is near 0."""
    x = torch.randn(48, 10, 2)
    x[:, -1, 0] += 0.7 * x[:, -1, 0].sign()
    return x, (x[:, -1, 0] > 0).long()


def delayed(lag: int, steps: int = 16) -> Callable[[], tuple[Tensor, Tensor]]:
    """At every step, what was read some steps before."""

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(32, steps, 1)
        y = x.roll(lag, 1)
        y[:, :lag] = 0.0
        return x, y

    return batch


def random_walk() -> tuple[Tensor, Tensor]:
    """A random walk of small steps, and where it is one step later."""
    walk = torch.randn(32, 1, 1) + 0.1 * torch.randn(32, 41, 1).cumsum(1)
    return walk[:, :-1], walk[:, 1:]


def running_parity() -> tuple[Tensor, Tensor]:
    """Bits, and whether the last two of them differ, at every step."""
    x = torch.randint(0, 2, (32, 12, 1)).float()
    before = x.roll(1, 1)
    before[:, 0] = 0.0
    return x, (x != before).long().squeeze(2)


def seasons() -> tuple[Tensor, Tensor]:
    """A season of twelve steps, and its next value."""
    time = torch.arange(37.0)[None, :, None]
    x = torch.sin(2 * torch.pi * (time / 12 + torch.rand(24, 1, 1)))
    return x[:, :-1], x[:, 1:]


def solved(
    name: str,
    batch: Callable[[], Any],
    layer: Callable[[], nn.Module],
    *,
    forward: Callable[..., Tensor] = read_last,
    loss: LossFunction = mse,
    outputs: int = 1,
    hidden: int = 16,
    steps: int = 250,
    **more: Any,
) -> Case:
    """A model that has been trained on fresh batches until little is left."""
    return Case(
        name,
        ("solved",),
        made(forward, batch, loss, rnn=layer, head=linear(outputs, hidden)),
        least="info",
        training=Training(steps, 1e-2),
        **more,
    )


CASES = (
    solved("the mean of the last two, learned by a GRU", sum_of_last_two, gru(1, 16)),
    solved(
        "the mean of the last two, learned by an LSTM, a lag named",
        sum_of_last_two,
        lstm(1, 16),
        options={"needs_lag": 8},
    ),
    solved(
        "what was read two steps before, learned at every step",
        delayed(2),
        lstm(1, 16),
        forward=every_step,
        steps=350,
    ),
    solved(
        "what was read last, learned by a plain RNN",
        delayed(1),
        rnn(1, 16),
        forward=every_step,
    ),
    solved("a random walk, learned by a GRU", random_walk, gru(1, 16), forward=every_step),
    solved(
        "a random walk, learned by an LSTM, a lag named",
        random_walk,
        lstm(1, 16),
        forward=every_step,
        options={"needs_lag": 30},
    ),
    solved(
        "the sign of the last number, learned by a GRU",
        sign_of_last,
        gru(2, 16),
        loss=cross_entropy,
        outputs=2,
        steps=350,
    ),
    solved(
        "whether two bits differ, learned by an LSTM",
        running_parity,
        lstm(1, 16),
        forward=every_step,
        loss=each_step,
        outputs=2,
    ),
    solved("the next value of a season, learned by a GRU", seasons, gru(1, 16), forward=every_step),
    solved(
        "the mean of the last two, learned in both directions",
        sum_of_last_two,
        gru(1, 16, bidirectional=True),
        forward=lambda m, x: m.head(m.rnn(x)[0].mean(1)),
        hidden=32,
        steps=400,
    ),
    solved(
        "the mean of the last two, learned by two layers, with absolute errors",
        sum_of_last_two,
        gru(1, 16, num_layers=2),
        loss=lambda m, b: F.l1_loss(m(b[0]), b[1]),
        steps=300,
    ),
)
