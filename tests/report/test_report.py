"""The report as data, text, JSON and charts; the page in a browser is test_page.py's."""

import csv
import io
import json
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import retrograde
from retrograde import charts
from retrograde._files import write_text
from retrograde.decomposition import Parts
from retrograde.decomposition.lags import POOLED
from retrograde.diagnosis import Check, Evidence, Finding, Training, Trial
from retrograde.errors import ArgumentError, InputError
from retrograde.report import Layer, NeededLag, Report, Settings
from retrograde.report.crossings import by_crossing
from retrograde.report.json import render as json_text


def flow_of(model, steps=12, loss=lambda out: out[0].square().sum()):
    torch.manual_seed(0)
    model = model.double()
    with retrograde.record(model) as recording:
        loss(model(torch.randn(steps, 3, 2, dtype=torch.float64))).backward()
    return retrograde.decompose(recording)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(1)
    return {"RNN": nn.RNN(2, 4), "LSTM": nn.LSTM(2, 4)}


@pytest.fixture(scope="module")
def flows(models):
    return {name: flow_of(model) for name, model in models.items()}


@pytest.fixture(scope="module")
def report(flows):
    season = NeededLag(8, "the season")
    layers = (Layer.of(name, flow, (0, 3, 8), season) for name, flow in flows.items())
    return Report("A title", tuple(layers), horizon=season, notes=("A note.",))


def test_the_table_says_what_the_flows_say(report, flows):
    titles, rows = report.table()
    assert titles[-4:] == ("lags 0-2", "lags 3-7", "lags 8-11", "residual")
    for layer, row in zip(report.layers, rows, strict=True):
        flow = flows[layer.name]
        assert row[0] == layer.name
        assert row[1] == f"{flow.reach} of 11"
        assert float(row[2]) == pytest.approx(flow.half_life, rel=1e-2)
        share = [float(cell.rstrip("%")) for cell in row[3:6]]
        assert sum(share) == pytest.approx(100, abs=0.2)
        assert share == pytest.approx((100 * flow.by_lag(bins=(0, 3, 8)).share).tolist(), abs=0.06)
        assert float(row[6]) < 1e-12


def linear_flow(w, steps):
    """h_k = w h_{k-1} + x_k on ones, the loss on the last step: parts by lag fall as w^lag."""
    one = torch.ones(1, 1, dtype=torch.float64)
    cell = retrograde.cells.Elman(one, w * one, activation="identity")
    x = torch.ones(steps, 1, 1, dtype=torch.float64)
    recorded = retrograde.record_cell(cell, x, lambda h, s: h[-1].sum())
    return retrograde.decompose(recorded)


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
    season = NeededLag(52, "the season")
    flow = linear_flow(w, 60)
    layer = Layer.of("cell", flow, (0, 10), season)
    report = Report("Title", (layer,), horizon=season)
    assert report.sentences[0].startswith(start)
    share = float(flow.by_lag(bins=(0, 52)).share[1])
    assert f"{share:.1%} of the gradient comes from there and beyond" in report.sentences[0]


def test_a_single_step_is_said_plainly():
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.ones(1, 1, 2), lambda model, x: model(x)[0].sum()
    )
    assert "reads one step: there is no earlier step to learn from" in str(report)


def test_a_gradient_of_exactly_zero_is_said_plainly(tmp_path):
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.ones(5, 1, 2), lambda model, x: (model(x)[0] * 0).sum()
    )
    assert "The loss gives the layer no gradient: dL/dh is exactly 0 at every step" in str(report)
    report.to_html(tmp_path / "zero.html")
    report.to_json(tmp_path / "zero.json")
    assert "nan" not in str(report).lower()


def test_text_holds_sentences_table_and_notes(report):
    lines = str(report).splitlines()
    assert lines[0] == "A title"
    text = " ".join(str(report).split())
    for part in (*report.sentences, "A note.", "lags 8-11"):
        assert part in text
    assert "Nothing found" not in text, "no rule looked"
    assert max(map(len, lines)) <= 120
    assert all(line == line.rstrip() for line in lines)


def test_figures_of_a_layer_stand_in_the_table(report):
    figures = {"test error": "0.3 ppm"}
    layers = (report.layers[0], replace(report.layers[1], figures=figures))
    titles, rows = Report("Title", layers).table()
    assert titles[:2] == ("layer", "test error")
    assert [row[1] for row in rows] == ["", "0.3 ppm"]


