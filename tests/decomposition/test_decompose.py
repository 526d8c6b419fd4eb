"""Every decomposition against autograd with a separate copy of the weights at every step."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.decomposition import by_time as by_time_module
from retrograde.decomposition.bins import lag_bins
from retrograde.errors import ArgumentError
from retrograde.recording import Recorded
from support.conformance import EXACT, brute_force, flow_of, plain_pass, vectors
from support.problems import PROBLEMS, B, T
from support.type_checks import unchecked


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_every_part_of_every_decomposition(problem):
    cell = problem.make()
    plain = plain_pass(cell)
    flow = flow_of(cell, plain)
    assert flow.residual < 1e-12
    assert flow.parameters == tuple(cell.parameters)
    parts = brute_force(plain, *flow.parameters)
    for name, exact in parts.items():
        whole = exact.sum((0, 1))
        norms = vectors(exact, 2).norm(dim=2)
        table = flow.by_time(name)
        assert table.entries.tolist() == list(range(T))
        torch.testing.assert_close(table.norm, norms, **EXACT)
        share = vectors(exact * whole, 2).sum(2) / whole.square().sum()
        torch.testing.assert_close(table.share, share, **EXACT)
        for bins in ("octaves", "every", (0, 2)):
            lags = flow.by_lag(name, bins)
            sums = torch.stack(
                [
                    sum(exact[t, t - lag] for lag in bin_ for t in range(lag, T))
                    for bin_ in lags.lags
                ]
            )
            torch.testing.assert_close(lags.parts(), sums, **EXACT)
            torch.testing.assert_close(lags.norm, vectors(sums, 1).norm(dim=1), **EXACT)
            share = vectors(sums * whole, 1).sum(1) / whole.square().sum()
            torch.testing.assert_close(lags.share, share, **EXACT)

    for t in range(T):
        for k in range(t + 1):  # every pair once, the parameters in turn
            name = flow.parameters[(t * T + k) % len(parts)]
            with unchecked() if k else nullcontext():  # types by one pair of an entry step
                part = flow.contribution(name, t, k)
            torch.testing.assert_close(part, parts[name][t, k], **EXACT)

    def vector(tensors, keep):
        return torch.cat([vectors(tensor, keep) for tensor in tensors], keep)

    everything = vector(parts.values(), 2)
    torch.testing.assert_close(flow.by_time().norm, everything.norm(dim=2), **EXACT)
    whole = everything.sum((0, 1))
    share = everything @ whole / whole.square().sum()
    torch.testing.assert_close(flow.by_time().share, share, **EXACT)
    torch.testing.assert_close(flow.by_lag().parts().sum(0), whole, **EXACT)
    assert float(flow.by_lag().share.sum()) == pytest.approx(1)

    blocks = flow.by_parameter()
    sizes = []
    for name, gate in blocks.blocks:
        gates = cell.gates_of(name) or (None,)
        gradient = vectors(parts[name].sum((0, 1)), 0).chunk(len(gates))[gates.index(gate)]
        sizes.append(gradient.norm())
    torch.testing.assert_close(blocks.norm, torch.stack(sizes), **EXACT)
    share = torch.stack(sizes).square() / whole.square().sum()
    torch.testing.assert_close(blocks.share, share, **EXACT)


@pytest.mark.parametrize("problem", PROBLEMS[:7:3], ids=lambda problem: problem.name)
def test_adjoint_norms_reach_and_half_life(problem):
    cell = problem.make()
    plain = plain_pass(cell, steps=9)
    flow = flow_of(cell, plain)
    exact = torch.stack(
        [
            torch.stack(plain.grad(plain.states[1:], steps=[t])).flatten(1).norm(dim=1)
            for t in range(9)
        ]
    )
    torch.testing.assert_close(torch.exp2(flow.adjoints.log2), exact, **EXACT)

    numerator = denominator = 0.0  # one slope, an intercept for each entry
    for t in range(9):
        lags = torch.arange(t, -1, -1, dtype=torch.float64)
        centred = lags - lags.mean()
        log2 = torch.log2(exact[t, : t + 1])
        numerator += float(centred @ (log2 - log2.mean()))
        denominator += float(centred.square().sum())
    assert flow.half_life == pytest.approx(-denominator / numerator, rel=1e-9)

    table = sum(
        exact.flatten(2).square().sum(2) for exact in brute_force(plain, *flow.parameters).values()
    )
    norms = table.sqrt()
    mean = [norms.diagonal(-lag).mean() for lag in range(9)]
    torch.testing.assert_close(
        torch.exp2(flow.by_time().log2_mean_by_lag), torch.stack(mean), **EXACT
    )
    assert flow.reach == max(lag for lag in range(9) if mean[lag] >= 0.01 * mean[0])


KINDS = st.sampled_from(["lstm", "gru", "tanh", "relu"])
LOSSES = st.sampled_from(["last", "every", "subset", "states"])


def build(kind, inputs, hidden, layers, bias):
    if kind in ("tanh", "relu"):
        return nn.RNN(inputs, hidden, layers, nonlinearity=kind, bias=bias, batch_first=True)
    module = nn.LSTM if kind == "lstm" else nn.GRU
    return module(inputs, hidden, layers, bias=bias, batch_first=True)


def loss_of(which, output, last, generator):
    last = last if isinstance(last, tuple) else (last,)

    def against(tensor):
        weight = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return (tensor * weight).sum()

    if which == "last":
        return against(output[:, -1])
    if which == "every":
        return against(output)
    if which == "subset":
        steps = torch.randperm(output.shape[1], generator=generator)[: 1 + output.shape[1] // 3]
        return against(output[:, steps])
    return sum(against(tensor) for tensor in last)


@given(
    kind=KINDS,
    which=LOSSES,
    steps=st.integers(1, 40),
    batch=st.integers(1, 5),
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 7),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    state=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_residual(kind, which, steps, batch, inputs, hidden, layers, bias, state, double, seed):
    """At most 1e-12 in float64 and 1e-5 in float32, whatever the model and the loss."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(kind, inputs, hidden, layers, bias).to(dtype)
    x = torch.randn(batch, steps, inputs, generator=generator, dtype=dtype)
    hx = None
    if state:
        shape = (layers, batch, hidden)
        hx = torch.randn(shape, generator=generator, dtype=dtype)
        hx = (hx, hx.flip(0)) if kind == "lstm" else hx
    with retrograde.record(model) as recording:
        output, last = model(x, hx)
        loss_of(which, output, last, generator).backward()
    with unchecked():
        flow = retrograde.decompose(recording)
    assume(any(bool(g.any()) for g in flow.recorded.gradients.values()))  # not a dead relu net
    if flow.residual.note:  # a gradient so small that float32 itself has no digits left
        assert not double
        return
    assert flow.residual < (1e-12 if double else 1e-5)


