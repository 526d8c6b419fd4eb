"""Rows by crossing against the recursion written out, in plain numbers and step by step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde.engine import Entries, Scaled, backpropagate_by_crossing, crossings, gathered
from retrograde.engine.crossings import gradients_by_crossing, rows_by_crossing
from retrograde.engine.gradients import ParameterSums
from support.backends import BACKENDS, using
from support.type_checks import unchecked

CLASSES = 4


def a_pass(kind, steps, scale=1.0, dtype=torch.float64):
    """A flow; the recurrent weights are multiplied by `scale`."""
    torch.manual_seed(0)
    model = kind(2, 4)
    with torch.no_grad():
        model.weight_hh_l0 *= scale
    model, x, weights = model.to(dtype), torch.randn(steps, 3, 2), torch.randn(steps, 3, 4)
    with retrograde.record(model) as recording:
        (model(x.to(dtype))[0] * weights.to(dtype)).sum().backward()
    return retrograde.decompose(recording)


def written_out(flow, entries):
    """v(n)_k of every block of entries at every step, [T, E, classes, B, S], latest block first."""
    unrolled, direct = flow.unrolled, entries.direct
    recurrent = set(unrolled.cell.recurrent_routes)
    others = set(unrolled.cell.routes) - recurrent
    rows = direct.new_zeros(len(entries), CLASSES, *direct.shape[1:])
    found = direct.new_zeros(len(direct), *rows.shape)
    for k in reversed(range(len(direct))):
        for number, (first, last) in enumerate(reversed(entries.blocks)):
            if first <= k <= last:
                rows[number, 0] += direct[k]
        found[k] = rows
        pulled = unrolled.chunk(k, k + 1).pull_back(rows.flatten(0, 1), k)
        crossed = pulled.along(recurrent).view_as(rows)
        rows = pulled.along(others).view_as(rows).clone()
        rows[:, 1:] += crossed[:, :-1]
        rows[:, -1] += crossed[:, -1]
    return found


def compare(step, expected):
    """To rounding; numbers below the normal range become 0 in the compiled library."""
    rows = step.delta.plain().double()
    tiny = torch.finfo(torch.float64).tiny
    torch.testing.assert_close(rows, expected.flatten(0, 1)[: len(rows)], rtol=1e-10, atol=tiny)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 30.0])
def test_rows_in_stretches_are_those_of_the_recursion_written_out(kind, scale):
    """With weights times 1e-6 a class is 2^-20 of the one before, and a stretch ends soon."""
    flow = a_pass(kind, 36, scale)
    for entries in (flow.entries, Entries.of(flow.entries.direct, 7)):
        with unchecked():
            expected, steps = written_out(flow, entries), []
            for step in backpropagate_by_crossing(flow.unrolled, entries, CLASSES):
                compare(step, expected[step.k])
                steps.append(step.k)
        assert steps == list(range(35, -1, -1))


@pytest.mark.parametrize("held", [1, 5, 64])
def test_gradients_are_the_same_however_many_steps_are_held(held, monkeypatch):
    flow = a_pass(nn.LSTM, 70)
    unrolled, entries, starts = flow.unrolled, flow.entries, [0, 1, 4]
    bins, number = len(starts), torch.arange(CLASSES).view(-1, 1) * len(starts)
    expected = ParameterSums(unrolled.cell.parameters, CLASSES * bins)
    with unchecked():
        for k, rows in enumerate(written_out(flow, entries)):
            lags = torch.arange(69, -1, -1) - k
            places = (torch.bucketize(lags, torch.tensor(starts[1:]), right=True) + number).T[
                lags >= 0
            ]
            sums = rows.new_zeros(CLASSES * bins, *rows.shape[2:])
            sums.index_add_(0, places.flatten(), rows[lags >= 0].flatten(0, 1))
            expected.add(unrolled.chunk(k, k + 1).pull_back(sums, k))
    monkeypatch.setattr(gathered, "HELD", held * CLASSES * bins * entries.direct[0].numel())
    found = gradients_by_crossing(unrolled, entries, CLASSES, starts)
    for name, rows in expected.result().items():
        torch.testing.assert_close(found[name].plain(), rows.values, rtol=1e-10, atol=1e-12)


def test_classes_far_below_each_other_do_not_get_lost_in_float32():
    """Each is about 2^-60 of the one before; beside the first the last could not be written."""
    flow = a_pass(nn.LSTM, 12, 1e-18, torch.float32)
    exact = a_pass(nn.LSTM, 12, 1e-18)
    with unchecked():
        expected = written_out(exact, exact.entries)
        for step in backpropagate_by_crossing(flow.unrolled, flow.entries, CLASSES):
            found = step.delta.log2_norms()
            rows = expected[step.k].flatten(0, 1).flatten(1)[: len(found)]
            norms = torch.linalg.vector_norm(rows, dim=1).log2()
            torch.testing.assert_close(found, norms, atol=1e-4, rtol=0)


def test_merged_rows_are_the_sums_of_those_of_their_entries():
    flow = a_pass(nn.LSTM, 150)
    every, merged = flow.entries, Entries.merging(flow.entries.direct, 2)
    with unchecked():
        expected = written_out(flow, every)
    for span in rows_by_crossing(flow.unrolled, merged, CLASSES):
        rows = Scaled(span.values[:, 0], span.exponent[:, 0]).plain().unflatten(0, (-1, CLASSES))
        torch.testing.assert_close(rows.sum(0), expected[span.first].sum(0), rtol=1e-9, atol=0)
        lags = span.lags[:, 0]
        near = lags < 2  # known exactly: rows of single entries
        single = every.lags(span.first, 150 - span.first)
        for lag, row in zip(lags[near].tolist(), rows[near], strict=True):
            (own,) = expected[span.first, single.tolist().index(lag)].unsqueeze(0)
            torch.testing.assert_close(row, own, rtol=1e-9, atol=0)
    assert len(rows) < 40 and bool((span.norms > 0).any())


@pytest.mark.parametrize("turn", [1, 4, 7])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 30.0])
def test_rows_that_are_merged_on_the_way_make_the_same_gradients(turn, scale, monkeypatch):
    """Bins that merged rows tell exactly, in stretches that end at any step."""
    monkeypatch.setattr(crossings, "TURN", turn)
    flow, starts = a_pass(nn.LSTM, 100, scale), [0, 1, 2, 5]
    unrolled, direct = flow.unrolled, flow.entries.direct.clone()
    direct[30:50] = 0
    merged = replace(Entries.merging(direct, 2), exact=5)
    expected = gradients_by_crossing(unrolled, Entries.of(direct), CLASSES, starts)
    found = gradients_by_crossing(unrolled, merged, CLASSES, starts)
    for name, rows in expected.items():
        shift = torch.exp2((found[name].exponent - rows.exponent).double())
        values = (found[name].values.flatten(1) * shift.unsqueeze(1), rows.values.flatten(1))
        error = (values[0] - values[1]).norm(dim=1)
        assert bool((error <= 1e-10 * values[1].norm(dim=1)).all())


def test_rows_on_quite_another_scale_are_not_lost_as_they_are_merged_on_the_way():
    """An entry of a loss of 2^-90 beside one of 2^90, which crosses less often than it does."""
    flow = a_pass(nn.RNN, 48, dtype=torch.float32)
    unrolled, direct = flow.unrolled, flow.entries.direct.clone()
    direct[:40] *= 2.0**90
    direct[40:] *= 2.0**-90
    expected = gradients_by_crossing(unrolled, Entries.of(direct), 48, [0])
    found = gradients_by_crossing(unrolled, Entries.merging(direct, 1), 48, [0])
    for name in unrolled.cell.parameters:
        sizes, ours = (each[name].log2_norms()[40:47] for each in (expected, found))
        assert bool(((sizes < -90) & sizes.isfinite()).all())
        torch.testing.assert_close(ours, sizes, rtol=0, atol=1e-3)


def test_entries_are_merged_at_the_same_steps_whoever_pulls_them_back():
    """So bins that merged rows do not tell exactly hold the same, too."""
    found = []
    for backend in BACKENDS:
        with using(backend):
            flow = a_pass(nn.LSTM, 100)
            merged = Entries.merging(flow.entries.direct, 2)
            starts = [*range(12), 17, 30]
            found.append(gradients_by_crossing(flow.unrolled, merged, CLASSES, starts))
    for name, rows in found[0].items():
        torch.testing.assert_close(found[1][name].plain(), rows.plain(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_on_both_sides_of_a_state_that_is_reordered_stay_apart(backend):
    """Rows are not summed where a state is reordered, and what is held there is not continued.

    Much is forgotten at each step, so that stretches are short and sums are held.
    """
    torch.manual_seed(0)
    model, order = torch.nn.LSTM(2, 3).double(), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        model.bias_hh_l0[3:6] -= 4
    x = torch.randn(60, 4, 2, dtype=torch.float64)
    with using(backend), retrograde.record(model) as recording:
        early, state = model(x[:20])
        late, _ = model(x[20:], tuple(part[:, order] for part in state))
        torch.cat((early, late)).square().mean().backward()
    with using(backend):
        parts = retrograde.decompose(recording).by_crossing("weight_hh_l0", max_crossings=2)
    torch.testing.assert_close(parts.parts().sum((0, 1)), model.weight_hh_l0.grad)
