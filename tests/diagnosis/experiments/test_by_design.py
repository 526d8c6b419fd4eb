"""What is done on purpose beside what looks the same and is a mistake, for further experiments."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retrograde.tasks.trial_set.models import B, H, I, T, data, gru, linear, made, mse, read_last
from support.looking import look

pytestmark = pytest.mark.usefixtures("unchecked")


def plain(loss, *batch, outputs=1):
    return made(
        read_last, lambda: tuple(each() for each in batch), loss, rnn=gru(), head=linear(outputs)
    )


def noise(*shape):
    return lambda: torch.randn(shape)


def embedded(m, x):
    return F.normalize(m.rnn(x)[1][-1])


def momentum(m, one, other):
    with torch.no_grad():
        keys = F.normalize(m.slow(other)[1][-1])
    return F.cross_entropy(embedded(m, one) @ keys.T, torch.arange(B))


def discriminator(m, noise, real):
    with torch.no_grad():
        fake = m.generator(noise)[0]
    scores = [m.head(m.rnn(each)[1][-1]) for each in (real, fake)]
    return F.softplus(scores[1]).mean() + F.softplus(-scores[0]).mean()


def cut_decoder(m, x, y):
    return m.head(m.rnn(y, m.encoder(x)[1].data)[0])


def masked(model, batch):
    x, y, mask = batch
    return ((model(x) - y).square() * mask).sum() / mask.sum()


def hardest(model, batch):
    return (model(batch[0]) - batch[1]).square().topk(2, 0)[0].mean()


def generated(m, x):
    return m.head(m.rnn(x, torch.randn(1, B, H))[0])


BY_DESIGN = {
    "a momentum encoder": (
        "unreached",
        made(
            momentum,
            data(B, T, I),
            lambda m, b: m(*b),
            rnn=gru(),
            slow=gru(),
        ),
    ),
    "a generator beside real data": (
        "unreached",
        made(
            discriminator,
            data(B, T, I),
            lambda m, b: m(*b),
            generator=gru(I, I),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "a mask over samples": (
        "unreached",
        plain(masked, noise(B, T, I), noise(B, 1), lambda: torch.arange(B).lt(3)[:, None].float()),
    ),
    "the hardest samples": ("unreached", plain(hardest, noise(B, T, I), noise(B, 1))),
    "a target for all": (
        "solved",
        plain(lambda m, b: F.mse_loss(m(b[0]), b[1]), noise(B, T, I), lambda: torch.tensor(1.0)),
    ),
    "weights of samples": (
        "broadcast",
        plain(
            lambda m, b: ((m(b[0]) - b[1]).square()[:, 0] * b[2]).mean(),
            *(noise(B, T, I), noise(B, 1), noise(B)),
        ),
    ),
    "an agent in its first step": (
        "no-time",
        made(
            lambda m, x, h: m.head(m.cell(x, h)),
            lambda: (torch.randn(B, I), torch.zeros(B, H), torch.randn(B, 1)),
            cell=lambda: nn.GRUCell(I, H),
            head=linear(),
        ),
    ),
    "a generator that starts from noise": (
        "initial-state",
        made(
            generated,
            data(B, T, 1),
            lambda m, b: F.softplus(-m(b[0])).mean(),
            rnn=gru(),
            head=linear(),
        ),
    ),
}

BY_MISTAKE = {
    "an encoder cut off, as large as the decoder": (
        "unreached",
        made(
            cut_decoder,
            lambda: (torch.randn(B, T, I), torch.randn(B, 4, I), torch.randn(B, 4, 1)),
            encoder=gru(),
            rnn=gru(),
            head=linear(),
        ),
    ),
    "a loss on one sample": (
        "unreached",
        plain(lambda m, b: F.mse_loss(m(b[0])[:1], b[1][:1]), noise(B, T, I), noise(B, 1)),
    ),
    "the first output": (
        "unreached",
        made(lambda m, x: m.head(m.rnn(x)[0][:, 0]), data(), rnn=gru(), head=linear()),
    ),
    "weights of samples, broadcast": (
        "broadcast",
        plain(
            lambda m, b: ((m(b[0]) - b[1]).square() * b[2]).mean(),
            *(noise(B, T, I), noise(B, 1), noise(B)),
        ),
    ),
    "a ratio, broadcast": (
        "broadcast",
        plain(lambda m, b: (m(b[0]) / b[1].exp() - 1).abs().mean(), noise(B, T, I), noise(B)),
    ),
    "a regression that starts from noise": (
        "initial-state",
        made(generated, data(B, T, 1), mse, rnn=gru(), head=linear()),
    ),
}


@pytest.mark.parametrize("name", BY_DESIGN)
def test_what_is_by_design_is_a_remark_at_most(name):
    experiment, build = BY_DESIGN[name]
    check, findings = look(experiment, build)
    assert not check.reason.startswith("it failed"), check
    assert all(finding.severity == "info" for finding in findings), findings


@pytest.mark.parametrize("name", BY_MISTAKE)
def test_what_is_a_mistake_is_found(name):
    experiment, build = BY_MISTAKE[name]
    _, findings = look(experiment, build)
    assert [finding.severity != "info" for finding in findings] == [True], findings