def a_finding(**more):
    reach = Evidence("reach", 7.0, "steps", 20.0, "above", "reach_fraction")
    growth = Evidence("growth", 1234.0, "times", 1000.0, "below")
    training = Training("Adam", (0.7, 0.5, 0.4), (0.7, 0.2, 0.1))
    chrono = Trial("chrono", "chrono", "first line\nsecond line", 7.0, 61.0, True)
    trials = (
        replace(
            chrono,
            healthy=True,
            residual=2e-7,
            loss_before=0.7,
            loss_after=0.75,
            training=training,
        ),
        Trial("scale", "a larger radius", "other", 7.0, 9.0, True, residual=3e-16),
        Trial("clip", "clipping at 1", "clip", 7.0, 7.0, residual=2e-7),
        Trial("cell", "another generation", "cell", note="the layer is no LSTM"),
    )
    found = Finding(
        *("vanishing", "warning", "LSTM", "The gradient reaches back 7 steps."),
        evidence=(reach, growth, Evidence("depth", 3.0, "layers")),
        causes=("The forget gates are shut.", "Small weights."),
        advice=("Open the forget gates.",),
        gate="forget",
        route="carousel",
        steps=(3, 7),
        trials=trials,
    )
    return replace(found, **more)


def test_a_finding_in_words(report):
    text = str(replace(report, findings=(a_finding(),)))
    first = text.index("What moves it most in one pass: chrono")
    assert first < text.index("warning  vanishing"), "summary first"
    assert text.index("warning  vanishing") < text.index("half-life (steps)"), "then the table"
    assert (
        """
warning  vanishing  LSTM, gate forget, route carousel, steps 3-7
  The gradient reaches back 7 steps.
  reach 7 steps, at least 20 expected (reach_fraction)
  growth 1234 times, at most 1000 expected
  depth 3 layers
  likely causes, the likeliest first:
    - The forget gates are shut.
    - Small weights.
  tried on a copy of the model:
    - in one pass: chrono, reach 7 -> 61 steps, on the healthy side, residual 2.0e-07, loss 0.7 -> 0.75
      after 3 steps of Adam: loss 0.7 -> 0.1, without the remedy 0.7 -> 0.4
    - in one pass: a larger radius, reach 7 -> 9 steps, nearer to the healthy side, residual 3.0e-16
    - in one pass: clipping at 1, reach 7 -> 7 steps, no nearer to the healthy side, residual 2.0e-07
    - could not be tried: another generation: the layer is no LSTM
  the lines that do it:
      first line
      second line
  what to do:
    - Open the forget gates.
"""  # noqa: E501
        in text
    )


def test_what_is_wired_wrongly_and_no_remedy_moves_is_summed_up_by_what_mends_it(report):
    trials = a_finding().trials[2:]
    mixed = a_finding(rule="samples-mixed", advice=("Move the axes",), trials=trials)
    assert replace(report, findings=(mixed,)).summary.endswith(" Move the axes.")
    helped = replace(mixed, trials=a_finding().trials[1:])
    assert "a larger radius" in replace(report, findings=(helped,)).summary
    vanishing = replace(mixed, rule="vanishing")
    assert "none moves it" in replace(report, findings=(vanishing,)).summary


def test_a_finding_of_little_is_said_in_little(report):
    bare = Finding("rule", "error", None, "Something is wrong.")
    text = str(replace(report, findings=(bare,)))
    assert "error  rule  the whole model\n  Something is wrong.\n\n" in text


def test_code_of_a_remedy_that_did_not_help_is_not_shown(report):
    trials = a_finding().trials
    text = str(replace(report, findings=(a_finding(trials=trials[2:]),)))
    assert "the lines that do it" not in text and "and none moves it" in text
    text = str(replace(report, findings=(a_finding(trials=trials[1:]),)))
    assert "      other\n" in text


