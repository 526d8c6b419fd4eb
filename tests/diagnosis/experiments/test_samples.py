"""Samples that see each other by accident are told from those that do so by design."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from retrograde.tasks.trial_set.models import (
    B,
    H,
    I,
    T,
    data,
    every_step,
    gru,
    linear,
    made,
    mse,
    read_last,
)
from support.looking import look

pytestmark = pytest.mark.usefixtures("unchecked")


def last_state(m, x):
    return m.rnn(x)[1][-1]


def on_last_state(change):
    return lambda m, x: m.head(change(last_state(m, x)))


def smooth(*shape):
    return torch.randn(shape).cumsum(1)


def next_steps(swapped):
    """A forecast of the next value at every step."""

    def batch():
        x = smooth(B + 4, T + 1, I)
        return x[:, :-1], x[:, 1:, :1]

    return made(every_step, batch, rnn=lambda: nn.GRU(I, H, batch_first=not swapped), head=linear())


def language(swapped):
    def loss(model, tokens):
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return made(
        lambda m, x: m.head(m.rnn(m.embedding(x))[0]),
        lambda: torch.randint(0, 9, (B, T)),
        loss,
        embedding=lambda: nn.Embedding(9, I),
        rnn=lambda: nn.GRU(I, H, batch_first=not swapped),
        head=linear(9),
    )


def over_edges(m, x, edges):
    h = last_state(m, x)
    return m.head(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))


def ring():
    return torch.stack((torch.arange(B), (torch.arange(B) + 1) % B))


def contrasted(m, one, other):
    return F.cross_entropy(last_state(m, one) @ last_state(m, other).T, torch.arange(B))


def by_length(m, x, lengths, back):
    order = lengths.argsort(descending=True)
    packed = pack_padded_sequence(x[order], lengths[order], batch_first=True)
    h = last_state(m, packed)
    return m.head(h[order.argsort()] if back else h)


def sorted_by_length(back):
    batch = lambda: (torch.randn(B, T, I), torch.randperm(B) + 4, torch.randn(B, 1))  # noqa: E731
    return made(lambda m, x, n: by_length(m, x, n, back), batch, rnn=gru(), head=linear())


def attended(m, x):
    out = m.rnn(x)[0]
    return m.head(m.attention(out, out, out)[0][:, -1])


def attending(batch_first):
    return made(
        attended,
        data(),
        rnn=gru(),
        head=linear(),
        attention=lambda: nn.MultiheadAttention(H, 1, batch_first=batch_first),
    )


def weighted(axis):
    def forward(m, x):
        out = m.rnn(x)[0]
        return m.head((m.score(out).softmax(axis) * out).sum(1))

    return made(forward, data(), rnn=gru(), head=linear(), score=linear())


def carry_over_samples(m, x):
    """A loop over the samples in place of the steps."""
    h, found = torch.zeros(T, H), []
    for each in x:
        h = m.cell(each, h)
        found.append(h[-1])
    return m.head(torch.stack(found))


BY_DESIGN = {
    "standardised over the batch": made(
        on_last_state(lambda h: (h - h.mean(0)) / h.std(0)), data(), rnn=gru(), head=linear()
    ),
    "batch_norm as a function": made(
        on_last_state(lambda h: F.batch_norm(h, None, None, training=True)),
        data(),
        rnn=gru(),
        head=linear(),
    ),
    "pooled over agents": made(
        on_last_state(lambda h: h + h.amax(0)), data(), rnn=gru(), head=linear()
    ),
    "dropout as a function, pooled": made(
        on_last_state(lambda h: F.dropout(h + h.amax(0))), data(), rnn=gru(), head=linear()
    ),
    "contrastive in the model": made(
        contrasted,
        lambda: (torch.randn(B, T, I), torch.randn(B, T, I)),
        lambda m, b: m(*b),
        rnn=gru(),
    ),
    "edges of a graph": made(
        over_edges,
        lambda: (torch.randn(B, T, I), ring(), torch.randn(B, 1)),
        rnn=gru(),
        head=linear(),
    ),
    "a graph in an object": made(
        lambda m, b: over_edges(m, b.x, b.edges),
        lambda: SimpleNamespace(x=torch.randn(B, T, I), edges=ring(), y=torch.randn(B, 1)),
        lambda m, b: F.mse_loss(m(b), b.y),
        rnn=gru(),
        head=linear(),
    ),
    "a list of sequences, batch normalised": made(
        lambda m, xs: m.head(m.norm(last_state(m, pack_sequence(xs, enforce_sorted=False)))),
        lambda: ([torch.randn(n + 2, I) for n in range(B)], torch.randn(B, 1)),
        rnn=gru(),
        norm=lambda: nn.BatchNorm1d(H),
        head=linear(),
    ),
    "rows brought together": made(
        lambda m, x: m.head(m.rnn(x)[0].mean(1)),
        data(T, 1, x=(T, B, I)),
        rnn=lambda: nn.GRU(I, H),
        head=linear(),
    ),
}

APART = {
    "sorted by length and back": sorted_by_length(True),
    "a sequence of one document": made(
        lambda m, x: m.head(m.upper(last_state(m, x).unsqueeze(0))[0].squeeze(0)),
        data(B, 1),
        rnn=gru(),
        upper=gru(H),
        head=linear(),
    ),
    "channels apart": made(
        lambda m, x: m.head(last_state(m, x.transpose(1, 2).reshape(B * I, T, 1)).view(B, I * H)),
        data(),
        rnn=gru(1),
        head=linear(1, I * H),
    ),
    "one series for all": made(
        read_last,
        lambda: (torch.randn(1, T, I).expand(B, T, I), torch.randn(B, 1)),
        rnn=gru(),
        head=linear(),
    ),
    "mixed up in the loss": made(
        read_last,
        data(),
        lambda m, b: mse(m, (0.7 * b[0] + 0.3 * b[0].roll(int(torch.randint(1, B, ())), 0), b[1])),
        rnn=gru(),
        head=linear(),
    ),
    "attention": attending(True),
    "weights over the steps": weighted(1),
    "the next value": next_steps(False),
    "the next token": language(False),
    "smooth": made(
        every_step, lambda: (smooth(9, 12, I), torch.randn(9, 12, 1)), rnn=gru(), head=linear()
    ),
}

SICK = {
    "attention without batch_first": attending(False),
    "weights over the samples": weighted(0),
    "averaged over the samples": made(
        lambda m, x: m.head(m.rnn(x)[0].mean(0))[:1].expand(B, 1), data(), rnn=gru(), head=linear()
    ),
    "a loop over the samples": made(
        carry_over_samples, data(), cell=lambda: nn.GRUCell(I, H), head=linear()
    ),
    "one sample added to the next": made(
        lambda m, x: read_last(m, x + x.roll(1, 0)), data(), rnn=gru(), head=linear()
    ),
    "sorted by length, not back": sorted_by_length(False),
    "a view behind a dropout": made(
        lambda m, x: m.head(F.dropout(m.rnn(x)[1].view(B, -1), 0.3)),
        data(),
        rnn=gru(num_layers=2),
        head=linear(1, 2 * H),
    ),
    "a view, batch normalised": made(
        lambda m, x: m.head(m.norm(m.rnn(x)[1].view(B, -1))),
        data(),
        rnn=gru(num_layers=2),
        norm=lambda: nn.BatchNorm1d(2 * H),
        head=linear(1, 2 * H),
    ),
    "one of two layers time first": made(
        lambda m, x: read_last(m, m.lower(x)[0]),
        data(),
        lower=gru(),
        rnn=lambda: nn.GRU(H, H),
        head=linear(),
    ),
    "the next value along the samples": next_steps(True),
    "the next token along the samples": language(True),
    "smooth along the samples": made(
        every_step,
        lambda: (smooth(9, 40, I), torch.randn(9, 40, 1)),
        rnn=lambda: nn.GRU(I, H),
        head=linear(),
    ),
}


@pytest.mark.parametrize("name", BY_DESIGN)
def test_samples_that_meet_by_design_are_a_remark(name):
    check, findings = look("samples-mixed", BY_DESIGN[name])
    assert check.status == "found", check
    assert [finding.severity for finding in findings] == ["info"], findings


@pytest.mark.parametrize("name", APART)
def test_samples_that_are_apart_are_no_finding(name):
    check, findings = look("samples-mixed", APART[name])
    assert check.status == "passed" and not findings, (check, findings)


@pytest.mark.parametrize("name", SICK)
def test_samples_that_are_mixed_are_found(name):
    check, findings = look("samples-mixed", SICK[name])
    severity = "warning" if name == "smooth along the samples" else "error"
    assert [finding.severity for finding in findings] == [severity], check


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (made(every_step, data(B, T, 1), rnn=gru(), head=linear()), "cannot be told"),
        (made(read_last, data(x=(B, B, I)), rnn=gru(), head=linear()), "as many samples as steps"),
        (APART["one series for all"], "could not be determined"),
        (APART["mixed up in the loss"], "whether that is by design cannot be told"),
    ],
)
def test_what_could_not_be_told_is_said(build, said):
    check, findings = look("samples-mixed", build)
    assert check.status == "passed" and said in check.reason and not findings
