"""Cases that were added after the set was split: neighbours of the others, to develop on."""

import math
from dataclasses import replace
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
    by_hand,
    changed,
    compared,
    cross_entropy,
    data,
    each_step,
    every_step,
    gru,
    keeping_bias,
    last_states,
    lengths_of,
    linear,
    lstm,
    made,
    mse,
    packed_out,
    read_last,
    regression,
    rnn,
)

# ------------------------------------------------------------------------------- sick


def _handed_over(m: Any, x: Tensor) -> Tensor:
    """Both directions of an encoder, viewed as one state of twice the size."""
    state = m.encoder(x)[1].view(1, len(x), -1)
    read: Tensor = m.head(m.decoder(x[:, :4], state)[0])
    return read


def _cut_cell_state(m: Any, x: Tensor) -> Tensor:
    """Both pieces of the state are detached every second step."""
    h = c = x.new_zeros(len(x), H)
    for number, step in enumerate(x.unbind(1)):
        if number % 2 == 0:
            h, c = h.detach(), c.detach()
        h, c = m.cell(step, (h, c))
    read: Tensor = m.head(h)
    return read


def _empty_rows(m: Any, x: Tensor, counts: Tensor) -> Tensor:
    """Attention over the steps that count; in one sample, none does."""
    h = m.rnn(x)[0]
    scores = m.score(h).squeeze(2).masked_fill(counts == 0, -math.inf)
    read: Tensor = m.head((scores.softmax(1)[..., None] * h).sum(1))
    return read


def _counted() -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.ones(B, T)
    counts[2] = 0.0
    return torch.randn(B, T, I), counts, torch.randn(B, 1)


class HalfDetached(nn.Module):
    """An LSTM that carries its state on and detaches h alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(I, H, batch_first=True), nn.Linear(H, 1)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, I] to [B, T, 1]."""
        out, (h, c) = self.rnn(x, self.state)
        self.state = h.detach(), c
        read: Tensor = self.head(out)
        return read


def _normalised_over_time(m: Any, x: Tensor) -> Tensor:
    """Probabilities of the classes, normalised over the steps instead."""
    read: Tensor = every_step(m, x).softmax(1)
    return read


def _swapped_at_every_step(m: Any, x: Tensor) -> Tensor:
    """Outputs [T, B, H] viewed as [B, T, H], and a target at every step."""
    read: Tensor = m.head(m.rnn(x.transpose(0, 1))[0].reshape(len(x), -1, H))
    return read


SICK = (
    Case(
        "both directions of an encoder viewed as one state",
        ("samples-mixed",),
        made(
            _handed_over,
            data(B, 4, 1),
            encoder=gru(bidirectional=True),
            decoder=gru(I, 2 * H),
            head=linear(1, 2 * H),
        ),
    ),
    Case(
        "outputs viewed with the axes swapped, a target at every step",
        ("samples-mixed",),
        made(_swapped_at_every_step, data(B, T, 1), rnn=lambda: nn.GRU(I, H), head=linear()),
    ),
    Case(
        "the last sample for the last step",
        ("samples-mixed",),
        made(lambda m, x: m.head(m.rnn(x)[0][-1]), data(x=(B, B, I)), rnn=lstm(), head=linear()),
    ),
    Case(
        "an encoder that gives one number to all samples",
        ("samples-mixed",),
        made(
            lambda m, x: m.head(m.rnn(x)[0][:, -1].mean(0, keepdim=True)).expand(len(x), 1),
            data(),
            rnn=gru(),
            head=linear(),
        ),
    ),
    Case(
        "the first output of one direction",
        ("unreached", "no-time"),
        regression(lambda layer, x: layer(x)[0][:, 0], gru()),
    ),
    Case(
        "the second of three layers is what is read",
        ("unreached",),
        regression(lambda layer, x: layer(x)[1][1], gru(num_layers=3)),
    ),
    Case(
        "h and c detached every second step, lag 6",
        ("no-time",),
        made(_cut_cell_state, data(), cell=lambda: nn.LSTMCell(I, H), head=linear()),
        strength="mild",
        options={"needs_lag": 6},
    ),
    Case(
        "lengths that say nothing of the padding",
        ("reads-padding",),
        made(
            lambda m, x: m.head(last_states(m.rnn, x)[-1]),
            lambda: (
                torch.randn(16, 14, I) * ~beyond(lengths_of(16, 14, 4), 14)[..., None],
                torch.randn(16, 1),
            ),
            rnn=lstm(num_layers=2),
            head=linear(),
        ),
    ),
    Case(
        "h is detached and c is not",
        ("kept-graph",),
        lambda: (HalfDetached(), data(B, T, 1)(), mse),
    ),
    Case(
        "attention over no step at all",
        ("non-finite-loss", "non-finite"),
        made(_empty_rows, _counted, rnn=gru(), score=linear(), head=linear()),
    ),
    Case(
        "features beyond float16",
        ("non-finite-data", "precision"),
        made(
            every_step,
            lambda: ((1e5 * torch.randn(B, T, I)).half(), torch.randn(B, T, 1).half()),
            rnn=lambda: gru()().half(),
            head=lambda: linear()().half(),
        ),
    ),
    Case(
        "probabilities normalised over the steps",
        ("probabilities",),
        made(
            _normalised_over_time,
            lambda: (torch.randn(B, T, I), torch.randint(0, 4, (B, T))),
            each_step,
            rnn=lstm(),
            head=linear(4),
        ),
    ),
    Case(
        "dropout of everything",
        ("no-gradient", "unreached"),
        made(
            lambda m, x: m.head(F.dropout(m.rnn(x)[0][:, -1], 1.0)),
            data(),
            rnn=gru(),
            head=linear(),
        ),
    ),
    Case(
        "[B, 1] against [B], l1, predictions of both directions",
        ("broadcast",),
        made(
            lambda m, x: m.head(m.rnn(x)[0].mean(1)),
            data(B),
            lambda m, b: (m(b[0]) - b[1]).abs().sum(),
            rnn=gru(bidirectional=True),
            head=linear(1, 2 * H),
        ),
    ),
    Case(
        "features of 300 into a plain RNN",
        ("input-scale",),
        made(
            read_last,
            lambda: (300 + 50 * torch.randn(B, T, I), torch.randn(B, 1)),
            rnn=rnn(I, 12),
            head=linear(1, 12),
        ),
    ),
    Case(
        "a tanh at the end, targets up to 5, trained",
        ("target-scale",),
        made(
            lambda m, x: read_last(m, x).tanh(),
            lambda: (x := torch.randn(32, 8, I), 2 * x[:, -2:].sum((1, 2))[:, None]),
            rnn=gru(I, 12),
            head=linear(1, 12),
        ),
        training=Training(80),
    ),
)

