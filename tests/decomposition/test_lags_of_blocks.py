"""Blocks of loss steps make a table smaller; what is asked by lag does not get coarser with it."""

import pytest
import torch

import retrograde
from retrograde.decomposition.summary import summarise
from retrograde.engine import entries

STEPS = 150
"""More than are taken at once, so that rows are merged."""


@pytest.fixture
def recorded():
    """A loss that enters at every step but a few, an LSTM of 3."""
    torch.manual_seed(0)
    model = torch.nn.LSTM(2, 3).double()
    weights = torch.rand(STEPS, 1, 1, dtype=torch.float64)
    weights[47:90] = 0
    with retrograde.record(model) as recording:
        output, _ = model(torch.randn(STEPS, 2, 2, dtype=torch.float64))
        (weights * output**3).sum().backward()
    return recording["LSTM"]


@pytest.mark.parametrize("max_rows", [4, 13])
@pytest.mark.parametrize(
    "asked",
    [
        lambda flow: flow.by_lag(bins=(0, 1, 2, 7, 23, 101)),
        lambda flow: flow.by_lag("weight_hh_l0", bins="every"),
        lambda flow: flow.by_lag("input", bins=(0, 3, 90)),
        lambda flow: flow.by_route(bins=(0, 1, 5, 102)),
        lambda flow: flow.by_crossing("weight_ih_l0", max_crossings=3, bins=(0, 1, 4, 73)),
        lambda flow: flow.by_unit("bias_hh_l0", bins=(0, 2, 85)),
    ],
    ids=["lag", "every", "input", "route", "crossing", "unit"],
)
def test_parts_by_lag_are_the_same_however_many_rows_the_table_has(recorded, max_rows, asked):
    single = asked(retrograde.decompose(recorded))
    blocks = asked(retrograde.decompose(recorded, max_rows=max_rows))
    assert blocks.axes == single.axes
    torch.testing.assert_close(blocks.parts(), single.parts(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(blocks.share, single.share, rtol=1e-9, atol=1e-12)


def test_blocks_taken_by_default_tell_near_lags_in_a_summary_too(recorded, monkeypatch):
    near, carousel = (s := retrograde.decompose(recorded).summary()).near, s.carousel
    monkeypatch.setattr(entries, "FULL_ROWS", STEPS // 2)
    monkeypatch.setattr(entries, "BLOCK_ROWS", 6)
    flow = retrograde.decompose(recorded)
    assert flow.entries.resolution > 1
    for summary in (flow.summary(), summarise(recorded)):
        assert summary.near == pytest.approx(near, rel=1e-9)
        assert summary.carousel == pytest.approx(carousel, rel=1e-9)
