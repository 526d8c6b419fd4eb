"""Rows of constant relative resolution against one row for each loss step."""

import math

import pytest
import torch
from scipy import stats

import retrograde
from retrograde.decomposition import resolution
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import LagSums
from retrograde.decomposition.lags import mean_by_lag, reach_of
from retrograde.decomposition.sizes import (
    ALL,
    STATE,
    LagSizes,
    chi_square_quantile,
    relative_bins,
)
from retrograde.engine import Entries, Scaled, Unrolled, fold, merging, unroll
from retrograde.engine.adjoint import rows_of_entries
from retrograde.engine.merging import merged_rows
from retrograde.errors import ArgumentError
from support.type_checks import unchecked


def a_pass(steps: int, model: torch.nn.Module, batch: int = 2, every: int = 1, share: float = 1):
    """A recorded pass with a loss at every so many steps, or at a share of them that is drawn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, batch, 2, generator=generator)
    given = torch.randn(steps, batch, 3, generator=generator)
    given[torch.arange(steps) % every > 0] = 0
    given[torch.rand(steps, generator=generator) >= share] = 0
    with retrograde.record(model) as recording:
        (model(x)[0] * given).sum().backward()
    return recording.only()


def lstm(forget: float = 2.0) -> torch.nn.LSTM:
    torch.manual_seed(0)
    model = torch.nn.LSTM(2, 3)
    with torch.no_grad():
        model.bias_ih_l0[3:6] += forget
    return model


def unrolled(recorded) -> Unrolled:
    return unroll(recorded.cell, recorded.x, recorded.initial)


def test_sums_and_shares_of_4000_steps_are_those_of_all_rows():
    """Also of bins, whose edges are exact where they are given; T steps take few rows."""
    torch.manual_seed(0)
    recorded, bins = a_pass(4000, torch.nn.RNN(2, 3), 1, every=2), (0, 1, 5, 16, 40, 107)
    with unchecked():
        merged = retrograde.decompose(recorded, relative=16)
        widest = max(len(span.norms) for span in merged_rows(merged.unrolled, merged.entries))
        sums = LagSums(lag_bins(bins, 4000), recorded.cell)
        fold(merged.unrolled, Entries.of(recorded.direct, 4000), [sums])
        every = sums.result()
    assert merged.residual.ok and float(merged.residual) < 1e-5
    assert widest < 16 * math.log2(4000 / 16) + 16 + 2 * 32  # and those that wait for a chunk's end
    for name in merged.parameters:
        mine, theirs = merged.by_lag(name, bins), every[name]
        torch.testing.assert_close(mine.share, theirs.share, atol=1e-5, rtol=0)
        whole = sum(theirs.parts())  # rounding is one of terms that nearly cancel: of the largest
        error = (sum(mine.parts()) - whole).abs().max()
        assert float(error) < 1e-5 * float(whole.abs().max())
        assert float(mine.share.sum()) == pytest.approx(1, abs=1e-6)  # parts are in float32


def test_sizes_at_short_lags_are_exact_and_those_at_long_ones_lead_to_the_same_answers():
    recorded = a_pass(300, lstm())
    merged, every = (retrograde.decompose(recorded, relative=r) for r in (16, None))
    for name in merged.parameters:
        near = merged.sizes.log2[name][:16]
        squares = torch.exp2(2 * every.by_time(name).log2)
        exact = torch.stack([squares.diagonal(-lag).mean().log2() / 2 for lag in range(16)])
        torch.testing.assert_close(near, exact, atol=1e-4, rtol=0)
    table = every.by_time()
    reach = reach_of(mean_by_lag(2 * table.log2, table.lags) / 2)  # of root mean squares, too
    assert merged.reach == pytest.approx(reach, rel=1 / 8)
    assert merged.half_life == pytest.approx(every.half_life, rel=0.25)


@pytest.mark.parametrize("every", [1, 7, 60, 300])
def test_a_row_is_the_adjoint_of_its_entries_and_no_wider_than_its_lag_allows(every):
    recorded = a_pass(300, lstm(1.0), every=every)
    whole, entries = unrolled(recorded), Entries.merging(recorded.direct, 4)
    given, last = entries.blocks, 0
    with unchecked():
        for span in merged_rows(whole, entries, torch.Generator().manual_seed(0)):
            counts = span.signed.entries.tolist()
            assert sum(counts) == sum(first >= span.first for first, _ in given)
            last, rows = span, []
            for number, count in enumerate(counts):
                steps = [first for first, _ in given[len(given) - sum(counts[: number + 1]) :]][
                    :count
                ]
                rows.append((steps[0], steps[-1]))
                width, lag = steps[-1] - steps[0] + 1, steps[0] - span.first
                assert width == 1 or width <= lag / 4 + 32  # merged in between, at most
        # At the first step: the sum of what its entries give alone.
        *_, single = rows_of_entries(whole, Entries.of(recorded.direct, 300))
    alone = Scaled(single.values[:, 0].double(), single.exponent[:, 0]).plain()
    row = torch.tensor([number for number, count in enumerate(counts) for _ in range(count)])
    sums = torch.zeros(len(rows), *alone.shape[1:], dtype=alone.dtype).index_add_(0, row, alone)
    merged = Scaled(last.values[:, 0].double(), last.exponent[:, 0]).plain()
    torch.testing.assert_close(merged, sums, rtol=1e-4, atol=1e-6 * float(sums.abs().max()))
    for one, other in zip(merged, sums, strict=True):  # far rows are small, and right as well
        assert float((one - other).norm()) < 1e-3 * float(other.norm())


def expected(recorded, whole, entries, lags):
    """The sums of squares by bin, of all pairs at the lag of their row."""
    squares = torch.exp2(2 * retrograde.decompose(recorded, max_rows=10**6).by_time().log2).flip(0)
    before = torch.cat((torch.zeros(1, len(whole), dtype=torch.float64), squares.cumsum(0)))
    starts = torch.tensor([bin_.start for bin_ in lags[1:]])
    total = torch.zeros(len(lags), dtype=torch.float64)
    for span in merged_rows(whole, entries, torch.Generator().manual_seed(0)):
        stop = span.signed.entries.cumsum(0)
        own = before[stop][:, span.steps] - before[stop - span.signed.entries][:, span.steps]
        bins = torch.bucketize(span.lags.clamp(min=0), starts, right=True)
        total.index_add_(0, bins[span.lags >= 0], own[span.lags >= 0])
    return total


def coverage(recorded, draws: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How often the interval holds the mean square, bin by bin, and the mean of all draws."""
    whole, entries = unrolled(recorded), Entries.merging(recorded.direct, 16)
    lags = relative_bins(16, len(whole))
    exact = expected(recorded, whole, entries, lags)
    some = exact > 0
    generator = torch.Generator().manual_seed(0)
    inside, mean = torch.zeros(len(lags)), torch.zeros(len(lags), dtype=torch.float64)
    for _ in range(draws):
        sizes_of = LagSizes(entries, len(whole), tuple(recorded.cell.parameters))
        for span in merged_rows(whole, entries, generator):
            sizes_of.update(span)
        sizes = sizes_of.result()
        low, high = sizes.interval[ALL]
        assert (low <= sizes.log2[ALL]).all() and (sizes.log2[ALL] <= high).all()
        root = torch.log2(exact / sizes.count) / 2
        inside += (low - 1e-5 <= root) & (root <= high + 1e-5)
        mean += torch.exp2(2 * (sizes.log2[ALL] - root)) / draws
    return inside[some] / draws, mean[some]