def test_float32_at_500_steps_with_torchs_initialisation():
    """No norm is exactly zero, and log2 norms agree with float64 to 0.001."""
    torch.manual_seed(0)
    model = nn.LSTM(3, 32)
    x = torch.randn(500, 2, 3)
    tables = {}
    for dtype in (torch.float32, torch.float64):
        with unchecked(), retrograde.record(model.to(dtype)) as recording:
            model(x.to(dtype))[0].square().mean().backward()
        with unchecked():
            tables[dtype] = retrograde.decompose(recording)
        model.zero_grad()
    for name in tables[torch.float64].parameters:
        ours, exact = (tables[dtype].by_time(name).log2 for dtype in tables)
        inside = tables[torch.float64].by_time(name).lags >= 0
        if name == "weight_hh_l0":
            inside = inside.clone()
            inside[:, 0] = False  # h_{-1} = 0: that contribution is zero, and rightly so
        assert bool(ours[inside].isfinite().all())
        assert float(ours[inside].min()) < -149  # beyond what float32 could hold
        assert float((ours - exact)[inside].abs().max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_that_cancel(dtype):
    """Two samples with opposite losses: the Gram sum is 0 up to rounding, the norm is 0 as well.

    Rounding of the Gram sum would be half of the digits in the norm; formed parts leave what the
    two samples' own rounding leaves (nothing where a processor treats the rows of a batch alike).
    """
    torch.manual_seed(1)
    model = nn.LSTM(2, 3).to(dtype)
    x = torch.randn(6, 1, 2, dtype=dtype).expand(6, 2, 2)
    sign = torch.tensor([1.0, -1.0], dtype=dtype).view(1, 2, 1)
    nearly = 1 + 1e-4 * torch.tensor([1.0, 0.0], dtype=dtype).view(1, 2, 1)
    for weight, exact in ((sign, True), (sign * nearly, False)):
        with retrograde.record(model) as recording:
            (model(x)[0] * weight).sum().backward()
        flow = retrograde.decompose(recording)
        log2 = flow.by_time("weight_ih_l0").log2[-1]
        one = retrograde.decompose(half(recording)).by_time("weight_ih_l0").log2[-1]
        if exact:
            assert bool((log2 - one < 0.6 * math.log2(torch.finfo(dtype).eps)).all())
        else:
            # what is left is 1e-4 of either sample, where float32 itself rounds by some 0.1 %
            torch.testing.assert_close(log2, one + math.log2(1e-4), atol=0.02, rtol=0)


def half(recording):
    """The first of two samples alone."""
    r = recording.only()
    kept = (r.x[:, :1], r.initial[:1], r.direct[:, :1])
    return Recorded(r.name, r.cell, *kept, {})


def test_gram_and_forming_agree():
    """Whichever way costs less, the norms are the same."""
    generator = torch.Generator().manual_seed(0)
    adjoint, operand = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((7, 2, 3, 8), (2, 3, 5))
    )
    squares, cancels = by_time_module._by_gram(adjoint, [operand, None])
    assert not bool(cancels.any())
    steps = torch.arange(2).repeat(7)
    formed = by_time_module._by_forming(adjoint.flatten(0, 1), steps, [operand, None])
    torch.testing.assert_close(torch.log2(squares).flatten(0, 1) / 2, formed, **EXACT)


