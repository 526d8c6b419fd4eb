"""Models in which nothing is wrong."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from retrograde.tasks.trial_set.case import Case, Made
from retrograde.tasks.trial_set.memory import (
    chrono,
    deep,
    forecaster,
    output_layer,
    past_each,
)
from retrograde.tasks.trial_set.models import (
    B,
    H,
    I,
    T,
    at_lengths,
    by_hand,
    changed,
    compared,
    cross_entropy,
    data,
    every_step,
    gru,
    keeping_bias,
    last,
    last_states,
    lengths_of,
    linear,
    lstm,
    made,
    mse,
    orthogonal,
    packed,
    packed_out,
    read_last,
    regression,
)
from retrograde.tasks.trial_set.soundness import classes, ctc, halved, with_nan
from retrograde.tasks.trial_set.wiring import (
    both_ways,
    cut_every,
    documents,
    loop,
    padded,
    padded_batch,
    started,
    stateful,
    translation,
)

# ------------------------------------------------------------------------------- known before


def sorted_by_length(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """As it was done before packing could sort."""
    lengths, order = lengths.sort(descending=True)
    state = m.rnn(pack_padded_sequence(x[order], lengths, batch_first=True))[1][-1]
    read: Tensor = m.head(state[order.argsort()])
    return read


def decoded(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """A decoder that looks at the encoder's outputs and is given no state."""
    keys, state, out = m.encoder(x)[0], torch.zeros(len(x), H), []
    for step in y.unbind(1):
        weights = (keys @ m.query(state).unsqueeze(2)).softmax(1)
        state = m.cell(torch.cat(((weights * keys).sum(1), step), 1), state)
        out.append(m.head(state))
    return torch.stack(out, 1)


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    """Each sample is to resemble its own partner more than those of the others."""
    similarity = F.normalize(model(batch[0])) @ F.normalize(model(batch[1])).T
    return F.cross_entropy(similarity / 0.1, torch.arange(len(similarity)))


def masked_logits(model: nn.Module, batch: Any) -> Tensor:
    """Classes that cannot be are masked by a large number."""
    x, mask, y = batch
    return F.cross_entropy(model(x) - 1e9 * (1 - mask), y)


def all_pairs(model: nn.Module, batch: Any) -> Tensor:
    """A soft distance of whole sequences: each step of the one to each step of the other."""
    difference: Tensor = model(batch[0]) - batch[1].unsqueeze(1)
    return -(-difference.square()).flatten(1).logsumexp(1).mean()


def taught(model: Any, batch: Any) -> Tensor:
    """Another model gives the targets."""
    with torch.no_grad():
        target = model.teacher(batch[0])[0]
    return F.mse_loss(model(batch[0]), target)


def masked(model: nn.Module, batch: Any) -> Tensor:
    """Targets that are missing are left out."""
    x, y = batch
    known = y.isfinite()
    loss: Tensor = (model(x)[known] - y[known]).square().mean()
    return loss


def standardised_in_the_loss(model: nn.Module, batch: Any) -> Tensor:
    """Predictions are standardised over the batch."""
    x, y = batch
    prediction = model(x)
    return F.mse_loss((prediction - prediction.mean(0)) / prediction.std(0), y)


def standardised(x: Tensor) -> Tensor:
    """Every feature with mean 0 and spread 1 over samples and steps."""
    return (x - x.mean((0, 1))) / x.std((0, 1))


def events(values: str) -> Callable[[], tuple[Tensor, Tensor]]:
    """Few values, or one event at some time: what is the same at the end is no padding."""

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.zeros(32, T, 1)
        if values == "event":
            x[torch.arange(32), torch.randint(0, T, (32,)), 0] = torch.randn(32)
        elif values == "bits":
            x = torch.randint(0, 2, (32, T, 1)).float()
        else:  # a level that is held for some steps
            at = torch.arange(T)[None] + torch.randint(0, 4, (32, 1))
            x = torch.randn(32, 8, 1).repeat_interleave(4, 1)[torch.arange(32)[:, None], at]
        return x, torch.randn(32, 1)

    return batch