def test_mean_squares_are_unbiased_and_their_intervals_hold_them():
    """Of 1,000 draws they hold 95 % in each bin: benchmarks/interval_coverage.py."""
    with unchecked():
        inside, mean = coverage(a_pass(400, lstm(1.0)), 8)
    assert float(inside.mean()) > 0.98 and float(inside.min()) >= 0.75
    assert float((mean - 1).abs().max()) < 0.25 and float((mean - 1).abs().mean()) < 0.03


def test_rows_of_up_to_four_entries_have_exact_sizes():
    """Their intervals are points."""
    recorded = a_pass(160, lstm(1.0), every=40)
    with unchecked():
        sizes = retrograde.decompose(recorded, relative=1).sizes
        inside, _ = coverage(recorded, 1)
    assert bool((inside == 1).all())
    for name, log2 in sizes.log2.items():
        assert torch.equal(sizes.interval[name], log2.expand(2, -1))


def test_sizes_where_no_row_of_one_entry_is_left():
    """All that there is were merged long before the pass begins."""
    torch.manual_seed(0)
    model, x = lstm(1.0), torch.randn(300, 2, 2)
    with retrograde.record(model) as recording:
        model(x)[0][249:252].square().sum().backward()
    with unchecked():
        merged, every = (retrograde.decompose(recording.only(), relative=r) for r in (2, None))
        *_, last = merged_rows(merged.unrolled, merged.entries, torch.Generator().manual_seed(0))
    assert len(last.norms) == last.signed.merged
    table = every.by_time()
    root = mean_by_lag(2 * table.log2, table.lags) / 2
    torch.testing.assert_close(merged.sizes.log2[ALL][:2], root[:2], atol=1e-4, rtol=0)
    assert merged.reach == pytest.approx(reach_of(root), abs=2)


