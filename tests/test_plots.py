"""Matplotlib draws the same numbers in the same colours, on the axes that it is given."""

import json
import re

import pytest
import torch

import retrograde
from retrograde.charts import COUNTER, INK, SERIES

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")


@pytest.fixture(scope="module")
def recording():
    torch.manual_seed(0)
    model = torch.nn.LSTM(2, 4)
    with retrograde.record(model) as recording:
        model(torch.randn(30, 3, 2))[0][-2:].square().sum().backward()
    return recording


@pytest.fixture(scope="module")
def flow(recording):
    return retrograde.decompose(recording)


def colours(bars):
    return [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars]


def test_bars_are_the_shares(flow):
    parts = flow.by_lag()
    _, ax = parts.plot()
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(parts.share.tolist())
    assert colours(ax.patches) == [COUNTER if s < 0 else INK for s in parts.share.tolist()]


def test_routes_are_stacked_to_the_shares_of_their_lags(flow):
    parts = flow.by_route()
    _, ax = parts.plot()
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches]
    lags = len(parts.lags)
    drawn = torch.tensor([float(bar.get_height()) for bar in ax.patches]).reshape(-1, lags)
    torch.testing.assert_close(drawn, parts.share.float(), rtol=1e-4, atol=1e-6)
    assert max(tops) == pytest.approx(float(parts.share.clamp(min=0).sum(0).max()), rel=1e-4)
    assert colours(ax.patches[::lags]) == list(SERIES[: len(parts.labels)])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(parts.labels)


def test_the_map_has_the_sizes(flow):
    parts = flow.by_time()
    figure, ax = parts.plot()
    [mesh] = ax.collections
    shown = torch.tensor(mesh.get_array().filled(torch.nan)).reshape(parts.shape)
    seen = parts.log2.isfinite()
    torch.testing.assert_close(shown[seen], parts.log2[seen], rtol=0, atol=1e-6)
    assert shown[~seen].isnan().all()
    assert len(figure.axes) == 2  # the map and its colour bar


def test_the_curve_has_reach_and_half_life(flow):
    _, ax = flow.plot()
    curve, reach, _, slope = ax.lines
    mean = flow.by_time().log2_mean_by_lag
    assert list(curve.get_ydata()) == pytest.approx(mean[mean.isfinite()].tolist())
    assert set(reach.get_xdata()) == {flow.reach}
    first, second = slope.get_ydata()[:2]
    assert first - second == pytest.approx(1 / flow.half_life)


@pytest.mark.parametrize("what", ["by_parameter", "by_unit", "by_crossing"])
def test_every_decomposition_has_a_plot(flow, what):
    _, ax = getattr(flow, what)().plot()
    assert ax.has_data()


def test_spectra_and_training_runs(recording):
    spectrum = retrograde.spectrum(recording, n=3)
    _, ax = spectrum.exponents.plot()
    assert len(ax.lines) == 3
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(
        float(spectrum.exponents.curve.mean(1)[-1, 0])
    )
    _, ax = spectrum.singular_values([1, 4]).plot()
    assert list(ax.lines[0].get_xdata()) == [1, 4]
    model = torch.nn.GRU(2, 3)
    monitor = retrograde.Monitor(model, every=1)
    for _ in range(3):
        with monitor:
            model(torch.ones(9, 2, 2))[0][-1].sum().backward()
    _, ax = monitor.history.plot(needs_lag=5)
    assert list(ax.lines[0].get_ydata()) == [v for _, v in monitor.history.of("GRU", "reach")]


def test_the_colours_and_axes_are_those_of_the_charts(flow, recording):
    horizon = flow.horizon()
    for drawn in (flow, horizon):
        figure, ax = drawn.plot()
        chart = drawn.chart().to_dict()
        lines = {matplotlib.colors.to_hex(line.get_color()) for line in ax.lines}
        assert lines == set(re.findall("#[0-9a-f]{6}", json.dumps(chart["layer"])))
        named = chart["layer"][0]["encoding"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == (named["x"]["title"], named["y"]["title"])
        figure.canvas.draw()
        assert all(tick == int(tick) for tick in ax.get_xticks())


def test_axes_that_are_given_are_drawn_on(flow):
    figure, (left, right) = matplotlib.pyplot.subplots(1, 2)
    assert flow.by_lag().plot(ax=left) == (figure, left)
    assert flow.plot(ax=right) == (figure, right)
    assert left.has_data() and right.has_data()


def test_a_gradient_of_zero_is_no_error():
    model = torch.nn.RNN(2, 3)
    with retrograde.record(model) as recording:
        (model(torch.ones(5, 1, 2))[0] * 0).sum().backward()
    flow = retrograde.decompose(recording)
    for parts in (flow, flow.by_lag(), flow.by_time(), flow.by_route(), flow.by_parameter()):
        parts.plot()
    matplotlib.pyplot.close("all")