def test_nothing_found_is_said_only_if_a_rule_looked(report):
    rules = ("vanishing", "exploding")
    asked = replace(report, settings=Settings(rules=rules))
    assert "Nothing found" not in str(asked), "none of them answered"
    names = [layer.name for layer in report.layers]
    checks = [Check(rule, name, "passed") for rule in rules for name in names]
    looked = replace(asked, checks=tuple(checks))
    assert "Nothing found: 2 rules could look." in str(looked)

    checks[0] = replace(checks[0], status="not applicable", reason="it is one")
    some = replace(asked, checks=tuple(checks))
    assert "Nothing found: 2 rules could look." in str(some)
    assert ("memory", "vanishing", "not applicable", names[0], "it is one") in some.checked
    assert ("memory", "vanishing", "passed", names[1], "") in some.checked
    assert re.search(rf"vanishing +│ not applicable +│ {names[0]} +│ it is one *│", str(some))
    checks[1] = replace(checks[1], status="not applicable", reason="it is another")
    one = replace(asked, checks=tuple(checks))
    assert "Nothing found: 1 of 2 rules could look." in str(one)
    assert one.looked == ("exploding",)
    assert one.checked == (
        ("scale", "exploding", "passed", "every layer", ""),
        ("memory", "vanishing", "not applicable", names[0], "it is one"),
        ("memory", "vanishing", "not applicable", names[1], "it is another"),
    )
    alike = [replace(check, status="not applicable", reason="it is so") for check in checks]
    every = replace(asked, checks=(*alike, Check("kept-graph", None, "passed", "half is unseen")))
    assert every.checked == (
        ("wiring", "kept-graph", "passed", "the whole model", "half is unseen"),
        ("scale", "exploding", "not applicable", "every layer", "it is so"),
        ("memory", "vanishing", "not applicable", "every layer", "it is so"),
    )
    none = replace(asked, checks=(checks[0], checks[1]))
    assert "Nothing can be said: 0 of 1 rule could look." in str(none) and none.looked == ()


def test_colour_says_nothing_and_names_steer_no_terminal(report):
    hostile = "[bold]x[/] :smile: \x1b[31m長い名前\r" + "very-long" * 30
    found = a_finding(message=hostile, layer=hostile)
    whole = replace(report, title=hostile, findings=(found,), notes=(hostile,))
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system="truecolor")
    console.print(whole)
    coloured = console.file.getvalue()
    assert "\x1b[31m長" not in coloured and "\r" not in coloured
    assert "[bold]x[/] :smile: \\x1b[31m長い名前\\r" in " ".join(str(whole).split())
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.rstrip().splitlines()] == str(whole).splitlines()


def test_a_layer_holds_the_numbers_of_its_flow(report, flows, models):
    for layer in report.layers:
        flow = flows[layer.name]
        assert (layer.steps, layer.batch, layer.entries) == (12, 3, 12)
        assert (layer.reach, layer.half_life) == (flow.reach, flow.half_life)
        assert layer.residual == float(flow.residual)
        gradients = [parameter.grad.flatten() for parameter in models[layer.name].parameters()]
        assert layer.gradient_norm == pytest.approx(float(torch.cat(gradients).norm()))
        assert layer.share_near == pytest.approx(1 - float(flow.by_lag(bins=(0, 11)).share[1]))
        assert layer.beyond == pytest.approx(float(flow.by_lag(bins=(0, 8)).share[1]))
        assert layer.by_lag.lags == (range(0, 3), range(3, 8), range(8, 12))
        assert float(layer.by_lag.share.sum()) == pytest.approx(1)
        assert float(layer.by_parameter.share.sum()) == pytest.approx(1)
        assert layer.log2_mean_by_lag == tuple(flow.by_time().log2_mean_by_lag.tolist())
        if layer.name == "RNN":  # one route and as many crossings as lags: nothing to tell apart
            assert layer.by_route is layer.by_crossing is None
            assert math.isnan(layer.share_carousel)
            continue
        crossings = flow.by_crossing(max_crossings=8)
        for part, split in ((layer.by_route, flow.by_route()), (layer.by_crossing, crossings)):
            assert part.axes == split.axes and part == split
            torch.testing.assert_close(part.share, split.share)
            assert float(part.share.sum()) == pytest.approx(1)
        arrived = flow.by_route().share[flow.by_route().labels.index("carousel")].sum()
        assert layer.share_carousel == pytest.approx(float(arrived))


def test_a_report_of_one_step_is_json_too(tmp_path):
    model = nn.RNN(2, 3)
    report = retrograde.diagnose(model, torch.ones(1, 1, 2), lambda m, x: m(x)[0].sum())
    report.to_json(tmp_path / "one.json")
    assert json.loads((tmp_path / "one.json").read_text())["layers"][0]["half_life"] == "NaN"
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


def test_charts_save_without_a_browser(report, flows, tmp_path):
    flow, layer = flows["LSTM"], report.layers[1]
    drawn = {
        "map": flow.by_time("weight_hh_l0"),
        "curve": flow,
        "lags": flow.by_lag("weight_hh_l0"),
        "blocks": flow.by_parameter(),
        "layer": layer,
        "layer-map": layer.by_time,
        "layer-lags": layer.by_lag,
        "layer-blocks": layer.by_parameter,
        "layer-routes": layer.by_route,
        "layer-crossings": layer.by_crossing,
    }
    for name, part in drawn.items():
        part.chart().save(str(tmp_path / f"{name}.png"))
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        part.chart().save(str(tmp_path / f"{name}.svg"))
        svg = ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        marks = [e for e in svg.iter() if "aria-roledescription" in e.attrib]
        assert marks, f"nothing is drawn in {name}"


