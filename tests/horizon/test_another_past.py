"""What the past says of the loss, against really running on from another sample's state."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.decomposition.from_recording import unasked
from retrograde.horizons.another_past import paired, parts_of_the_past, windows_of

T, B = 6, 4


def asked(states, targets):
    """dL/ds_t of a loss that is quadratic in the states."""
    return (states[1:] - targets) * torch.linspace(0.5, 1.5, T).view(-1, 1, 1).to(states)


def by_hand(cell, x, targets, partner, lags):
    """The gradient by the weights used at some lags, each sample after its partner's past."""
    names = dict(cell.named_parameters())
    total = [torch.zeros_like(weight) for weight in cell.parameters()]
    for t in range(lags.start, T):
        cut = t - lags.start + 1  # the steps of the past
        for j, i in enumerate(partner[t]):
            read = torch.cat((x[:cut, i], x[cut : t + 1, j]))
            used = [
                [weight.detach().clone().requires_grad_() for weight in cell.parameters()]
                for _ in read
            ]
            state = None
            for step, weights in zip(read, used, strict=True):
                of_step = dict(zip(names, weights, strict=True))
                call = step.view(1, 1, -1) if state is None else (step.view(1, 1, -1), state)
                _, state = torch.func.functional_call(cell, of_step, call)
            parts = state if isinstance(state, tuple) else (state,)
            last = torch.cat([part[0] for part in parts], 1)[0]
            states = torch.zeros(T + 1, 1, len(last)).to(last)
            states[t + 1, 0] = last.detach()
            delta = asked(states, targets[:, j : j + 1])[t, 0]
            at = [t - lag for lag in lags if lag <= t]
            grads = torch.autograd.grad(last @ delta, [w for k in at for w in used[k]])
            for number, grad in enumerate(grads):
                total[number % len(names)] += grad
    return dict(zip(names, total, strict=True))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_parts_of_the_past_are_those_of_really_running_on_from_it(kind):
    torch.manual_seed(0)
    cell, x = kind(2, 3).double(), torch.randn(T, B, 2).double()
    with retrograde.record(cell) as recording:
        cell(x)[0].square().sum().backward()
    flow = unasked(recording.only())
    states = flow.unrolled.states
    targets = torch.randn_like(states[1:])
    lags = (range(0, 1), range(1, 3), range(3, 6))
    found = parts_of_the_past(
        flow, asked(states, targets), lambda other: asked(other, targets), lags
    )
    own = torch.arange(B).expand(T, B)
    for bin_, parts in zip(lags, found, strict=True):
        partner = own.clone()
        for each in windows_of(flow, bin_.start):
            partner[each.ends] = each.partner
        assert (partner[bin_.start :] != own[bin_.start :]).all()
        mine, theirs = (by_hand(cell, x, targets, who, bin_) for who in (own, partner))
        for name, row in parts.items():
            wanted = mine[name] - theirs[name]
            torch.testing.assert_close(row.plain()[0], wanted, rtol=1e-9, atol=1e-12)


def partners(x):
    """Of the windows of lag 2, and the share of the samples that have one."""
    cell = nn.RNN(x.shape[2], 3)
    with retrograde.record(cell) as recording:
        cell(x)[0].square().sum().backward()
    flow = unasked(recording.only())
    (windows,) = windows_of(flow, 2)
    return windows.partner, paired(flow)


def test_partners_have_next_inputs_that_tell_the_same_of_the_past():
    """One input is noise and larger; the other stays as it was, and each two samples share it."""
    torch.manual_seed(0)
    slow = torch.arange(4.0).repeat(2).view(1, 8, 1).expand(200, 8, 1)
    partner, share = partners(torch.cat((9 * torch.randn(200, 8, 1), slow), 2))
    assert partner.tolist() == [[4, 5, 6, 7, 0, 1, 2, 3]] * len(partner) and share == 1
    alone = torch.randn(1, 8, 1).expand(200, 8, 1)
    other, share = partners(torch.cat((torch.randn(200, 8, 1), alone), 2))
    assert (other == torch.arange(8)).all() and share == 0


def test_symbols_of_a_chain_lend_each_other_what_came_before_the_same_symbol():
    torch.manual_seed(1)
    follow = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]])
    chain = [torch.randint(3, (20,))]
    for _ in range(59):
        chain.append(torch.multinomial(follow[chain[-1]], 1).squeeze(1))
    symbols = torch.stack(chain)
    partner, share = partners(nn.functional.one_hot(symbols, 3).float())
    next_ones = symbols[1 : 1 + len(partner)]
    assert torch.equal(next_ones.gather(1, partner), next_ones) and share > 0.7
    partner, share = partners(torch.randn(60, 20, 5))  # of independent inputs any will do
    assert share == 1 and torch.equal(partner[0], torch.arange(20).roll(10))


def test_pairs_that_read_and_are_asked_the_same_tell_nothing():
    """The two terms of D cancel, and rounding is no signal."""
    torch.manual_seed(2)
    symbols = (torch.randint(2, (1, 90)) + (torch.rand(9, 90) < 0.2).cumsum(0)) % 2
    cell = nn.LSTM(2, 4)
    with retrograde.record(cell) as recording:
        cell(nn.functional.one_hot(symbols, 2).float())[0][-1].sum().backward()
    flow = unasked(recording.only())
    for asked, silent in ((symbols[-1], True), (torch.randn(90), False)):
        left = flow.entries.direct * asked.view(-1, 1)
        bins = [range(0, 1), range(1, 2), range(2, 9)]
        _, part, _ = parts_of_the_past(flow, left, lambda states, left=left: left, bins)
        assert silent is not any(bool(row.values.any()) for row in part.values())


def follows(number, symbols):
    """Inputs that depend on the one before, and what the present one alone says."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(12, 32, 1, generator=generator)
    if symbols:
        turns = (torch.rand(12, 32, generator=generator) < 0.2).cumsum(0)
        x = nn.functional.one_hot((turns + (x[0, :, 0] > 0)) % 2, 2).float()
        return x, x[..., :1]
    for step in range(1, 12):
        x[step] = 0.9 * x[step - 1] + 0.19**0.5 * x[step]
    return x, x.square()


@pytest.mark.parametrize("symbols", (False, True), ids=("autoregression", "chain"))
def test_no_lag_is_invented_where_inputs_follow_from_each_other(symbols):
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.LSTM(1 + symbols, 8), "head": nn.Linear(8, 1)})

    def loss(model, batch):
        return (model["head"](model["rnn"](batch[0])[0]) - batch[1]).square().mean()

    horizon = retrograde.horizon(model, partial(follows, symbols=symbols), loss, most=10)
    assert horizon.learnable in (0, None)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    hidden=st.integers(2, 6),
    seed=st.integers(0, 10**6),
    scale=st.floats(0.5, 2),
    curve=st.sampled_from([torch.square, torch.relu, torch.abs, torch.exp, torch.sign]),
)
def test_no_lag_is_invented_for_a_curve_of_the_present_input(kind, hidden, seed, scale, curve):
    torch.manual_seed(seed)
    model = nn.ModuleDict({"rnn": kind(1, hidden), "head": nn.Linear(hidden, 1)})

    def draw(number):
        generator = torch.Generator().manual_seed(seed + number)
        x = torch.randn(8, 8, 1, generator=generator)
        return x, scale * curve(x) + 1

    def loss(model, batch):
        return (model["head"](model["rnn"](batch[0])[0]) - batch[1]).square().mean()

    assert retrograde.horizon(model, draw, loss, most=8).learnable in (0, None)