# ------------------------------------------------------------------------------- healthy


def _next_value(m: Any, x: Tensor) -> Tensor:
    read: Tensor = m.head(m.rnn(m.norm(x.flatten(0, 1)).view_as(x))[0][:, -1])
    return read


def _weighted(model: nn.Module, batch: Any) -> Tensor:
    x, y, weight = batch
    loss: Tensor = ((model(x) - y).square().squeeze(1) * weight).sum() / weight.sum()
    return loss


def _with_missing(model: nn.Module, batch: Any) -> Tensor:
    x, y, known = batch
    loss: Tensor = ((model(x) - y).square() * known).sum() / known.sum()
    return loss


def _zoneout(m: Any, x: Tensor) -> Tensor:
    """Parts of the state are kept at random."""
    h = x.new_zeros(len(x), H)
    for step in x.unbind(1):
        h = torch.where(torch.rand(h.shape) < 0.2, h, m.norm(m.cell(step, h)))
    read: Tensor = m.head(h)
    return read


def _sampled(m: Any, x: Tensor) -> Tensor:
    """Half of the inputs of a decoder are its own outputs, chosen at random."""
    h, last, out = m.encoder(x)[1][0], x[:, -1, :1], []
    for step in range(5):
        h = m.cell(last, h)
        own = m.head(h)
        out.append(own)
        last = own if torch.rand(()) < 0.5 else x[:, step, :1]
    return torch.stack(out, 1)


def _held_at_weekends() -> tuple[Tensor, Tensor]:
    """Prices that stand still for two of seven days; some windows end there."""
    days = torch.arange(28)[None] + torch.randint(0, 7, (24, 1))
    steps = torch.randn(24, 28, 1) * ((days % 7) < 5)[..., None]
    return 0.3 * steps.cumsum(1), torch.randn(24, 1)


def _dry_ends() -> tuple[Tensor, Tensor]:
    """Rain and temperature; in many samples it does not rain at the end."""
    rain = torch.rand(24, 20, 1) * (torch.rand(24, 20, 1) < 0.2)
    return torch.cat((rain, torch.randn(24, 20, 1)), 2), torch.randn(24, 1)


def _siamese(model: nn.Module, batch: Any) -> Tensor:
    one, other, alike = batch
    return F.binary_cross_entropy_with_logits(-(model(one) - model(other)).square().sum(1), alike)


def _two_tasks(model: nn.Module, batch: Any) -> Tensor:
    x, y, label = batch
    number, logits = model(x)
    return F.mse_loss(number, y) + 0.3 * F.cross_entropy(logits, label)


def _towards_itself(model: Any, batch: Any) -> Tensor:
    """The value of a step is to be the reward and the value of the next."""
    x, reward = batch
    value = model(x)
    return F.mse_loss(value[:, :-1], reward[:, :-1] + 0.9 * value[:, 1:].detach())


def _allowed(m: Any, x: Tensor, allowed: Tensor) -> Tensor:
    return read_last(m, x).masked_fill(~allowed, -math.inf)


def _counting() -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 2, (32, 12, 1)).float()
    return x, x.cumsum(1) / 12


