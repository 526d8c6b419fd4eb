"""One of several processes that train together: run by tests/test_distributed.py, once for each."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import retrograde

SAMPLES, STEPS = 6, 40
"""The whole batch, of which each of two processes has half."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def train(watched):
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = retrograde.Monitor(model, every=5)
    torch.manual_seed(100 + dist.get_rank())  # each rank has its own share of the batch
    scalars, residual = [], None
    for _ in range(20):
        x = torch.randn(4, 9, 3)
        optimiser.zero_grad()
        if watched:
            with monitor:
                model(x).square().mean().backward()
            scalars.append(monitor.scalars)
            if monitor.recording:
                residual = float(retrograde.decompose(monitor.recording["rnn"]).residual)
        else:
            model(x).square().mean().backward()
        optimiser.step()
    return model.module.state_dict(), torch.get_rng_state(), scalars, residual


def ordinary():
    """A model, its batch and the weights of its loss terms, in float64."""
    torch.manual_seed(1)
    return Model().double(), torch.randn(SAMPLES, 12, 3).double(), torch.ones(SAMPLES, 12).double()


def beyond_the_range():
    """Far parts below the range of float32; half of the samples have none at all."""
    torch.manual_seed(2)
    model, x, weights = Model(), torch.randn(SAMPLES, STEPS, 3), torch.zeros(SAMPLES, STEPS)
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter.mul_(0.02)
        model.rnn.bias_ih_l0[5:10] = -9  # the forget gates
    weights[:3, 5] = weights[3:, -1] = 1
    return model, x, weights


def flow_of(model, x, weights):
    """A pass whose loss is a mean over the samples."""
    with retrograde.record(model) as recording:
        (model(x).squeeze(-1).square() * weights).sum(1).mean().backward()
    return retrograde.decompose(recording)


def answers(flow):
    """All that can be asked of several processes together: sizes, shares and parts."""
    asked = [
        *(flow.by_lag(name) for name in (None, *flow.names())),
        flow.by_lag("weight_hh_l0", bins="every"),
        flow.by_route("weight_hh_l0"),
        flow.by_crossing("weight_hh_l0", 2, bins=(0, 3)),
    ]
    return [(parts.axes, parts.log2, parts.share, parts.parts()) for parts in asked]


def horizons(flow):
    """The measures of both kinds of truncation, for the whole gradient and each parameter."""
    every = [flow.horizon(kind) for kind in ("sliding", "chunks")]
    return [
        horizon.of(name).each(measure) if name else horizon.each(measure)
        for horizon in every
        for name in horizon.measures
        for measure in ("bias", "cosine", "ratio")
    ] + [torch.tensor([bias for each in every[1].by_phase.values() for bias in each])]


def windows(rank=None):
    """The horizon of 8 batches: of this process alone, or half of them in each of two."""
    torch.manual_seed(3)
    model = Model().double()

    def batches(seed):
        x = torch.randn(8, 9, 3, generator=torch.Generator().manual_seed(seed)).double()
        return x, x[..., :1].roll(3, 1)

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    together = rank is not None
    most = 4 if together else 8
    horizon = retrograde.horizon(model, batches, loss_fn, most=most, all_reduce=together)
    numbers = [horizon.each("bias"), horizon.sensitivity, horizon.used.losses]
    for signal in (horizon.signal, horizon.unexplained):
        numbers += [signal.signal, signal.noise, signal.learnability(1000)]
    return numbers, (horizon.batches, horizon.learnable, horizon.window(), horizon.notes)


def gradients(model):
    return {n: p.grad.clone() for n, p in model.rnn.named_parameters()}


def reduced():
    rank, found = dist.get_rank(), {}
    mine = slice(3 * rank, 3 * rank + 3)
    for problem in (ordinary, beyond_the_range):
        model, x, weights = problem()
        flow = flow_of(DistributedDataParallel(model), x[mine], weights[mine]).all_reduce()
        residual = float(flow.residual), flow.residual.bound, flow.residual.note
        found[problem.__name__] = answers(flow), residual, gradients(model), horizons(flow)

    model, x, weights = ordinary()
    some = slice(0, 9 + 3 * rank)  # of rank 0 shorter sequences
    flow = flow_of(DistributedDataParallel(model), x[mine, some], weights[mine, some]).all_reduce()
    found["lengths"] = answers(flow), flow.steps, gradients(model), horizons(flow)

    found["windows"] = windows(rank)
    found["refused"] = {
        "weights": refusal(lambda: flow_of(shifted(model, rank), x, weights).all_reduce()),
        "other models": refusal(
            lambda: retrograde.horizon(
                nn.GRU(2, 3 + rank),
                torch.ones(4, 2, 2),
                lambda m, x: m(x)[0].sum(),
                all_reduce=True,
            )
        ),
        "sizes": refusal(lambda: of_another_size(rank).all_reduce()),
        "question": refusal(lambda: (flow.by_lag, flow.by_route)[rank]()),
        "bins": refusal(lambda: flow.by_lag(bins=(0, 2 + rank))),
        "kind": refusal(lambda: flow.horizon(("sliding", "chunks")[rank])),
        "group": refusal(lambda: flow.local.all_reduce("gloo")),
        "one fails": refusal(lambda: flow.by_lag((None, "bias")[rank])),
    }
    return found


def shifted(model, rank):
    with torch.no_grad():
        model.rnn.weight_hh_l0 += 0.01 * rank
    return model


def of_another_size(rank):
    model = nn.GRU(2, 3 + rank)
    with retrograde.record(model) as recording:
        model(torch.ones(4, 1, 2))[0].sum().backward()
    return retrograde.decompose(recording)


def refusal(ask):
    try:
        ask()
    except retrograde.RetrogradeError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {how: train(how == "watched") for how in ("plain", "watched")} | reduced()
    torch.save(results, f"{sys.argv[1]}/{dist.get_rank()}.pt")
    dist.destroy_process_group()
