"""The horizon as text, page, JSON and comparison; the numbers themselves are tests/horizon's."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde.cli import commands, main
from retrograde.errors import ArgumentError, InputError
from retrograde.horizons import over_training, used
from retrograde.report import HorizonReport, Report, compare, horizon_data, horizon_views
from retrograde.truncation import truncated
from support.type_checks import unchecked

HOSTILE = "</script><b>\x1b[31m"

USER = """
import torch
from torch import nn

def example():
    def batches(seed):
        return torch.randn(20, 3, 1, generator=torch.Generator().manual_seed(seed))
    return nn.GRU(1, 4), batches, lambda model, x: (model(x)[0][4:] - x[:-4]).square().mean()

def short():
    return nn.GRU(1, 4), [torch.ones(9, 2, 1)], lambda model, x: model(x[0])[0][-1].sum()
"""


def batches(seed):
    return torch.randn(20, 3, 1, generator=torch.Generator().manual_seed(seed))


def loss_fn(model, x):
    return (model(x)[0][4:] - x[:-4]).square().mean()


@pytest.fixture(scope="module", name="report")
def _report():
    torch.manual_seed(0)
    model = nn.GRU(1, 4)
    kept = {"fresh": {n: w.clone() for n, w in model.state_dict().items()}}
    with torch.no_grad():
        model.bias_ih_l0[4:8] = 3  # the update gate: it keeps
    kept[HOSTILE] = model.state_dict()
    with unchecked():
        horizons = over_training(model, batches, loss_fn, kept, most=3)
        alone = retrograde.horizon(model, batches, loss_fn, most=3)
        assert torch.equal(horizons[HOSTILE].bias, alone.bias)  # the same batches, these weights
        return HorizonReport.of(horizons, delta=0.2)


def test_the_report_holds_what_the_horizon_says(report):
    before, after = report.weights
    assert before.window < after.window == report.last.window
    whole = report.last.curves[0]
    assert len(report.last.lags) == 7 and report.last.lags[-1].last == 19
    assert report.last.lags[3].first == 3 and report.last.lags[3].last == 4
    at = report.steps.index(whole.window)
    assert whole.high[at] <= 0.2 < whole.bias[at - 1]
    assert whole.low[0] < whole.bias[0] < whole.high[0]
    assert {curve.of for curve in report.last.curves[1:]} == {
        *("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    }


def test_json_is_read_back_without_loss_and_named_when_it_is_not_what_was_asked_for(
    report, tmp_path
):
    path = tmp_path / "horizon.json"
    whole = report.last.curves[0]
    strange = replace(whole, bias=(float("nan"), float("inf"), *whole.bias[2:]))
    report = replace(report, weights=(replace(report.last, curves=(strange,)),))
    report.to_json(path)
    again = HorizonReport.from_json(path)
    assert str(again.last.curves[0].bias) == str(strange.bias)
    assert again.last.advice == report.last.advice
    with pytest.raises(InputError, match="expected schema 'retrograde-report/"):
        Report.from_json(path)
    path.write_text(json.dumps({"schema": "retrograde-horizon/0"}))
    with pytest.raises(InputError, match="another version of retrograde wrote it"):
        HorizonReport.from_json(path)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("kind",), "windows", "kind must be"),
        (("past",), "other", "past must be"),
        (("delta",), -1, "delta must be a number from 0 on"),
        (("steps",), [], "steps must ascend"),
        (("weights",), [], "at least one set of weights"),
        (("weights", 1, "curves"), [], "begin with that of the whole gradient"),
        (("weights", 0, "curves", 0, "bias"), [1.0], "a number for each of the steps"),
        (("weights", 0, "curves", 2, "window"), 99, "window of 'weight_hh_l0' must be one of"),
    ],
)
def test_a_file_whose_numbers_do_not_belong_together(report, tmp_path, place, value, says):
    path = tmp_path / "horizon.json"
    report.to_json(path)
    numbers = part = json.loads(path.read_text())
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    path.write_text(json.dumps(numbers))
    with pytest.raises(InputError, match=says):
        HorizonReport.from_json(path)


def test_text_and_page_say_the_window_and_that_it_holds_at_these_weights(report, tmp_path):
    report.to_html(tmp_path / "horizon.html")
    page = (tmp_path / "horizon.html").read_text()
    for view in (" ".join(str(report).split()), page):
        assert report.last.advice in view
        assert "holds at the current weights" in view
        assert all(curve.of in view for curve in report.last.curves)
    assert "\x1b" not in str(report)
    assert "</script><b>" not in page and "&lt;/script&gt;&lt;b&gt;" in page
    assert "http-equiv" in page and 'src="http' not in page


def test_a_window_that_there_is_not_and_a_lag_that_is_not_known(report):
    bare = replace(report.weights[0].curves[0], window=None)
    first = replace(report.weights[0], curves=(bare,), learnable=-1, used=None)
    (_, _, rows), *_ = horizon_views.tables(replace(report, weights=(first, report.last)))
    assert rows[0][1:3] == ("none", "-") and rows[0][4] == "none"
    chart = replace(report, weights=(first, report.last)).growth_chart().to_dict()
    assert "-1" not in str(chart["data"])
    assert chart["layer"][0]["encoding"]["y"]["title"] == "window, reach (steps)"


def test_horizons_are_compared_by_their_windows(report):
    first = replace(report, weights=report.weights[:1], delta=0.1)
    comparison = compare(first, report)
    whole = comparison.layers[0]
    numbers = {number.name: (number.before, number.after) for number in whole.numbers}
    assert numbers["window"] == (report.weights[0].window, report.last.window)
    assert {number.verdict for number in whole.numbers} <= {"changed", "same"}
    assert [setting.name for setting in comparison.settings] == ["delta", "weights"]
    assert compare(report, report).same
    other = retrograde.diagnose(nn.GRU(1, 2), torch.ones(5, 1, 1), lambda m, x: m(x)[0].sum())
    with pytest.raises(ArgumentError, match="a horizon report is compared with another one"):
        compare(report, other)


def test_what_cannot_be_reported(report):
    horizons = [
        retrograde.horizon(nn.GRU(1, 2), torch.ones(steps, 1, 1), lambda m, x: m(x)[0].sum())
        for steps in (4, 5)
    ]
    with pytest.raises(ArgumentError, match="one kind and length; got sliding over 4 steps, slid"):
        HorizonReport.of(dict(zip("ab", horizons, strict=True)))
    with pytest.raises(ArgumentError, match="got none"):
        HorizonReport.of({})
    with pytest.raises(ArgumentError, match="delta must be a number from 0 on; got -1"):
        HorizonReport.of(horizons[0], delta=-1)
    with pytest.raises(ArgumentError, match="the checkpoint 'old' does not fit the model: .*Miss"):
        over_training(nn.GRU(1, 2), torch.ones(4, 1, 1), loss_fn, {"old": {}})


def run(capsys, *arguments):
    """What the command line prints, and its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["retrograde", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    done = capsys.readouterr()
    return stop.value.code or 0, done.out, done.err


def test_the_same_choices_are_offered_described_and_taken():
    assert tuple(horizon_data.PASTS) == used.PASTS
    assert [past.value.replace("-", " ") for past in commands.Past] == list(used.PASTS)
    assert [kind.value for kind in commands.Kind] == list(horizon_data.KINDS)
    assert {*truncated.KINDS, "window"} == {*horizon_data.KINDS}


def test_the_command(capsys, tmp_path):
    user = tmp_path / "user.py"
    user.write_text(USER)
    target, numbers = f"{user}:example", tmp_path / "a.json"
    code, out, _ = run(capsys, "horizon", target, "--batches", 2, "--json", numbers)
    assert code == 0 and "2 batches" in out and "holds at the current weights" in out
    report = HorizonReport.from_json(numbers)
    assert (report.kind, report.batches, report.delta) == ("sliding", 2, 0.1)
    assert report.settings.seed == 0 and "GRU(1, 4)" in report.settings.model

    kept = []
    for name in ("early", "late"):
        kept.append(tmp_path / f"{name}.pt")
        torch.save({"state_dict": nn.GRU(1, 4).state_dict()}, kept[-1])
    options = ["--kind", "chunks", "--delta", 0.5, "--layer", "GRU", "--json", tmp_path / "b.json"]
    options += ["--checkpoint", kept[0], "--checkpoint", kept[1], "--batches", 3, "--quiet"]
    options += ["--training-steps", 50, "--batch-size", 7, "--past", "zeros"]
    assert run(capsys, "horizon", target, *options)[:2] == (0, "")
    report = HorizonReport.from_json(tmp_path / "b.json")
    assert (report.kind, report.batches, report.delta) == ("chunks", 3, 0.5)
    asked = report.layer, report.training_steps, report.batch_size, report.past
    assert asked == ("GRU", 50, 7, "zeros")
    assert "Layer: GRU. Used: against a past of zeros. Learnable: by 50 training" in str(report)
    assert [each.name for each in report.weights] == ["early", "late"]

    code, out, _ = run(capsys, "compare", numbers, tmp_path / "b.json")
    assert code == 0 and "kind            sliding -> chunks" in out
    assert "training_steps  1000 -> 50" in out and "batch_size      none -> 7" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layer", "other"), "there is no layer 'other'"),
        (("--checkpoint", "user.py"), "is a Python file; name its function as well"),
        (("--html", "/nowhere/page.html"), "there is no folder /nowhere"),
        (("--json", "user.py"), "user.py is named twice"),
    ],
)
def test_unusable_input_is_exit_code_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user.py").write_text(USER)
    code, _, errors = run(capsys, "horizon", "user.py:short", *arguments)
    assert code == 2 and words in errors
    assert (tmp_path / "user.py").read_text() == USER