@pytest.mark.parametrize(("share", "relative"), [(0.1, 16), (0.3, 4), (0.7, 8)])
def test_sizes_where_the_loss_enters_at_irregular_steps(share, relative):
    """Rows that have not been merged then stand between merged ones."""
    recorded = a_pass(250, lstm(1.0), share=share)
    with unchecked():
        merged = retrograde.decompose(recorded, relative=relative)
        table = retrograde.decompose(recorded).by_time()
        inside, mean = coverage(recorded, 2)
    reach = reach_of(mean_by_lag(2 * table.log2, table.lags) / 2)  # of root mean squares, too
    assert merged.reach == pytest.approx(reach, rel=1 / 8, abs=1)
    assert float(inside.mean()) > 0.95 and float((mean - 1).abs().mean()) < 0.1


def test_quantiles_are_those_of_scipy():
    freedom = torch.tensor([0.5, 1, 2, 4, 7.3, 32, 1e3, 1e6], dtype=torch.float64)
    for tail in (0.025, 0.5, 0.975):
        mine = chi_square_quantile(torch.full_like(freedom, tail), freedom)
        theirs = torch.from_numpy(stats.chi2.ppf(tail, freedom.numpy()))
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_signs_that_are_left_out_are_seen(monkeypatch):
    """Without signs the companions are what the merged rows are."""
    none = [[False] * 4096] * merging.COMPANIONS
    monkeypatch.setattr(merging.Merging, "_signs", lambda self, m: [n[: len(m)] for n in none])
    with unchecked():
        _, mean = coverage(a_pass(400, lstm(1.0)), 1)
    assert float((mean - 1).abs().max()) > 0.5


def test_sizes_far_out_of_range():
    """2^-3000 at lag 3000, in bins and in the slope; intervals are points, as there is one loss."""
    one = torch.ones(1, 1)
    cell = retrograde.cells.Elman(one, 0.5 * one, activation="identity")
    with unchecked():
        recorded = retrograde.record_cell(cell, torch.ones(3001, 1, 1), lambda h, s: h[-1].sum())
        sizes = retrograde.decompose(recorded, relative=16).sizes
    middle = torch.tensor([(bin_[0] + bin_[-1]) / 2 for bin_ in sizes.lags])
    assert float((sizes.log2[STATE] + middle).abs()[:17].max()) == 0
    assert sizes.rate == pytest.approx(-1, rel=0.05)
    assert torch.equal(sizes.interval[STATE], sizes.log2[STATE].expand(2, -1))


def test_rows_are_merged_where_their_tables_would_not_fit_into_memory(monkeypatch):
    """A loss at few of the steps has few rows, however long the sequence."""
    monkeypatch.setattr(resolution, "TABLES", 8 * 10 * 200 * 40)  # 40 rows of 200 steps
    for every, relative in ((1, 16), (4, 16), (5, None), (200, None)):
        flow = retrograde.decompose(a_pass(200, lstm(), every=every))
        assert flow.entries.relative == relative
        assert flow.entries.resolution == (12 if relative else 1)
    assert retrograde.decompose(flow.recorded, max_rows=200).entries.relative is None


def test_merged_rows_answer_every_question_but_those_by_loss_step():
    flow = retrograde.decompose(a_pass(60, lstm()), relative=4)
    with pytest.raises(ArgumentError, match="rows were merged as their lags grew"):
        flow.by_time()
    with pytest.raises(ArgumentError, match="by_time has its contributions"):
        _ = retrograde.decompose(a_pass(9, lstm())).sizes
    with pytest.raises(ArgumentError, match="give max_rows or relative, not both"):
        retrograde.decompose(a_pass(9, lstm()), max_rows=3, relative=4)
    every = retrograde.decompose(flow.recorded)
    for name in ("weight_hh_l0", "input"):
        theirs = every.by_lag(name, (0, 9, 31)).parts()
        torch.testing.assert_close(flow.by_lag(name, (0, 9, 31)).parts(), theirs)
    assert flow.by_route("weight_hh_l0").sum("route").share.sum() == pytest.approx(1)
    assert flow.by_crossing("weight_hh_l0", 3).share.sum() == pytest.approx(1)
    assert flow.by_unit("weight_hh_l0").share.sum() == pytest.approx(1)
    assert flow.by_parameter().share.sum() == pytest.approx(1)
    assert flow.by_lag("input").parts()[0].shape == flow.unrolled.x.shape
    assert flow.without("carousel").residual.ok
    assert flow.summary().reach == flow.reach
    assert flow.horizon().window(delta=0.5) is not None
    assert lag_bins("octaves", 60) == flow.by_lag("weight_hh_l0").lags