def test_the_map_holds_every_pair(report, flows):
    flow = flows["RNN"]
    rows = rows_of(flow.by_time("weight_ih_l0").chart().to_dict())
    assert len(rows) == 12 * 13 // 2
    log2 = flow.by_time("weight_ih_l0").log2
    whole = report.layers[0].by_time
    assert whole.axes == ({"loss_step": tuple(range(12))}, {"use_step": tuple(range(12))})
    assert whole.log2.equal(flow.by_time().log2)
    assert bool((whole.log2.triu(1) == torch.full((12, 12), -torch.inf).triu(1)).all())
    for row in rows:
        assert row["log2"] == pytest.approx(float(log2[int(row["t"]), int(row["k"])]), abs=0.006)


@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("factor", [0.0, 1.0])
def test_routes_of_short_sequences_and_of_no_gradient(steps, factor, tmp_path):
    flow = flow_of(nn.LSTM(2, 3, 2), steps, loss=lambda out: factor * out[0].sum())
    layer = Layer.of("deep", flow, (0,))
    for split in (layer.by_route, layer.by_crossing):
        assert split.chart().to_dict()
        assert bool(split.share.isnan().all()) == (factor == 0)
    Report("Title", (layer,)).to_html(tmp_path / "page.html")
    Report("Title", (layer,)).to_json(tmp_path / "page.json")
    (read,) = Report.from_json(tmp_path / "page.json").layers
    assert repr(read) == repr(layer)
    assert json_text(Report("Title", (read,))) == json_text(Report("Title", (layer,)))


def test_the_chart_of_routes_shows_every_part_with_a_colour_of_its_own():
    flow = flow_of(nn.LSTM(2, 3, 3))
    split = flow.by_route()
    assert len(split.labels) == 16 and split.ways == split.labels
    spec = split.chart().to_dict()
    rows = rows_of(spec)
    assert len(rows) == int((split.log2 > -torch.inf).sum())
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-4)
    line, points = spec["vconcat"][0]["layer"]
    scale = line["encoding"]["color"]["scale"]
    assert scale["domain"] == list(split.labels)
    assert len(set(scale["range"])) == 16
    shapes = points["encoding"]["shape"]["scale"]["range"]
    assert len(shapes) == 16 and len(set(shapes)) == len(charts.SHAPES)


def test_crossings_of_a_large_pass_take_fewer_rows(monkeypatch):
    flow = flow_of(nn.LSTM(2, 4), steps=120)
    exact = by_crossing(flow)
    monkeypatch.setattr("retrograde.report.crossings.CROSSING_NUMBERS", 3 * 9 * 3 * 8)
    coarse = by_crossing(flow)
    torch.testing.assert_close(coarse.parts().sum((0, 1)), exact.parts().sum((0, 1)))
    assert not torch.allclose(coarse.parts(), exact.parts()), "lags of merged rows are coarser"
    near = [part.parts().sum(0)[:3] for part in (coarse, exact)]
    torch.testing.assert_close(*near)  # those of lags 0 to 2 are exact


def test_a_large_map_is_pooled_by_the_maximum():
    steps = 3 * POOLED
    log2 = torch.randn(steps, steps, dtype=torch.float64)
    log2[~torch.ones(steps, steps).tril().bool()] = -torch.inf
    share = torch.randn(steps, steps, dtype=torch.float64).tril()
    axes = ({"loss_step": tuple(range(steps))}, {"use_step": tuple(range(steps))})
    by_time = Parts.measured(axes, None, log2, share)
    pooled = by_time.pooled()
    labels = tuple(range(first, first + 3) for first in range(0, steps, 3))
    assert pooled.axes == ({"loss_step": labels}, {"use_step": labels})
    rows = pooled.log2
    assert rows.isfinite().equal(torch.ones(POOLED, POOLED).tril().bool())
    assert rows[2, 1] == log2[6:9, 3:6].max()
    torch.testing.assert_close(pooled.share[2, 1], share[6:9, 3:6].sum())
    values = rows_of(by_time.chart().to_dict())
    assert len(values) == POOLED * (POOLED + 1) // 2
    cell = next(row for row in values if (row["t"], row["k"]) == (6, 3))
    assert cell["t2"] == 9
    assert cell["log2"] == pytest.approx(float(rows[2, 1]), abs=0.006)


