"""The report as data, text, JSON and charts; the page in a browser is test_page.py's."""

import csv
import io
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import retrograde
from retrograde import charts
from retrograde.errors import ArgumentError, InputError, NonFiniteError
from retrograde.report import Horizon, Layer, Report


def flow_of(model, steps=12, loss=lambda out: out[0].square().sum()):
    torch.manual_seed(0)
    model = model.double()
    with retrograde.record(model) as recording:
        loss(model(torch.randn(steps, 3, 2, dtype=torch.float64))).backward()
    return retrograde.decompose(recording)


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(1)
    layers = tuple(Layer(kind.__name__, flow_of(kind(2, 4))) for kind in (nn.RNN, nn.LSTM))
    return Report("A title", layers, (0, 3, 8), Horizon(8, "the season"), ("A note.",))


def test_the_table_says_what_the_flows_say(report):
    titles, rows = report.table()
    assert titles[-4:] == ("lags 0-2", "lags 3-7", "lags 8-11", "residual")
    for layer, row in zip(report.layers, rows, strict=True):
        flow = layer.flow
        assert row[0] == layer.name
        assert row[1] == f"{flow.reach} of 11"
        assert float(row[2]) == pytest.approx(flow.half_life, rel=1e-2)
        share = [float(cell.rstrip("%")) for cell in row[3:6]]
        assert sum(share) == pytest.approx(100, abs=0.2)
        assert share == pytest.approx((100 * flow.by_lag(bins=(0, 3, 8)).share).tolist(), abs=0.06)
        assert float(row[6]) < 1e-12


def linear_layer(w, steps):
    """h_k = w h_{k-1} + x_k on ones, the loss on the last step: parts by lag fall as w^lag."""
    one = torch.ones(1, 1, dtype=torch.float64)
    cell = retrograde.cells.Elman(one, w * one, activation="identity")
    x = torch.ones(steps, 1, 1, dtype=torch.float64)
    recorded = retrograde.record_cell(cell, x, lambda h, s: h[-1].sum())
    return Layer("cell", retrograde.decompose(recorded))


@pytest.mark.parametrize(
    ("w", "start"),
    [
        (
            0.99,
            "cell: yes, its gradient reaches back 59 steps, as far as the season (52 steps), and ",
        ),
        (0.95, "cell: hardly; single contributions reach back 55 steps, as far as the season"),
        (
            0.5,
            "cell: no, its gradient reaches back 6 steps, short of the season (52 steps), and 0.0%",
        ),
    ],
)
def test_one_plain_sentence(w, start):
    report = Report("Title", (linear_layer(w, 60),), (0, 10), Horizon(52, "the season"))
    assert report.sentences[0].startswith(start)
    share = float(report.layers[0].flow.by_lag(bins=(0, 52)).share[1])
    assert f"{share:.1%} of the gradient comes from there and beyond" in report.sentences[0]


def test_a_single_step_is_said_plainly():
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.ones(1, 1, 2), lambda model, x: model(x)[0].sum()
    )
    assert "the sequence has a single step, so there is nothing to look back on" in str(report)


def test_a_gradient_of_exactly_zero_is_said_plainly(tmp_path):
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.ones(5, 1, 2), lambda model, x: (model(x)[0] * 0).sum()
    )
    assert "the loss gives it no gradient; dL/dh is exactly 0 at every step" in str(report)
    report.to_html(tmp_path / "zero.html")
    report.to_json(tmp_path / "zero.json")
    assert "nan" not in str(report).lower()


def test_text_holds_sentences_table_and_notes(report):
    text = str(report)
    for part in ("A title", *report.sentences[0].split()[:3], "A note.", "lags 8-11"):
        assert part in text


