"""What changed from one report to another, and that nothing is called better without a reason."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import retrograde
from retrograde.diagnosis import Evidence, Finding, limits
from retrograde.report import Layer, NeededLag, Report, Settings, compare
from retrograde.report.changes import Difference

HOSTILE = "<script>alert('x')</script> \"quotes\" [bold]長い名前\x1b[31m"
SETTINGS = Settings(
    {"torch": "2.13"}, "LSTM(2, 4)", "float32 [9, 2]", "cpu", 0, None, ("vanishing", "exploding")
)


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    model = nn.LSTM(2, 3)
    with retrograde.record(model) as recording:
        model(torch.randn(9, 2, 2))[0].sum().backward()
    return Layer.of("LSTM", retrograde.decompose(recording), (0, 3))


def finding(rule="vanishing", severity="warning", layer="LSTM", reach=3.0, **more):
    evidence = Evidence("reach", float(reach), "steps", 10.0, "above", "reach_fraction")
    return Finding(rule, severity, layer, "A message.", (evidence,), **more)


def report(*layers, findings=(), settings=SETTINGS, horizon=None):
    return Report("Title", layers, tuple(findings), horizon, (), settings)


def only(changes):
    (change,) = changes
    return change


def number(comparison, name):
    return only(part for part in comparison.layers[0].numbers if part.name == name)


def test_a_report_compared_with_itself_says_nothing_changed(layer, tmp_path):
    rnn = replace(layer, name="RNN", share_carousel=math.nan, half_life=math.inf)
    whole = finding("outweighed", layer=None, reach=math.nan)
    same = report(layer, rnn, findings=(finding(), finding(gate="forget"), whole))
    same.to_json(tmp_path / "same.json")
    for other in (same, Report.from_json(tmp_path / "same.json")):
        comparison = compare(same, other)
        assert comparison.same and comparison.settings == ()
        assert comparison.summary == "Nothing changed."
        assert "LSTM: nothing changed" in str(comparison)
        for word in ("better", "worse"):
            assert word not in str(comparison)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "words"),
    [
        (finding(), None, "better", "gone"),
        (None, finding(), "worse", "new"),
        (finding(severity="error"), finding(), "better", "error -> warning"),
        (finding(severity="info"), finding(), "worse", "info -> warning"),
        (finding(reach=3), finding(reach=7), "better", "other numbers"),
        (finding(reach=7), finding(reach=3), "worse", "other numbers"),
        (finding(reach=7), finding(reach=7.001), "same", "as before"),
        (finding(route="recurrent"), finding(route="carousel"), "changed", "other numbers"),
    ],
)
@pytest.mark.parametrize("where", ["LSTM", None])
def test_findings(layer, before, after, verdict, words, where):
    first, second = (
        report(layer, findings=[replace(found, layer=where)] if found else [])
        for found in (before, after)
    )
    comparison = compare(first, second)
    change = only(comparison.layers[0].findings if where else comparison.findings)
    assert (change.verdict, change.words, change.doubt) == (verdict, words, "")
    assert comparison.same == (verdict == "same")


def test_findings_of_one_rule_are_paired_by_gate_and_route(layer):
    forget, output = finding(gate="forget", reach=1.0), finding(gate="output", reach=2.0)
    comparison = compare(
        report(layer, findings=(forget, output)), report(layer, findings=(output,))
    )
    changes = {change.finding.gate: change.words for change in comparison.layers[0].findings}
    assert changes == {"forget": "gone", "output": "as before"}


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        (replace(SETTINGS, rules=("exploding",)), "the second report did not look for it"),
        (replace(SETTINGS, needs_lag=5), "another needs_lag"),
        (
            replace(SETTINGS, thresholds=limits({"reach_fraction": 0.01})),
            "another threshold: reach_fraction",
        ),
    ],
)
def test_a_finding_that_other_settings_make_go_away_is_not_better(layer, settings, doubt):
    first = report(layer, findings=[finding()], settings=replace(SETTINGS, thresholds=limits()))
    settings = replace(settings, thresholds=settings.thresholds or limits())
    comparison = compare(first, report(layer, settings=settings))
    change = only(comparison.layers[0].findings)
    assert (change.verdict, change.words, change.doubt) == ("changed", "gone", doubt)
    assert doubt in str(comparison)


def test_a_severity_that_another_need_changes_is_not_worse(layer):
    needs = replace(SETTINGS, needs_lag=5)
    first = report(layer, findings=[finding()])
    second = report(layer, findings=[finding(severity="error")], settings=needs)
    change = only(compare(first, second).layers[0].findings)
    assert (change.verdict, change.words) == ("changed", "warning -> error")
    assert change.doubt == "another needs_lag"


def test_more_is_not_better_by_itself(layer):
    comparison = compare(report(replace(layer, reach=3)), report(replace(layer, reach=7)))
    assert number(comparison, "reach").verdict == "changed"
    assert not comparison.same
    assert comparison.summary == "1 number changed, neither better nor worse."


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("rule", "name", "values", "verdict"),
    [
        ("vanishing", "reach", (3, 7), "better"),
        ("vanishing", "reach", (7, 3), "worse"),
        ("exploding", "growth", (1.0, 0.5), "better"),
        ("exploding", "growth", (0.5, 1.0), "worse"),
        ("exploding", "reach", (7, 3), "changed"),
        ("vanishing", "growth", (1.0, 0.5), "changed"),
        ("vanishing", "gradient_norm", (1.0, 2.0), "changed"),
    ],
)
def test_numbers_are_judged_where_a_finding_of_the_layer_judges_them(
    layer, rule, name, values, verdict, which
):
    found = [(), ()]
    found[which] = (Finding(rule, "warning", "LSTM", "A message."),)
    first, second = (
        report(replace(layer, **{name: value}), findings=findings)
        for value, findings in zip(values, found, strict=True)
    )
    assert number(compare(first, second), name.replace("_", " ")).verdict == verdict


def test_evidence_with_a_threshold_says_which_way_is_healthy(layer):
    near = Evidence("share near", 0.99, "of the gradient", 0.9, "below")
    found = [Finding("near-lags", "warning", "LSTM", "A message.", (near,))]
    first = report(replace(layer, share_near=0.99), findings=found)
    comparison = compare(first, report(replace(layer, share_near=0.5)))
    assert number(comparison, "share near").verdict == "better"


@pytest.mark.parametrize(
    ("needs", "values", "verdict"),
    [
        ((5, 5), (3, 4), "better"),
        ((5, 5), (3, 9), "better"),
        ((5, 5), (9, 3), "worse"),
        ((5, 5), (6, 9), "changed"),  # both reach what is needed
        ((5, 6), (3, 9), "changed"),  # which of the two needs?
        ((None, None), (3, 9), "changed"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_need_judges_the_reach(layer, needs, values, verdict, named):
    first, second = (
        report(
            replace(layer, reach=value),
            settings=replace(SETTINGS, needs_lag=need if named else None),
            horizon=None if named or need is None else NeededLag(need, "the season"),
        )
        for need, value in zip(needs, values, strict=True)
    )
    assert number(compare(first, second), "reach").verdict == verdict


def test_residuals_are_noise_within_an_order_of_magnitude(layer):
    for after, verdict in (
        (9e-7, "same"),
        (2e-6, "changed"),
        (math.nan, "changed"),
        (0.0, "changed"),
    ):
        comparison = compare(
            report(replace(layer, residual=1e-7)), report(replace(layer, residual=after))
        )
        assert number(comparison, "residual").verdict == verdict


def test_numbers_that_neither_has_are_left_out_and_one_that_appears_is_a_change(layer):
    none = replace(layer, share_carousel=math.nan)
    names = [part.name for part in compare(report(none), report(none)).layers[0].numbers]
    assert "share carousel" not in names and "reach" in names
    assert number(compare(report(none), report(layer)), "share carousel").verdict == "changed"


def test_layers_that_one_report_alone_has(layer):
    old, new = replace(layer, name="old"), replace(layer, name="new")
    comparison = compare(
        report(layer, old, findings=[finding(layer="old")]), report(layer, new), ("a", "b")
    )
    assert (comparison.only_before, comparison.only_after) == (("old",), ("new",))
    assert not comparison.same
    assert "Only in a: old" in str(comparison) and "Only in b: new" in str(comparison)
    change = only(comparison.findings)
    assert (change.verdict, change.doubt) == (
        "changed",
        "the second report does not have this layer",
    )


def test_settings_that_differ_are_said_first(layer):
    other = Settings(
        {"torch": "2.14", "retrograde": "1"},
        "Net(\n  (a): LSTM(2, 4)\n  (b): Linear(4, 2)\n)",
        "float64 [9, 2]",
        "cuda",
        7,
        5,
        ("vanishing",),
        limits({"conflict": -0.1}),
    )
    model = "Net(\n  (a): LSTM(2, 4)\n  (b): Linear(4, 1)\n)"
    first = report(layer, settings=replace(SETTINGS, model=model, thresholds=limits()))
    second = report(replace(layer, steps=12), settings=other, horizon=NeededLag(5, "the week"))
    comparison = compare(first, second)
    assert set(comparison.settings) == {
        Difference("version of torch", "2.13", "2.14"),
        Difference("version of retrograde", "none", "1"),
        Difference("model", "(b): Linear(4, 1)", "(b): Linear(4, 2)"),
        Difference("batch", "float32 [9, 2]", "float64 [9, 2]"),
        Difference("device", "cpu", "cuda"),
        Difference("seed", "0", "7"),
        Difference("needs_lag", "none", "5"),
        Difference("horizon", "none", "the week (5 steps)"),
        Difference("rules", "vanishing, exploding", "vanishing"),
        Difference("threshold conflict", "-1", "-0.1"),
        Difference("steps of LSTM", "9", "12"),
    }
    text = str(comparison)
    assert text.index("These settings differ") < text.index("\nLSTM")


@pytest.fixture(scope="module")
def hostile(layer):
    first = report(replace(layer, name=HOSTILE), findings=[finding(HOSTILE, layer=HOSTILE)])
    settings = replace(SETTINGS, model=HOSTILE, versions={HOSTILE: HOSTILE})
    second = report(replace(layer, name=HOSTILE, reach=1), settings=settings)
    return compare(first, second, (HOSTILE, HOSTILE))


def test_the_text_is_the_same_without_colour_and_steers_no_terminal(hostile):
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system="truecolor")
    console.print(hostile)
    coloured = console.file.getvalue()
    assert "\x1b[31m長" not in coloured and "長い名前\\x1b[31m" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.strip().splitlines()] == str(hostile).splitlines()
    assert max(map(len, str(hostile).splitlines())) <= 120


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.asked = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.asked += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_harmless_and_whole(hostile, tmp_path):
    hostile.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and page.asked == []
    assert "<script" not in text and "<script>alert" in page.text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    for part in ("better", "gone", "reach", "These settings differ", hostile.summary):
        assert part in page.text
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]