def test_long_curves_are_thinned_and_what_is_not_finite_is_left_out():
    log2 = [math.inf, math.nan, -math.inf, *(-0.5 * lag for lag in range(3, 2500))]
    spec = charts.adjoint_curve(log2, 2.0).to_dict()
    assert "At 3 of 2500 lags the adjoint is 0 or not finite" in " ".join(spec["title"]["subtitle"])
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
        (lambda m, x: m(x)[0], r"a tensor of shape \[4, 2, 3\] and type .*, requires_grad=True"),
        (lambda m, x: 3.0, "got float"),
        (
            lambda m, x: m(x)[0].sum().detach(),
            r"shape \[\] and .*, requires_grad=False",
        ),
    ],
)
def test_losses_that_are_none(loss_fn, sentence):
    with pytest.raises(ArgumentError, match=sentence):
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


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    path.chmod(0o640)
    link.symlink_to(path)
    write_text(link, "newer")
    assert link.is_symlink() and path.read_text() == "newer"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [path, link]


def umask():
    old = os.umask(0)
    os.umask(old)
    return old


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    write_text(os.devnull, "text")
    assert not Path(os.devnull).is_file()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="a.json: No space left on device"):
        write_text(path, "new")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


def test_the_spectrum_is_added_when_asked_for(tmp_path):
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.RNN(2, 3), "lstm": nn.LSTM(3, 8)})
    x = torch.randn(30, 10, 2)
    with retrograde.record(model) as recording:
        model["lstm"](model["rnn"](x)[0])[0][-1].square().sum().backward()
    plain = retrograde.diagnose(recording)
    assert all(layer.directions is None for layer in plain.layers)
    told = []
    report = retrograde.diagnose(recording, spectrum=True, progress=lambda *t: told.append(t))
    assert told == [(0, 2, "the spectrum of rnn"), (1, 2, "the spectrum of lstm")]
    for layer in report.layers:
        few = retrograde.spectrum(recording[layer.name].part(8))
        shown = list(layer.directions.shown)
        median = few.exponents.each.median(0).values[shown]
        assert layer.directions.exponents == pytest.approx(median.tolist())
        assert layer.directions.curve[-1] == pytest.approx(median.tolist())
        assert layer.directions.lengths == (1, 4, 16, 30)
        values = few.singular_values([1, 4, 16, 30]).log2.median(1).values[:, shown]
        assert layer.directions.log2 == tuple(map(pytest.approx, values.tolist()))
        leading = few.exponents.leading
        assert any(f"exponent {leading:.3g} nats" in note for note in report.notes)
    sizes = {layer.name: layer.directions for layer in report.layers}
    assert sizes["rnn"].size == 3 and sizes["rnn"].shown == (0, 1, 2)
    assert sizes["lstm"].size == 16 and len(sizes["lstm"].shown) == 12
    report.to_json(tmp_path / "r.json")
    again = retrograde.Report.from_json(tmp_path / "r.json")
    assert [layer.directions for layer in again.layers] == [
        layer.directions for layer in report.layers
    ]
    page = report.to_html(tmp_path / "r.html") or (tmp_path / "r.html").read_text()
    assert "How the Lyapunov exponents settle" in page
    assert "Singular values of the Jacobians" in page


def test_a_layer_without_a_spectrum_is_named():
    torch.manual_seed(0)
    rnn, x = nn.RNN(2, 3), torch.randn(12, 2, 2)
    with retrograde.record(rnn) as recording:
        first, state = rnn(x[:6])
        second, _ = rnn(x[6:], state.detach())
        (first.sum() + second.sum()).backward()
    report = retrograde.diagnose(recording, spectrum=True)
    assert report.layers[0].directions is None
    assert any("no spectrum" in note and "detached" in note for note in report.notes)


def test_the_growth_that_is_told_is_not_that_of_a_sample_whose_units_are_off():
    rnn = nn.RNN(1, 1, nonlinearity="relu")
    for weight in rnn.parameters():
        nn.init.constant_(weight, 1.5 if weight.ndim == 2 else 0.0)
    x = torch.ones(20, 2, 1)
    x[:, 1] = -1
    with retrograde.record(rnn) as recording:
        rnn(x)[0][-1].sum().backward()
    report = retrograde.diagnose(recording, spectrum=True)
    assert any("by 1.5 at most" in note for note in report.notes)
    assert "misleading-radius" not in [finding.rule for finding in report.findings]