def tokens(flat: bool) -> Callable[[], Made]:
    """The next of nine tokens."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])
        if flat:
            return F.cross_entropy(logits.reshape(-1, 9), batch[:, 1:].reshape(-1))
        return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:])

    return made(
        lambda m, x: m.head(m.rnn(m.embed(x))[0]),
        lambda: torch.randint(0, 9, (B, T)),
        loss,
        embed=lambda: nn.Embedding(9, I),
        rnn=lstm(),
        head=linear(9),
    )


def overlapping() -> tuple[Tensor, Tensor]:
    """Windows of one series that share their memory."""
    return torch.randn(B + T - 1, I).unfold(0, T, 1).transpose(1, 2), torch.randn(B, 1)


def well(name: str, make: Callable[[], Made], **options: Any) -> Case:
    """A healthy case that was known before the split."""
    return Case(name, (), make, options=options, seen=True)


def identity(layer: Any) -> None:
    """Recurrent weights of the identity."""
    nn.init.eye_(layer.weight_hh_l0)


SEEN = (
    well("LSTM, forget bias 3", forecaster(nn.LSTM, keeping_bias(3.0))),
    well("LSTM, chrono", forecaster(nn.LSTM, chrono(60), steps=60), needs_lag=30),
    well("LSTM, loss at every step", forecaster(nn.LSTM, keeping_bias(2.0), steps=30, every=True)),
    well("output layer of zeros", output_layer(0.0)),
    well("output layer times 0.001", output_layer(0.001)),
    well("LSTM, two layers", forecaster(nn.LSTM, steps=20, num_layers=2)),
    well("GRU, torch's default, short", forecaster(nn.GRU, steps=20)),
    well("GRU, chrono, a lag named", forecaster(nn.GRU, chrono(40)), needs_lag=15),
    well("RNN, orthogonal", forecaster(nn.RNN, orthogonal())),
    well("relu RNN, identity", forecaster(nn.RNN, identity, steps=30, nonlinearity="relu")),
    well(
        "sorted by length and back",
        made(
            sorted_by_length,
            lambda: (torch.randn(B, T, I), lengths_of(B, T), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    well(
        "samples related by a graph",
        made(
            lambda m, x, graph: m.head(graph @ m.rnn(x)[0][:, -1]),
            lambda: (torch.randn(B, T, I), torch.rand(B, B), torch.randn(B, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    well(
        "padded on the left",
        made(
            read_last,
            lambda: (padded_batch()[0].flip(1), torch.randn(32, 1)),
            rnn=gru(),
            head=linear(),
        ),
    ),
    well("contrastive", made(lambda m, x: m.rnn(x)[1][-1], data(B, T, I), contrastive, rnn=gru())),
    well("sentences of documents, each with a target", documents()),
    well(
        "lag in the steps of one layer",
        documents(sentences=9, above=changed(gru(H), keeping_bias(4.0))),
        needs_lag=8,
    ),
    well(
        "attention bridges the lag",
        made(
            decoded,
            lambda: (torch.randn(B, T, I), torch.randn(B, 4, 1), torch.randn(B, 4, 1)),
            encoder=gru(),
            query=linear(H),
            cell=lambda: nn.GRUCell(H + 1, H),
            head=linear(),
        ),
        needs_lag=T - 2,
    ),
    well(
        "logits masked with -1e9",
        made(
            read_last,
            lambda: (
                torch.randn(B, T, I),
                (torch.arange(5) < 4).float(),
                torch.randint(0, 4, (B,)),
            ),
            masked_logits,
            rnn=gru(),
            head=linear(5),
        ),
    ),
    well(
        "distances of all pairs of steps",
        made(every_step, data(B, T), all_pairs, rnn=gru(), head=linear()),
    ),
    well(
        "frozen encoder",
        made(
            lambda m, x: read_last(m, m.frozen(x)[0]),
            data(),
            frozen=lambda: gru()().requires_grad_(False),
            rnn=gru(H),
            head=linear(),
        ),
    ),
    well("teacher", made(lambda m, x: m.rnn(x)[0], data(), taught, rnn=gru(), teacher=gru())),
    well("an event, then nothing", made(read_last, events("event"), rnn=gru(1), head=linear())),
    well("bits", made(read_last, events("bits"), rnn=gru(1), head=linear())),
    well("levels that are held", made(read_last, events("levels"), rnn=gru(1), head=linear())),
    well("state carried on, detached", stateful(True)),
    well(
        "normalised over the batch in the loss",
        made(read_last, data(), standardised_in_the_loss, rnn=gru(), head=linear()),
    ),
    well(
        "orthogonal weights",
        made(read_last, data(), rnn=changed(gru(), orthogonal()), head=linear()),
    ),
    well("batch first", regression(last)),
    well(
        "windows that share their memory",
        made(read_last, overlapping, rnn=lstm(), head=linear()),
    ),
    well(
        "features standardised over the batch",
        regression(lambda layer, x: last(layer, standardised(x))),
    ),
    well(
        "features standardised in the loss",
        regression(last, loss=lambda m, b: mse(m, (standardised(b[0]), b[1]))),
    ),
    well(
        "time first",
        regression(lambda layer, x: layer(x)[0][-1], lambda: nn.LSTM(I, H), x=(T, B, I)),
    ),
    well("as many steps as samples", regression(last, x=(B, B, I))),
    well("a loss at every step", regression(lambda layer, x: layer(x)[0], y=(B, T, 1))),
    well(
        "a loss at every step, time first",
        regression(lambda layer, x: layer(x)[0], lambda: nn.GRU(I, H), x=(T, B, I), y=(T, B, 1)),
    ),
    well(
        "h_n side by side",
        regression(
            lambda layer, x: layer(x)[1].transpose(0, 1).reshape(B, -1),
            gru(num_layers=2),
            features=2 * H,
        ),
    ),
    well(
        "batch normalisation",
        made(
            lambda m, x: m.head(m.norm(m.rnn(x)[0][:, -1])),
            data(),
            rnn=gru(),
            norm=lambda: nn.BatchNorm1d(H),
            head=linear(),
        ),
    ),
    well("tokens", tokens(False)),
    well("tokens, flat", tokens(True)),
    well(
        "both directions",
        both_ways(
            lambda layer, x: torch.cat((last_states(layer, x)[-2], last_states(layer, x)[-1]), 1)
        ),
    ),
    well("both directions, every step", both_ways(lambda layer, x: layer(x)[0].mean(1))),
    well(
        "both directions, two layers",
        both_ways(lambda layer, x: layer(x)[0].mean(1), nn.GRU, depth=2),
    ),
    well("encoder and decoder", translation(False)),
    well(
        "encoder and decoder, lag through both",
        translation(False, changed(gru(), keeping_bias(4.0))),
        needs_lag=T + 2,
    ),
    well("padded, read at the lengths", padded(lambda layer, x, n: at_lengths(layer(x)[0], n))),
    well(
        "packed, read at the lengths",
        padded(lambda layer, x, n: at_lengths(packed_out(layer, x, n), n)),
    ),
    well("packed, last state", padded(lambda layer, x, n: layer(packed(x, n))[1][-1])),
    well(
        "silence at the end of all",
        regression(lambda layer, x: last(layer, torch.cat((x[:, :5], 0 * x[:, 5:]), 1))),
    ),
    well("a loop over a cell", loop(lambda cell, x, h: cell(x, h))),
    well(
        "a loop over a cell, LSTM", loop(lambda cell, x, s: cell(x, s), lambda: nn.LSTMCell(I, H))
    ),
    well(
        "a masked loop",
        loop(lambda cell, x, h: cell(x) if h is None else torch.where(x[:, :1] > 0, cell(x, h), h)),
    ),
    well("detached every five steps", loop(cut_every(5))),
    well("initial state zero", started("zero")),
    well("initial state learnt", started("learnt")),
    well("carried in", started("kept")),
    well("NaN left out of the loss", with_nan("y", masked)),
    well("CTC", ctc(False)),
    well("CTC that leaves out what is short", ctc(True, zero=True)),
    well("bfloat16", halved(1.0, torch.bfloat16)),
    well("float16", halved(64.0, torch.float16)),
    well("logits", compared(cross_entropy, classes, 4)),
    well(
        "log-probabilities",
        compared(lambda m, b: F.nll_loss(m(b[0]).log_softmax(1), b[1]), classes, 4),
    ),
    well(
        "log-probabilities of four of six classes",
        compared(lambda m, b: F.nll_loss(m(b[0]).log_softmax(1)[:, 1:5], b[1]), classes, 6),
    ),
    well(
        "one row of outputs for all",
        compared(by_hand(lambda d: d.square().mean()), lambda: torch.randn(1, 1)),
    ),
    well("three layers", deep(3)),
    well("eight layers with a way past them", deep(8, past_each)),
)

CASES = SEEN
