"""Closed forms, numbers far out of range, blocks of entry steps."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde
from retrograde.cells import Elman
from retrograde.engine import (
    Entries,
    adjoint,
    backpropagate,
    backpropagate_by_crossing,
    gradients,
    unroll,
)
from retrograde.engine.adjoint import rows_of_entries
from retrograde.engine.merging import merged_rows
from retrograde.engine.scan import Eager
from retrograde.errors import ArgumentError, NonFiniteError
from support.backends import BACKENDS, using
from support.conformance import EXACT, plain_pass, total_gradient, unrolled_and_entries
from support.problems import GRU_, LSTM_, TANH
from support.type_checks import unchecked


def linear(w: float, dtype=torch.float64) -> Elman:
    one = torch.ones(1, 1, dtype=dtype)
    return Elman(one, w * one, activation="identity")


def last_step_flow(cell, steps: int, dtype=torch.float64):
    """A loss of h at the last step only, on an input of ones before it and then of zeros."""
    x = torch.zeros(steps, 1, 1, dtype=dtype)
    recorded = retrograde.record_cell(cell, x + 1e-3, lambda h, s: h[-1].sum())
    return retrograde.decompose(recorded)


def test_rows_that_open_on_the_way_make_a_stretch_no_longer_than_can_be_held():
    """Rows of eight loss steps: the third opens at step 23, and 60 numbers hold it for 20 steps."""
    entries = Entries.of(torch.ones(40, 1, 1), 5)
    newest = entries.exponents[39]
    assert [len(entries.coming(39, 40, 1, 0, newest, most).rows) for most in (40, 60, 61)] == [
        *(16, 20, 20)
    ]
    assert entries.coming(39, 40, 1, 0, newest, 60).rows == [3] * 4 + [2] * 8 + [1] * 8
    assert entries.coming(39, 18, 1, 0, newest, 60).rows == [3] * 2 + [2] * 8 + [1] * 8


@pytest.mark.parametrize(("w", "value"), [(0.99, 0.134), (1.0, 1.0), (1.01, 7.32)])
def test_the_three_numbers_of_the_reader_of_seeds_000(w, value):
    """0.99^200 = 0.134, 1^200 = 1, 1.01^200 = 7.32."""
    adjoints = last_step_flow(linear(w), 201).adjoints
    got = float(torch.exp2(adjoints.log2[0, 0]))
    assert got == pytest.approx(w**200, rel=1e-12)
    assert got == pytest.approx(value, rel=2e-3)  # the text gives three digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("w", [0.5, 2.0])
def test_powers_far_beyond_the_range(w, dtype):
    """w^(t-k) at a distance of 3000 steps: 2^-3000 and 2^+3000."""
    cell, steps = linear(w, dtype), 3001
    x = torch.zeros(steps, 1, 1, dtype=dtype)
    unrolled = unroll(cell, x, torch.zeros(1, 1, dtype=dtype))
    output = torch.zeros(steps, 1, 1, dtype=dtype)
    output[-1] = 1
    entries = Entries.of(output)
    sign = 1 if w == 2 else -1
    with unchecked():
        for step in backpropagate(unrolled, entries):
            log2 = float(torch.log2(step.norms)) + int(step.delta.exponent)
            assert log2 == sign * (steps - 1 - step.k)


def test_a_gradient_of_2_to_the_minus_3000_has_norm_share_and_reach():
    """x enters only at step 0; the loss only at the last: the whole gradient is 0.5^3000."""
    cell, steps = linear(0.5), 3001
    x = torch.zeros(steps, 1, 1, dtype=torch.float64)
    x[0] = 1
    with unchecked():
        recorded = retrograde.record_cell(cell, x, lambda h, s: h[-1].sum())
        flow = retrograde.decompose(recorded)
    assert float(flow.by_time("weight_ih").log2[0, 0]) == -3000
    lags = flow.by_lag("weight_ih")
    assert float(lags.log2[-1]) == -3000
    assert float(lags.share[-1]) == 1
    assert flow.half_life == pytest.approx(1.0)
    assert "autograd's gradient of weight_ih is 0 in its data type" in flow.residual.note
    assert flow.residual != flow.residual  # nothing is left to compare with


@pytest.mark.parametrize("gathered", [2**21, 1])
@pytest.mark.parametrize("explodes", [False, True])
def test_one_parameter_may_have_its_gradient_on_quite_another_scale(
    monkeypatch, explodes, gathered
):
    """x enters at one end only, 110 steps and more than 150 powers of two from the rest."""
    monkeypatch.setattr(gradients, "SUMMED", gathered)
    torch.manual_seed(0)
    model = torch.nn.RNN(2, 4)
    x = torch.zeros(110, 3, 2)
    x[109 if explodes else 0] = 1e-3 * torch.randn(3, 2)
    with torch.no_grad():
        model.weight_hh_l0.copy_(torch.eye(4) * (6.0 if explodes else 0.3))
        model.bias_ih_l0.zero_()
        model.bias_hh_l0.zero_()
    found = []
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype).requires_grad_()
        with unchecked():
            with retrograde.record(model) as recording:
                model(x.to(dtype))[0][-1].sum().backward()
            gradient = retrograde.decompose(recording).gradient
        found.append(gradient["weight_ih_l0"].log2_norms())
    assert abs(float(gradient["bias_ih_l0"].log2_norms() - found[1])) > 150
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)  # what is promised of float32


def test_an_orthogonal_recurrence_keeps_norms():
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    cell = Elman(torch.ones(4, 2, dtype=torch.float64), q, activation="identity")
    x = torch.ones(300, 3, 2, dtype=torch.float64)
    flow = retrograde.decompose(retrograde.record_cell(cell, x, lambda h, s: h[-1].sum()))
    log2 = flow.adjoints.log2[0]
    torch.testing.assert_close(log2, log2[-1:].expand_as(log2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("w", [0.9, -0.7, 1.1])
def test_half_life_and_reach_of_a_scalar_recurrence(w):
    steps = 120
    flow = last_step_flow(linear(w), steps)
    exact = -1 / torch.log2(torch.tensor(abs(w), dtype=torch.float64)).item()
    assert flow.half_life == pytest.approx(exact, rel=1e-9)
    within = [lag for lag in range(steps) if abs(w) ** lag >= 0.01]
    assert flow.by_time("weight_ih").reach == max(within)


@pytest.mark.parametrize("make", [TANH, LSTM_, GRU_], ids=["elman", "lstm", "gru"])
@pytest.mark.usefixtures("unchecked")
@settings(max_examples=12)  # one for every number of rows
@given(max_rows=st.integers(1, 12), seed=st.integers(0, 5))
def test_blocks_of_entry_steps_leave_the_sums_exact(make, max_rows, seed):
    plain = plain_pass(make(), seed=seed, steps=11)
    one_each = total_gradient(*unrolled_and_entries(make(), plain))
    unrolled, entries = unrolled_and_entries(make(), plain, max_rows)
    assert len(entries) <= max_rows
    for name, blocked in total_gradient(unrolled, entries).items():
        torch.testing.assert_close(blocked, one_each[name], **EXACT)


@pytest.mark.parametrize("weights", [(1e30, 1e-32, 1e-36, 1.0), (1e-36,) * 4, (1e35,) * 4])
def test_losses_of_any_size_enter_without_loss(weights):
    """float32 entries near both ends of its range, also side by side: dL/dh_t as it was given."""
    cell, weights = linear(0.5, torch.float32), torch.tensor(weights)
    x = torch.ones(4, 1, 1)
    recorded = retrograde.record_cell(cell, x, lambda h, s: (h.flatten() * weights).sum())
    given = retrograde.decompose(recorded).adjoints.log2.diagonal()
    # a few units of float32's last place, for the norm
    torch.testing.assert_close(given, torch.log2(weights.double()), atol=1e-6, rtol=0)


def test_a_block_is_the_adjoint_of_its_summed_loss():
    cell = LSTM_()
    plain = plain_pass(cell, steps=7)
    unrolled, entries = unrolled_and_entries(cell, plain, max_rows=3)
    assert entries.blocks == ((0, 2), (3, 5), (6, 6))
    for step in backpropagate(unrolled, entries):
        for row, delta in enumerate(step.delta.plain()):
            first, last = entries.blocks[-1 - row]
            (theirs,) = plain.grad([plain.states[step.k + 1]], steps=range(first, last + 1))
            torch.testing.assert_close(delta, theirs, **EXACT)


def test_only_steps_where_the_loss_enters_have_rows():
    output = torch.zeros(9, 2, 3)
    output[[2, 7]] = 1
    entries = Entries.of(output)
    assert entries.steps.tolist() == [2, 7]
    output[-1] = 1
    assert len(Entries.of(output)) == 3
    assert len(Entries.of(0 * output)) == 0


def test_rows_are_limited_for_long_sequences():
    def rows(steps):
        return len(Entries.of(torch.ones(steps, 1, 1)))

    assert rows(1024) == 1024
    assert rows(1025) <= 512 and rows(5000) <= 512


def test_refusals():
    cell = LSTM_()
    x = torch.zeros(5, 3, 2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="Transpose a batch-first tensor"):
        unroll(cell, torch.zeros(5, 3, 7, dtype=torch.float64))
    with pytest.raises(ArgumentError, match=r"initial state must have shape \[3, 8\]"):
        unroll(cell, x, torch.zeros(3, 4, dtype=torch.float64))
    for wrong in (0, -1):
        with pytest.raises(ArgumentError, match="max_rows must be a positive integer"):
            Entries.of(torch.ones(3, 1, 1), wrong)


@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("w", [0.7, 1e-4, 3e5, 0.0])
def test_stretches_of_any_length_give_the_same_rows(monkeypatch, w, max_rows):
    """Rows that move by 13 and 18 powers of two a step, or die, end a stretch early."""
    cell, losses = linear(w), torch.tensor([1.0, -3e-30, 2.0, 0.0, 1e25]).double()
    unrolled = unroll(cell, torch.ones(40, 1, 1, dtype=torch.float64))
    entries = Entries.of(losses.repeat(8).view(-1, 1, 1), max_rows)
    found = []
    for gathered in (2**20, 1):
        monkeypatch.setattr(adjoint, "STRETCHED", gathered)
        with unchecked():
            steps = list(backpropagate(unrolled, entries))
        found.append(steps)
    for one, other in zip(*found, strict=True):
        assert one.k == other.k
        unit = one.delta.exponent - other.delta.exponent
        same = torch.ldexp(one.delta.values.flatten(), unit)
        torch.testing.assert_close(same, other.delta.values.flatten(), rtol=1e-14, atol=0)


def test_rows_that_shrink_evenly_go_through_each_step_once(monkeypatch):
    """They start high up in the range, those that enter on the way as well, and are 2^-33 smaller
    after 64 steps."""
    lengths = []

    class Counting(Eager):
        def pull_back(self, chunk, start, entering, scales=None):
            lengths.append(len(entering))
            return super().pull_back(chunk, start, entering, scales)

    monkeypatch.setattr(adjoint, "backend", Counting)
    unrolled = unroll(linear(0.7), torch.ones(160, 1, 1, dtype=torch.float64))
    entries = Entries.of(torch.ones(160, 1, 1, dtype=torch.float64))
    with unchecked():
        steps = list(backpropagate(unrolled, entries))
    assert sum(lengths) == 160 and max(lengths) == 64
    sizes = steps[-1].delta.log2_norms()
    expected = torch.arange(160, dtype=torch.float64).flip(0) * torch.tensor(0.7).double().log2()
    torch.testing.assert_close(sizes, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [(torch.float32, 125), (torch.float32, -90), (torch.float32, -120), (torch.float64, -1000)],
)
@pytest.mark.parametrize("w", [0.5, 2.0**-13, 2.0**13])  # in range, and out at either end
def test_losses_near_the_ends_of_the_range_open_rows(monkeypatch, dtype, exponent, w):
    monkeypatch.setattr(adjoint, "backend", Eager)
    unrolled = unroll(linear(w, dtype), torch.zeros(12, 1, 1, dtype=dtype))
    entries = Entries.of(torch.full((12, 1, 1), 2.0**exponent, dtype=dtype))
    log2_w = torch.tensor(w).double().log2()
    with unchecked():
        for step in backpropagate(unrolled, entries):
            lags = torch.arange(11 - step.k, -1, -1)
            assert torch.equal(step.delta.log2_norms(), exponent + lags * log2_w)


@pytest.mark.parametrize("relative", [None, 2])
def test_no_rows_are_held_while_the_next_ones_are_pulled_back(monkeypatch, relative):
    held = []

    class Watching(Eager):
        def pull_back(self, chunk, start, entering, scales=None):
            assert all(values() is None for values in held)
            assert not torch.is_grad_enabled()
            return super().pull_back(chunk, start, entering, scales)

    monkeypatch.setattr(adjoint, "backend", Watching)
    cell = linear(0.7)
    unrolled = unroll(cell, torch.ones(160, 1, 1, dtype=torch.float64))
    direct = torch.ones(160, 1, 1, dtype=torch.float64)
    every = (
        merged_rows(unrolled, Entries.merging(direct, relative))
        if relative
        else rows_of_entries(unrolled, Entries.of(direct))
    )
    for span in every:
        assert torch.is_grad_enabled()
        held.append(weakref.ref(span.values))
        del span
    assert len(held) > 2


@pytest.mark.parametrize("by_crossing", [False, True])
def test_a_single_step_beyond_the_range_is_named(by_crossing):
    cell = linear(3e38, torch.float32)
    unrolled = unroll(cell, torch.zeros(4, 1, 1))
    output = torch.full((4, 1, 1), 3e38)
    entries = Entries.of(output)
    with pytest.raises(NonFiniteError, match="within one step"):
        if by_crossing:
            list(backpropagate_by_crossing(unrolled, entries, 3))
        else:
            list(backpropagate(unrolled, entries))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [False, True])
def test_rows_that_shrank_may_grow_by_2_to_the_90_in_one_step(backend, every):
    """Each unit hands on to the one before it, so that each lag has a factor of its own."""
    factors = [-12, -12, -12, -12, 90, -3, 90, -60]
    size, steps = len(factors) + 1, 14
    weights = torch.diag(torch.exp2(torch.tensor(factors[::-1], dtype=torch.float32)), -1)
    cell = Elman(torch.ones(size, 1), weights, activation="identity")
    direct = torch.zeros(steps, 2, size)
    direct[0 if every else -1 :, 0, -1] = 1
    expected = torch.tensor([0, *factors]).cumsum(0).double()
    expected = torch.cat((expected, expected.new_full((steps - size,), -torch.inf)))
    with unchecked(), using(backend):
        unrolled, entries = unroll(cell, torch.zeros(steps, 2, 1)), Entries.of(direct)
        for step in backpropagate(unrolled, entries):
            assert torch.equal(step.delta.log2_norms(), expected[step.lags])
