"""Bins that are named before the walk are summed from its parts, as their own pass would do."""

import pytest
import torch

import retrograde
from retrograde.decomposition.from_recording import unasked


@pytest.fixture(name="passed")
def _passed():
    """A recorded pass, and the input, which got a gradient."""
    model = torch.nn.LSTM(2, 3).double()
    x = torch.randn(23, 2, 2, dtype=torch.float64, requires_grad=True)
    with retrograde.record(model) as recording:
        model(x)[0].square().mean().backward()
    return recording["LSTM"], x


@pytest.mark.parametrize("max_rows", [None, 5])
def test_bins_named_ahead_equal_those_of_their_own_pass(passed, max_rows, monkeypatch):
    recorded, asked = passed[0], ((0, 7), (0, 4, 7, 11), (0,), "octaves", (0, 5))
    own = [unasked(recorded, max_rows).by_lag(bins=bins) for bins in asked]
    flow = unasked(recorded, max_rows).walked({4, 7, 11})
    assert flow.residual < 1e-12 and float(flow.by_time().share.sum()) == pytest.approx(1)
    passes = []
    scan = retrograde.decomposition.by_lag.fold
    monkeypatch.setattr(
        retrograde.decomposition.by_lag, "fold", lambda *given: passes.append(1) or scan(*given)
    )
    for bins, alone in zip(asked, own, strict=True):
        ahead = flow.by_lag(bins=bins)
        assert ahead.axes == alone.axes
        torch.testing.assert_close(ahead.log2, alone.log2)
        torch.testing.assert_close(ahead.share, alone.share)
    assert not passes


def test_routes_named_ahead_equal_those_of_their_own_pass_and_take_none(passed, monkeypatch):
    """The report asks for them after the diagnosis."""
    recorded, _ = passed
    own = unasked(recorded).by_route("weight_hh_l0")
    flow = unasked(recorded).walked(routes=True)
    passes = []
    monkeypatch.setattr(retrograde.decomposition.by_route, "fold", lambda *_: passes.append(1))
    ahead = flow.by_route("weight_hh_l0")
    assert not passes
    assert ahead.axes == own.axes
    torch.testing.assert_close(ahead.log2, own.log2)
    torch.testing.assert_close(ahead.share, own.share)


@pytest.mark.parametrize("max_rows", [None, 5])
def test_inputs_named_ahead_equal_those_of_their_own_pass_and_take_none(
    passed, max_rows, monkeypatch
):
    """A horizon asks for them beside the lags."""
    recorded, x = passed
    own = unasked(recorded, max_rows).by_lag("input")
    flow = unasked(recorded, max_rows).walked(inputs=True)
    passes = []
    monkeypatch.setattr(retrograde.decomposition.by_input, "fold", lambda *_: passes.append(1))
    ahead = flow.by_lag("input")
    assert not passes
    assert ahead.axes == own.axes
    torch.testing.assert_close(ahead.log2, own.log2)
    torch.testing.assert_close(ahead.parts().sum(0), x.grad)