def test_json_is_strict_and_holds_the_numbers(report, tmp_path):
    path = tmp_path / "report.json"
    report.to_json(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["schema"] == "retrograde-report/1"
    for layer, data in zip(report.layers, document["layers"], strict=True):
        assert data["reach"] == layer.flow.reach
        assert data["half_life"] == layer.flow.half_life
        assert data["residual"] == float(layer.flow.residual)
        assert [part["first"] for part in data["by_lag"]] == [0, 3, 8]
        assert sum(part["share"] for part in data["by_lag"]) == pytest.approx(1)
        assert sum(block["share"] for block in data["by_parameter"]) == pytest.approx(1)
        assert len(data["log2_mean_by_lag"]) == 12
        if layer.name == "RNN":  # one route and as many crossings as lags: nothing to tell apart
            assert data["by_route"] is data["by_crossing"] is None
            continue
        for key, split in (
            ("by_route", layer.flow.by_route()),
            ("by_crossing", layer.by_crossing()),
        ):
            assert tuple(data[key]["parts"]) == split.ways
            assert [first for first, _ in data[key]["lags"]] == [lag.start for lag in split.lags]
            share = torch.tensor(data[key]["share"], dtype=torch.float64)
            torch.testing.assert_close(share, split.share)
            assert float(share.sum()) == pytest.approx(1)


def test_a_report_of_one_step_is_json_too(tmp_path):
    model = nn.RNN(2, 3)
    report = retrograde.diagnose(model, torch.ones(1, 1, 2), lambda m, x: m(x)[0].sum())
    report.to_json(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["layers"][0]["half_life"] is None
    report.to_html(tmp_path / "one.html")


def rows_of(spec):
    """What a chart shows: its data are comma-separated text."""
    columns = spec["data"]["format"]["parse"]
    return [
        {
            name: float(row[name]) if kind == "number" else row[name]
            for name, kind in columns.items()
        }
        for row in csv.DictReader(io.StringIO(spec["data"]["values"]))
    ]


def test_charts_save_without_a_browser(tmp_path):
    flow = flow_of(nn.LSTM(2, 4))
    drawn = {
        "map": flow.by_time("weight_hh_l0"),
        "curve": flow,
        "lags": flow.by_lag("weight_hh_l0"),
        "blocks": flow.by_parameter(),
    }
    for name, part in drawn.items():
        part.chart().save(str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        part.chart().save(str(tmp_path / f"{name}.svg"))
        svg = ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        marks = [e for e in svg.iter() if "aria-roledescription" in e.attrib]
        assert marks, f"nothing is drawn in {name}"


def test_the_map_holds_every_pair():
    flow = flow_of(nn.RNN(2, 4))
    rows = rows_of(flow.by_time("weight_ih_l0").chart().to_dict())
    assert len(rows) == 12 * 13 // 2
    log2 = flow.by_time("weight_ih_l0").log2
    for row in rows:
        assert row["log2"] == pytest.approx(float(log2[int(row["t"]), int(row["k"])]), abs=0.006)


@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_routes_of_short_sequences_and_of_no_gradient(steps, factor, tmp_path):
    flow = flow_of(nn.LSTM(2, 3, 2), steps, loss=lambda out: factor * out[0].sum())
    layer = Layer("deep", flow)
    for split in (flow.by_route(), layer.by_crossing()):
        assert split.chart().to_dict()
        assert bool(split.share.isnan().all()) == (factor == 0)
    Report("Title", (layer,), (0,)).to_html(tmp_path / "page.html")
    Report("Title", (layer,), (0,)).to_json(tmp_path / "page.json")


def test_the_chart_of_routes_shows_every_part_with_a_colour_of_its_own():
    flow = flow_of(nn.LSTM(2, 3, 3))
    split = flow.by_route()
    assert len(split.ways) == 16
    spec = split.chart().to_dict()
    rows = rows_of(spec)
    assert len(rows) == int((split.log2 > -torch.inf).sum())
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-4)
    line, points = spec["vconcat"][0]["layer"]
    scale = line["encoding"]["color"]["scale"]
    assert scale["domain"] == list(split.ways)
    assert len(set(scale["range"])) == 16
    shapes = points["encoding"]["shape"]["scale"]["range"]
    assert len(shapes) == 16 and len(set(shapes)) == len(charts.SHAPES)


def test_crossings_of_a_large_pass_take_fewer_rows(monkeypatch):
    layer = Layer("layer", flow_of(nn.LSTM(2, 4)))
    exact = layer.by_crossing()
    monkeypatch.setattr("retrograde.report.report.CROSSING_NUMBERS", 3 * 9 * 3 * 8)
    coarse = layer.by_crossing()
    torch.testing.assert_close(coarse.parts().sum((0, 1)), exact.parts().sum((0, 1)))
    assert not torch.allclose(coarse.parts(), exact.parts()), "lags in blocks are coarser"


def test_a_large_map_is_pooled_by_the_maximum():
    by_time = flow_of(nn.RNN(2, 4)).by_time()
    entries, uses, log2 = by_time.pooled(most=4)
    assert entries == uses == (0, 3, 6, 9, 12)
    rows = rows_of(charts.entry_by_use(entries, uses, log2, None).to_dict())
    assert len(rows) == 4 * 5 // 2
    cell = next(row for row in rows if (row["t"], row["k"]) == (6, 3))
    assert cell["t2"] == 9
    assert cell["log2"] == pytest.approx(float(by_time.log2[6:9, 3:6].max()), abs=0.006)


def test_long_curves_are_thinned_and_what_is_not_finite_is_left_out():
    log2 = [math.inf, math.nan, -math.inf, *(-0.5 * lag for lag in range(3, 2500))]
    spec = charts.adjoint_curve(log2, 2.0).to_dict()
    assert "at 3 of 2500 lags it is 0 or not finite" in spec["title"]["subtitle"]
    rows = rows_of(spec["layer"][0])
    assert [row["lag"] for row in rows] == list(range(3, 2500, 3))
    assert all(row["log2"] == -0.5 * row["lag"] for row in rows)


@pytest.mark.parametrize("losses", [(), (math.nan,), (5.0, 1.0, 0.01)])
def test_training_curves_of_any_losses(losses):
    spec = charts.training_curves(losses, (1.0,)).to_dict()
    assert len(rows_of(spec)) == 1 + sum(map(math.isfinite, losses))
    scale = spec["layer"][0]["encoding"]["y"]["scale"]
    assert (scale.get("type") == "log") == (len(losses) == 3)


def test_remedies_without_a_number_keep_their_place_in_the_numbering():
    after = (None, 3.0, math.inf)
    spec = charts.before_after("abc", (1.0, None, 2.0), after, "reach", "", math.nan).to_dict()
    found = [(row["remedy"], row["when"], row["value"]) for row in rows_of(spec)]
    assert found == [("1. a", "before", 1), ("2. b", "after", 3), ("3. c", "before", 2)]
    assert len(spec["layer"]) == 2, "no threshold, no line"


def test_gates_beyond_one_are_not_cut_off():
    steps, low, high = [(0, 1)], [(-3.0, -1.0)], [(0.5, 7.0)]
    spec = charts.gates_over_time(["relu"], steps, low, low, high, 1).to_dict()
    assert spec["spec"]["layer"][0]["encoding"]["y"]["scale"]["domain"] == [-3.0, 7.0]


@pytest.mark.parametrize(
    ("half_life", "words"),
    [
        (7.316, "7.32 steps"),
        (-3.0, "none, it doubles every 3 steps"),
        (math.inf, "none, it neither shrinks nor grows"),
        (math.nan, "nothing to measure"),
    ],
)
def test_half_lives_in_words(half_life, words):
    assert charts.half_life_in_words(half_life) == words


def test_norms_in_words():
    assert charts.in_words(-3.0) == "0.125"
    assert charts.in_words(-3000.0) == "2^-3000.0"
    assert charts.in_words(-math.inf) == "0"


@pytest.mark.parametrize(
    ("loss_fn", "sentence"),
    [
        (lambda m, x: m(x)[0], r"a tensor of shape \(4, 2, 3\), requires_grad=True"),
        (lambda m, x: 3.0, "got float"),
        (lambda m, x: m(x)[0].sum().detach(), r"shape \(\), requires_grad=False"),
    ],
)
def test_losses_that_are_none(loss_fn, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        retrograde.diagnose(nn.LSTM(2, 3), torch.ones(4, 2, 2), loss_fn)


def test_a_loss_that_is_not_finite_is_named():
    def loss_fn(model, x):
        return model(x)[0].sum() + torch.inf

    with pytest.raises(NonFiniteError, match="the loss is inf, although input, weights, states"):
        retrograde.diagnose(nn.LSTM(2, 3), torch.ones(4, 2, 2), loss_fn)


def test_diagnose_without_a_loss_says_what_it_takes():
    with pytest.raises(ArgumentError, match="takes a recording, or a model, a batch and a loss"):
        retrograde.diagnose(nn.LSTM(2, 3), torch.ones(4, 2, 2))


def test_paths_that_cannot_be_written(report, tmp_path):
    for path, sentence in (
        (tmp_path, "it is a folder; give a file name"),
        (tmp_path / "none" / "a.html", "there is no folder"),
    ):
        with pytest.raises(InputError, match=sentence):
            report.to_html(path)
        with pytest.raises(InputError, match=sentence):
            report.to_json(path)
    assert not list(tmp_path.iterdir())