@given(steps=st.integers(1, 300), every=st.booleans())
def test_bins_cover_every_lag_once(steps, every):
    lags = lag_bins("every" if every else "octaves", steps)
    assert [lag for bin_ in lags for lag in bin_] == list(range(steps))


def test_bins_are_named_as_in_the_design():
    starts = [(lag.start, lag.stop - 1) for lag in lag_bins("octaves", 12)]
    assert starts == [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]


def test_blocks_of_rows_keep_parts_summing_to_the_gradient():
    cell = PROBLEMS[4].make()
    plain = plain_pass(cell, steps=12)
    flow = flow_of(cell, plain, max_rows=4)
    assert flow.entries.resolution == 3
    assert flow.residual < 1e-12
    assert float(flow.by_time().share.sum()) == pytest.approx(1)
    assert flow.by_time().log2.shape == (4, 12)


def test_a_single_step_has_nothing_to_look_back_on():
    torch.manual_seed(0)
    model = nn.GRU(2, 3)
    with retrograde.record(model) as recording:
        model(torch.ones(1, B, 2))[0].sum().backward()
    flow = retrograde.decompose(recording)
    assert flow.reach == 0
    assert math.isnan(flow.half_life)
    assert float(flow.by_lag().share.sum()) == pytest.approx(1)


def test_refusals():
    cell = PROBLEMS[4].make()
    flow = flow_of(cell, plain_pass(cell))
    with pytest.raises(ArgumentError, match="no parameter 'weight_hh_l1' in 'test'; it has weight"):
        flow.by_time("weight_hh_l1")
    with pytest.raises(ArgumentError, match="bins must be"):
        flow.by_lag("weight_hh_l0", "decades")
    for bins in ((), (1, 2), (0, 3, 3)):
        with pytest.raises(ArgumentError, match="bins must start with 0 and ascend"):
            flow.by_lag("weight_hh_l0", bins)
    with pytest.raises(ArgumentError, match="0 <= k <= t < 5; got 'weight_ih_l0', t=1, k=2"):
        flow.contribution("weight_ih_l0", 1, 2)


@pytest.mark.parametrize("rows", [2, 40])
def test_a_pass_is_taken_apart_alike_inside_autocast(rows):
    """Few rows and many, which go through Jacobians formed for all steps together."""
    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(4, 8, 2), torch.randn(40, 3, 4)
    with retrograde.record(lstm) as recording:
        lstm(x)[0].square().sum().backward()
    flow = retrograde.decompose(recording, max_rows=rows)
    with unchecked(), torch.autocast("cpu"):
        inside = retrograde.decompose(recording, max_rows=rows)
    for name in flow.parameters:
        one, other = flow.by_lag(name), inside.by_lag(name)
        torch.testing.assert_close(other.parts(), one.parts(), rtol=1e-4, atol=1e-5)