HEALTHY = (
    Case(
        "features of 10,000 that a batch norm standardises",
        (),
        made(
            _next_value,
            lambda: (1e4 + 3e3 * torch.randn(24, T, I), torch.randn(24, 1)),
            norm=lambda: nn.BatchNorm1d(I),
            rnn=lstm(I, 16),
            head=linear(1, 16),
        ),
    ),
    Case(
        "errors weighted sample by sample",
        (),
        made(
            read_last,
            lambda: (torch.randn(B, T, I), torch.randn(B, 1), torch.rand(B)),
            _weighted,
            rnn=gru(),
            head=linear(),
        ),
    ),
    Case(
        "targets of which most are missing",
        (),
        made(
            every_step,
            lambda: (
                torch.randn(9, 20, I),
                torch.randn(9, 20, 1),
                1.0 * (torch.rand(9, 20, 1) < 0.3),
            ),
            _with_missing,
            rnn=lstm(),
            head=linear(),
        ),
    ),
    Case(
        "zoneout and layer normalisation in a loop",
        (),
        made(
            _zoneout,
            data(),
            cell=lambda: nn.GRUCell(I, H),
            norm=lambda: nn.LayerNorm(H),
            head=linear(),
        ),
    ),
    Case(
        "scheduled sampling",
        (),
        made(
            _sampled,
            data(B, 5, 1),
            encoder=gru(),
            cell=lambda: nn.GRUCell(1, H),
            head=linear(),
        ),
    ),
    Case(
        "prices that stand still at weekends",
        (),
        made(read_last, _held_at_weekends, rnn=gru(1, 16), head=linear(1, 16)),
    ),
    Case(
        "rain that has stopped", (), made(read_last, _dry_ends, rnn=lstm(2, 16), head=linear(1, 16))
    ),
    Case(
        "two sequences, one network",
        (),
        made(
            lambda m, x: m.rnn(x)[1][-1],
            lambda: (torch.randn(B, T, I), torch.randn(B, T, I), torch.rand(B).round()),
            _siamese,
            rnn=gru(I, 8),
        ),
    ),
    Case(
        "two tasks",
        (),
        made(
            lambda m, x: (read_last(m, x), m.other(m.rnn(x)[0].mean(1))),  # type: ignore[arg-type,return-value]
            lambda: (torch.randn(B, T, I), torch.randn(B, 1), torch.randint(0, 3, (B,))),
            _two_tasks,
            rnn=lstm(),
            head=linear(),
            other=linear(3),
        ),
    ),
    Case(
        "values learned from themselves",
        (),
        made(every_step, data(B, T, 1), _towards_itself, rnn=gru(), head=linear()),
    ),
    Case(
        "actions that are not allowed",
        (),
        made(
            _allowed,
            lambda: (torch.randn(B, T, I), torch.arange(5) < 4, torch.randint(0, 4, (B,))),
            cross_entropy,
            rnn=gru(),
            head=linear(5),
        ),
    ),
    Case(
        "the sum of squared errors of a large batch",
        (),
        made(
            every_step,
            data(40, 30, 1, x=(40, 30, I)),
            by_hand(lambda d: d.square().sum()),
            rnn=lstm(I, 16),
            head=linear(1, 16),
        ),
    ),
    Case(
        "one long sample",
        (),
        made(every_step, data(1, 60, 1, x=(1, 60, I)), rnn=gru(I, 12), head=linear(1, 12)),
    ),
    Case(
        "the largest output of all steps",
        (),
        made(lambda m, x: m.head(m.rnn(x)[0].amax(1)), data(), rnn=lstm(I, 12), head=linear(1, 12)),
    ),
    Case(
        "an LSTM that projects its state",
        (),
        made(read_last, data(), rnn=lstm(I, 12, proj_size=4), head=linear(1, 4)),
    ),
    Case(
        "tokens with frozen embeddings",
        (),
        made(
            lambda m, x: m.head(m.rnn(m.embed(x))[0][:, -1]),
            lambda: (torch.randint(0, 50, (B, T)), torch.randint(0, 3, (B,))),
            cross_entropy,
            embed=lambda: nn.Embedding(50, 8).requires_grad_(False),
            rnn=gru(8, 16),
            head=linear(3, 16),
        ),
    ),
    Case(
        "targets of about 5",
        (),
        compared(mse, lambda: 5 + 3 * torch.randn(B, 1)),
    ),
    Case(
        "counting, learned by an LSTM",
        (),
        made(every_step, _counting, rnn=lstm(1, 16), head=linear(1, 16)),
        training=Training(200, 1e-2),
    ),
    Case(
        "packed samples with a loss at every step, trained",
        (),
        made(
            lambda m, x, n, known: m.head(packed_out(m.rnn, x, n)) * known,
            lambda: (
                x := torch.randn(16, 14, I),
                n := lengths_of(16, 14, 4),
                known := (~beyond(n, 14))[..., None].float(),
                x[..., :1] * known,
            ),
            rnn=changed(gru(I, 16), keeping_bias(1.0)),
            head=linear(1, 16),
        ),
        training=Training(80),
    ),
)

CASES = tuple(replace(case, seen=True) for case in (*SICK, *HEALTHY))
