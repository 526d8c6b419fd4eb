"""The page in a real browser: it draws, answers to mouse and keyboard, and asks for nothing."""

import json
import math
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import torch
from markupsafe import escape
from torch import nn

import retrograde
from retrograde import charts
from retrograde.decomposition import Parts
from retrograde.diagnosis import Check, Evidence, Finding, GateSeries, Threshold, Training, Trial
from retrograde.report import NeededLag, Report, Settings, html
from retrograde.report.answer import answer
from support.browser import in_a_browser

HOSTILE = "<script>alert('x')</script> \"quotes\" ' `${1}` 長い名前 </code> " + "very-long" * 20
DRAWN = "document.body.dataset.drawn === 'all'"
SIZE = {"width": 1366, "height": 900}

CONTRAST = """(element) => {
  const of = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = (colour) => colour === "rgba(0, 0, 0, 0)";
  let ground = element;
  while (ground && clear(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
  const style = getComputedStyle(element);
  const ink = element.ownerSVGElement ? style.fill : style.color;
  const paper = ground ? getComputedStyle(ground).backgroundColor : "rgb(255, 255, 255)";
  const [low, high] = [of(ink), of(paper)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


def new_page(browser):
    """A page that notes what it says and what it asks for."""
    page = browser.new_page(viewport=SIZE)
    page.seen = []
    page.on("console", lambda message: page.seen.append(message.text))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    return page


def show_on(page, report, path):
    """Write a report, open it and wait until it is drawn."""
    page.path = path
    report.to_html(path)
    page.goto(path.as_uri())
    page.wait_for_function(DRAWN)
    assert page.seen == []
    assert page.asked == [path.as_uri()]


@pytest.fixture
def page(browser):
    page = new_page(browser)
    yield page
    page.close()


@pytest.fixture
def show(page, tmp_path):
    return lambda report: show_on(page, report, tmp_path / "page.html")


@pytest.fixture
def read(browser, tmp_path):
    """Open a report for its words alone, without drawing a chart."""
    page = browser.new_page(java_script_enabled=False)

    def open_it(report):
        report.to_html(tmp_path / "page.html")
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_it
    page.close()


@pytest.fixture(scope="module")
def drawn(browser, report, tmp_path_factory):
    """The report, drawn once for all that look at it from where a reader starts."""
    page = new_page(browser)
    show_on(page, report, tmp_path_factory.mktemp("drawn") / "page.html")
    yield page
    page.close()


@pytest.fixture
def opened(drawn):
    """The same, as it is when it was just opened: the first finding unfolded, on a screen."""
    drawn.set_viewport_size(SIZE)
    drawn.emulate_media(media="screen", color_scheme="light")
    drawn.mouse.move(0, 0)
    drawn.evaluate("document.activeElement.blur()")
    drawn.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = false))")
    drawn.evaluate("document.querySelector('details.finding').open = true")
    yield drawn
    assert drawn.seen == [] and len(drawn.asked) == 1


def gates_over_time(steps, layers):
    names = ("input", "forget", "cell", "output")
    low, median, high = (tuple(level for _ in range(steps)) for level in (0.2, 0.5, 0.9))
    return tuple(
        GateSeries(f"{name}_l{layer}", tuple(range(steps)), low, median, high, low)
        for layer in range(layers)
        for name in names
    )


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.randn(20, 2, 2), lambda model, x: model(x)[0].square().sum()
    )
    return replace(report.layers[0], name="encoder.lstm", gate_series=gates_over_time(20, 2))


TRIALS = (
    Trial(
        *("forget_bias", "Forget bias 3", "model.lstm.bias_ih_l0[3:6] = 3.0"),
        *(7.0, 61.0, True, True, False, 2e-7, 0.71, 0.74),
        training=Training("Adam", (1.0, 0.5, 0.4), (1.0, 0.3, math.nan)),
    ),
    Trial("chrono", "Chrono", "chrono_(lstm, 52)", 7.0, 30.0, True, note="Draws fresh biases."),
    Trial("orthogonal", "Orthogonal weights", "orthogonal_(weight)", 7.0, 7.0),
    Trial("generation", "Peepholes", "", note="It is no layer of torch.nn."),
)


def finding(rule="vanishing", layer="encoder.lstm", severity="warning", message="Too short."):
    return Finding(
        *(rule, severity, layer, message),
        evidence=(
            Evidence("reach", 7.0, "steps", 52.0, "above", "reach_fraction"),
            Evidence("half-life", -math.inf, "steps"),
        ),
        causes=("A small forget bias.", "Small weights."),
        advice=("Raise the forget bias.",),
        gate="forget",
        steps=(0, 12),
        trials=TRIALS,
    )


RULES = tuple(html.EVIDENCE)
SETTINGS = Settings(
    versions={"retrograde": "0.0", "torch": "2.0"},
    model="Net(\n  (encoder): LSTM(2, 3)\n)",
    batch="tensor of shape (20, 2, 2), float32",
    device="cpu",
    seed=7,
    needs_lag=52,
    rules=RULES,
    thresholds=(Threshold("reach_fraction", 0.1, "of the sequence", "Because I say so."),),
)


@pytest.fixture(scope="module")
def report(layer):
    return Report(
        "Title",
        (layer,),
        (finding("exploding", severity="error", message="It explodes."), finding()),
        notes=("A note.",),
        settings=SETTINGS,
    )


@in_a_browser
def test_the_page(opened):
    assert opened.path.stat().st_size < 1_200_000
    text = opened.locator("body").inner_text()
    order = [
        "Title",
        "It explodes.",
        "encoder.lstm, gate forget, steps 0-12",
        "vanishing (encoder.lstm)",
        "What was found",
        "The gradient of each layer, taken apart",
        "How to repeat this",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert opened.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    first = opened.locator("details.finding").first
    assert "■ error exploding · encoder.lstm: It explodes." in " ".join(
        first.locator("summary").first.inner_text().split()
    )
    for part in (
        *("at least 52 expected (reach_fraction)", "-inf", "gate forget, steps 0 to 12"),
        *("A small forget bias.", "Raise the forget bias.", "7 → 61", "0.71 → 0.74"),
        *(
            "on the healthy side",
            "no nearer to the healthy side",
            "could not be tried",
            "Draws fresh biases.",
        ),
        *("model.lstm.bias_ih_l0[3:6] = 3.0", "trained for 3 steps with Adam"),
    ):
        assert part in first.inner_text(), part
    for part in ("tensor of shape (20, 2, 2)", "52 steps", "(encoder): LSTM(2, 3)", "seed\n7"):
        assert part in text, part
    for row in SETTINGS.thresholds:
        assert row.name in text and row.reason in text


def test_the_answer_where_nothing_is_wrong_or_nothing_can_be_said(layer):
    passed = tuple(Check(rule, layer.name, "passed") for rule in RULES)
    none = Report("Title", (layer,), settings=replace(SETTINGS, needs_lag=None), checks=passed)
    found = answer(none)
    assert (found.severity, found.verdict, dict(found.rows)["What next"].split(":")[0]) == (
        *("passed", "nothing to mend"),
        "Name the lag that matters to you, needs_lag=, and ask whether it is within reach.",
    )
    assert f"reaches back {layer.reach} of 19 steps" in dict(found.rows)["How far"]
    remark = replace(none, findings=(finding(severity="info"),), settings=SETTINGS)
    found = answer(remark)
    assert found.verdict == "nothing to mend, 1 remark"
    assert dict(found.rows)["Remarks"] == "vanishing (encoder.lstm)."
    assert dict(found.rows)["What next"].startswith("Nothing in the recurrent layers.")
    skipped = tuple(replace(check, status="not applicable", reason="-") for check in passed)
    found = answer(replace(none, checks=skipped))
    assert (found.severity, found.lead) == ("unknown", ("0 of 11 rules could look.",))


def test_the_answer_names_a_few_of_many_layers(layer):
    layers = tuple(replace(layer, name=f"layer {n}", reach=n + 3) for n in range(9))
    findings = tuple(finding(layer=each.name) for each in layers)
    rows = dict(answer(Report("Title", layers, findings, settings=SETTINGS)).rows)
    assert rows["Where"] == (
        "layer 0, gate forget, steps 0-12; likewise layer 1, layer 2, layer 3, layer 4 and 4 more"
    )
    assert rows["How far"] == "The gradient reaches back 3 to 11 steps in 9 layers; 52 are needed."
    assert "Also found" not in rows


def test_the_answer_to_a_question_of_its_own_comes_first(layer):
    year = NeededLag(12, "last year's season")
    passed = (Check("vanishing", layer.name, "passed"),)
    report = Report("Title", (replace(layer, beyond=0.2),), (), year, (), SETTINGS, passed)
    found = answer(report)
    assert found.lead[0] == report.sentences[0] and "last year's season" in found.lead[0]
    assert found.lead[1].startswith("Nothing found.") and "How far" not in dict(found.rows)


BEYOND = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const { left, right, width } = element.getBoundingClientRect();
  return width && (left < 0 || right > innerWidth + 1) && !element.ownerSVGElement;
}).map((element) => element.outerHTML.slice(0, 80))"""

HIDDEN = """() => [...document.querySelectorAll("body *")].filter((element) =>
  element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX !== "visible"
).map((element) => element.outerHTML.slice(0, 80))"""


@in_a_browser
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_first_screen_answers_and_nothing_is_beside_it(opened, report, width, height):
    opened.set_viewport_size({"width": width, "height": height})
    shown = opened.locator(".answer :is(.verdict, .lead, dt, dd)")
    words = [text.replace("\n", " ") for text in shown.all_inner_texts()]
    assert words == [
        *("■ 1 error, 1 warning", "It explodes.", "Where", "encoder.lstm, gate forget, steps 0-12"),
        "What helps",
        "What moves it most in one pass: Forget bias 3, reach 7 -> 61 steps. "
        "model.lstm.bias_ih_l0[3:6] = 3.0",
        *("What to do", "Raise the forget bias.", "How far"),
        f"The gradient reaches back {report.layers[0].reach} of 19 steps; 52 are needed.",
        "Also found",
        "vanishing (encoder.lstm).",
    ]
    for row in shown.all():
        box = row.bounding_box()
        assert box["y"] + box["height"] <= height
    opened.evaluate(
        "for (const finding of document.querySelectorAll('details')) finding.open = true"
    )
    opened.evaluate("new Promise((done) => setTimeout(done, 300))")  # charts take their width
    assert opened.evaluate(BEYOND) == [] and opened.evaluate(HIDDEN) == []
    assert opened.evaluate("document.documentElement.scrollWidth") == width


@in_a_browser
def test_a_phone_shows_whole_tables_menus_and_what_a_finger_taps(browser, hostile, tmp_path):
    hostile.to_html(tmp_path / "page.html")
    phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.goto((tmp_path / "page.html").as_uri())
    phone.wait_for_function(DRAWN)
    assert phone.evaluate(BEYOND) == [] and phone.evaluate(HIDDEN) == []
    cell = phone.locator(".checks td, .overview td, .finding td").nth(1)
    assert cell.evaluate("(cell) => getComputedStyle(cell, '::before').content") == '"value"'
    chart = phone.locator("section [data-chart='0-lags']")
    chart.locator("summary").tap()
    menu = chart.locator(".vega-actions").bounding_box()
    assert menu["x"] >= 0 and menu["x"] + menu["width"] <= 390
    point = chart.locator("[aria-roledescription=point]").nth(9).bounding_box()
    phone.touchscreen.tap(point["x"] - 4, point["y"] + 12)
    assert "lag (steps)\t\n" in phone.locator("#vg-tooltip-element").inner_text()
    phone.touchscreen.tap(5, 5)
    assert not phone.locator("#vg-tooltip-element").is_visible()
    phone.close()


@in_a_browser
def test_every_chart_is_drawn_and_answers(opened):
    figures = opened.locator("figure")
    assert figures.count() == 1 + 7 + 2 * 3
    for number in range(figures.count()):
        assert figures.nth(number).locator("svg.marks [aria-roledescription]").count() > 0
    map_ = opened.locator("[data-chart='0-map']")
    map_.locator("path[aria-roledescription='rect mark']").nth(30).hover()
    tooltip = opened.locator("#vg-tooltip-element")
    tooltip.wait_for()
    for word in ("loss step t", "use step k", "lag (steps)", "norm"):
        assert word in tooltip.inner_text()
    gates = opened.locator("[data-chart='0-gates']")
    assert gates.locator("text").filter(has_text=re.compile("_l1$")).count() == 4
    gates.locator("[aria-roledescription='rule mark']").nth(30).hover(force=True)
    opened.wait_for_function("document.body.innerText.includes('90th percentile')")


@in_a_browser
def test_findings_open_by_keyboard(opened):
    second = opened.locator("details.finding").nth(1)
    inside = second.locator("svg.marks").first
    assert not inside.is_visible()
    second.locator("summary").first.focus()
    opened.keyboard.press("Enter")
    assert inside.is_visible()
    assert second.get_by_text("Chrono", exact=True).or_(second.get_by_text("Chrono:")).count()
    opened.keyboard.press("Enter")
    assert not inside.is_visible()


@in_a_browser
def test_text_and_charts_are_readable_in_light_and_dark_also_after_a_change(page, show, report):
    page.emulate_media(color_scheme="dark")
    show(report)
    label, inks = page.locator("figure .role-axis-label text").first, []
    for scheme in ("dark", "light", "dark"):
        page.emulate_media(color_scheme=scheme)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
        assert dark == (scheme == "dark")
        inks.append(label.evaluate("(element) => getComputedStyle(element).fill"))
        for selector in (
            *("h1", ".lead", "summary", "[data-severity=error]", "[data-severity=warning]", "td"),
            *("th", "pre code", "figcaption", ".notes p", "footer p", "dt", "a", ".verdict"),
            *(".role-axis-label text", ".role-axis-title text", "figcaption b"),
            *(".role-legend-label text", ".mark-text.role-mark text"),
        ):
            found = page.locator(selector).first
            assert found.evaluate(CONTRAST) >= 4.5, (scheme, selector)
    assert inks[0] == inks[2] != inks[1]


@pytest.mark.parametrize(
    "colour",
    [*charts.SERIES, *charts.RAMP, charts.INK, charts.ACCENT, charts.COUNTER, charts.GREY],
)
def test_colours_stand_out_from_both_grounds(colour):
    def luminance(text):
        parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    own, dark = luminance(colour), luminance("#14181d")
    assert 1.05 / (own + 0.05) >= 3
    assert (own + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_colour_of_text_stands_out_from_its_ground(scheme):
    """Also those of the pages of a comparison and of an audit, whose style is the same."""

    def luminance(text):
        digits = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
        parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    style = (Path(html.__file__).parent / "page.css.jinja").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root {(.*?)}", style)[scheme]))
    assert {"ink", "soft", "error", "good", "worse"} < set(colours)
    for ground in (colours.pop("paper"), colours.pop("shade")):
        for name in set(colours) - {"line"}:
            low, high = sorted((luminance(colours[name]), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


@in_a_browser
def test_print_shows_what_is_folded_and_is_light(opened):
    opened.emulate_media(color_scheme="dark")
    advice = opened.locator("details.finding").nth(1).get_by_text("Raise the forget bias.")
    assert not advice.is_visible()
    opened.emulate_media(media="print", color_scheme="dark")
    assert advice.is_visible()
    assert opened.locator("details.finding").nth(1).locator("svg.marks").first.is_visible()
    assert (
        opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert opened.locator("h1").evaluate(CONTRAST) >= 4.5
    whole = "(element) => getComputedStyle(element).breakInside"
    for selector in ("figure", "tr", "pre", "li", "summary", "math"):
        assert opened.locator(selector).first.evaluate(whole) == "avoid", selector
    assert not opened.locator(".vega-embed summary").first.is_visible()
    pdf = opened.pdf()
    assert pdf[:5] == b"%PDF-" and pdf.count(b"/Type /Page\n") >= 4

    opened.emulate_media(media="screen")
    unfolded = "[...document.querySelectorAll('details.finding')].map((d) => d.open)"
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.evaluate(unfolded) == [True, True]
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.evaluate(unfolded) == [True, False]


@pytest.fixture(scope="module")
def hostile(layer):
    bad = finding("vanishing", HOSTILE, message=HOSTILE)
    trial = Trial(HOSTILE, HOSTILE, HOSTILE, 1.0, 2.0, note=HOSTILE, training=TRIALS[0].training)
    bad = replace(bad, evidence=(Evidence(HOSTILE, 1.0, HOSTILE, 3.0, "above", HOSTILE),))
    bad = replace(bad, causes=(HOSTILE,), advice=(HOSTILE,), gate=HOSTILE, trials=(trial,))
    one = torch.ones(1, dtype=torch.float64)
    axes = ({"parameter": (HOSTILE,), "gate": (HOSTILE,)},)
    blocks = Parts.measured(axes, None, one, one)
    series = replace(layer.gate_series[0], name=HOSTILE)
    layers = (replace(layer, name=HOSTILE, by_parameter=blocks, gate_series=(series,)),)
    settings = replace(SETTINGS, model=HOSTILE, batch=HOSTILE, rules=(HOSTILE,))
    return Report(
        HOSTILE,
        layers,
        (bad, replace(bad, rule="saturated"), replace(bad, rule=HOSTILE)),
        notes=(HOSTILE,),
        settings=settings,
    )


@in_a_browser
def test_hostile_names_are_harmless(page, show, hostile):
    page.on("dialog", lambda dialog: page.seen.append(dialog.message))
    show(hostile)
    assert page.locator("script").count() == 1
    assert page.locator("section h2").inner_text() == HOSTILE
    assert page.locator("pre code").first.inner_text() == HOSTILE
    assert page.locator("section [data-chart='0-blocks'] svg.marks").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("[data-chart='trials-0'] [aria-roledescription='point']").first.hover()
    page.wait_for_function(
        "document.getElementById('vg-tooltip-element')?.innerText.includes('<script>')"
    )
    assert page.locator("#vg-tooltip-element script").count() == 0
    assert page.seen == []


def test_forty_layers_fit_into_two_megabytes(layer):
    wide = replace(layer, gate_series=gates_over_time(200, 2))
    layers = tuple(replace(wide, name=f"layer {number}") for number in range(40))
    findings = tuple(finding(layer=layer.name) for layer in layers[10:])
    text = html.render(Report("Title", layers, findings, settings=SETTINGS))
    assert 1_800_000 < len(text.encode()) < 2_000_000
    note = text[text.index('id="left-out"') :]
    note = unescape(note[: note.index("</p>")])
    assert "“How much of what enters at t comes from the weights' use at k” of 40 of 40" in note
    assert "The mean contribution over lag" not in note
    assert "retrograde diagnose --layer NAME" in note
    assert "retrograde diagnose --layer layer 3</code> shows it" in text
    shown = [f'data-chart="{number}-gates"' in text for number in range(40)]
    assert any(shown[10:]) and not any(shown[:10]), "layers with findings come first"
    wanted = set(re.findall('data-chart="([^"]*)"', text))
    assert wanted == set(re.findall(r'^(?:const specs = {)?"([^"]*)":{', text, re.M))


def test_findings_beyond_the_first_forty_keep_their_message(layer):
    findings = tuple(finding(layer=None, message=f"Message {n}.") for n in range(45))
    text = html.render(Report("Title", (layer,), findings, settings=SETTINGS))
    assert text.count("<details class") == html.MOST_FINDINGS
    assert "Message 44." in text
    assert '"trials-39":' in text and '"trials-40":' not in text


def test_a_huge_model_is_cut(layer):
    settings = replace(SETTINGS, model="x" * 3_000_000)
    text = html.render(Report("Title", (layer,), settings=settings))
    assert len(text) < 2_000_000
    assert "3000000 characters in all" in text


@in_a_browser
def test_nothing_found_is_said_plainly(read, layer):
    why = "its reach falls short of the lag that matters"
    checks = (
        Check("vanishing", layer.name, "passed"),
        Check("exploding", layer.name, "passed"),
        Check("near-lags-dominate", layer.name, "not applicable", why),
    )
    page = read(Report("Title", (layer,), settings=SETTINGS, checks=checks))
    text = page.locator("body").inner_text()
    assert "Nothing was found." in text and "2 of 3 rules could look" in text
    rows = page.locator(".checks tbody tr").all_inner_texts()
    assert [row.split("\t")[1:4] for row in rows] == [
        ["exploding", "passed", layer.name],
        ["vanishing", "passed", layer.name],
        ["near-lags-dominate", "not applicable", layer.name],
    ]
    assert rows[2].endswith(why)
    assert page.locator("details.finding").count() == 0


@in_a_browser
def test_a_report_without_rules_starts_with_its_sentences(read, layer):
    report = Report("Title", (layer, replace(layer, name="decoder")))
    page = read(report)
    assert tuple(page.locator(".lead").all_inner_texts()) == report.sentences
    assert "No rule looked at this backward pass" in page.locator("body").inner_text()


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("vanishing", "lags"),
        ("near-lags-dominate", "lags"),
        ("exploding", "adjoint"),
        ("non-finite", "adjoint"),
        ("saturated", "saturation forget"),
        ("forget-gate-too-short", "gates forget"),
        ("conflicting-lags", "shares"),
        ("dead-units", "blocks"),
        ("double-bias", "blocks"),
        ("output-outweighs", "blocks"),
        ("of-tomorrow", None),
    ],
)
def test_each_rule_has_the_chart_that_shows_its_evidence(layer, rule, kind):
    report = Report("Title", (layer,), (finding(rule),), settings=SETTINGS)
    text = html.render(report)
    inside = text[text.index("<details") : text.index("</details>")]
    shown = re.findall(r'data-chart="0-([^"]*)"', inside)
    assert shown == ([kind] if kind else [])
    assert kind is None or f'"0-{kind}":' in text


@pytest.mark.parametrize("name", [None, "another"])
def test_a_finding_of_no_layer_has_no_chart(layer, name):
    text = html.render(Report("Title", (layer,), (finding(layer=name),), settings=SETTINGS))
    assert "Evidence for" not in text


def test_the_excerpt_is_static_and_harmless(report, hostile):
    text = report._repr_html_()
    for part in (report.summary, "It explodes.", "7 → 61", "■", "1. Forget bias 3", "A note."):
        assert str(escape(part)) in text
    assert len(text) < 60_000  # one picture is part of it
    worst = hostile._repr_html_()
    assert "&lt;script&gt;" in worst
    for tags in ("".join(re.findall("<[^>]*>", found)) for found in (text, worst)):
        for forbidden in ("<script", "<style", "<link", "class=", " on", "color:"):
            assert forbidden not in tags


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_excerpt_is_readable_in_light_and_dark_notebooks(page, report, scheme):
    ink, paper = {"light": ("#111", "#fff"), "dark": ("#ddd", "#111")}[scheme]
    page.set_content(
        f'<body style="color: {ink}; background: {paper}">{report._repr_html_()}</body>'
    )
    for selector in ("summary", "td", "th", "pre", "p", "small"):
        assert page.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector
    second = page.locator("details").nth(1)
    assert not second.get_by_text("Small weights.").is_visible()
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    assert second.get_by_text("Small weights.").is_visible()


def test_the_largest_map_leaves_room_for_twenty_on_a_page():
    """The charts' own JavaScript takes 0.9 MB of the 2 MB."""
    starts = tuple(range(0, 1001, 10))
    log2 = tuple(tuple(-1000.125 - k for k in range(t + 1)) for t in range(100))
    spec = charts.loss_step_by_use_step(starts, starts, log2, None).to_dict()
    assert len(spec["data"]["values"].splitlines()) == 1 + 100 * 101 // 2
    assert len(json.dumps(spec)) < 130_000


@in_a_browser
@pytest.mark.parametrize("case", ["one step", "no gradient", "nothing finite"])
def test_pages_with_little_to_draw(page, show, layer, case):
    steps = 1 if case == "one step" else 5
    factor = 0.0 if case == "no gradient" else 1.0
    report = retrograde.diagnose(
        nn.LSTM(2, 3), torch.ones(steps, 1, 2), lambda model, x: factor * model(x)[0].sum()
    )
    (layer,) = report.layers
    if case == "nothing finite":
        none = (math.nan, math.inf, -math.inf, math.nan, math.nan)
        series = GateSeries("forget", (0, 1), *((math.nan, math.nan),) * 4)
        blocks, map_ = layer.by_parameter, layer.by_time
        nan = torch.full_like(blocks.log2, math.nan)
        empty = Parts.measured(blocks.axes, None, nan, blocks.share)
        wide = torch.tensor(none, dtype=torch.float64).expand(map_.shape)
        map_ = Parts.measured(map_.axes, None, wide, map_.share)
        layer = replace(
            *(layer,),
            **{"log2_mean_by_lag": none, "log2_adjoint_by_lag": none, "half_life": math.nan},
            **{"by_time": map_, "by_parameter": empty, "gate_series": (series,)},
        )
    findings = tuple(finding(rule, layer.name) for rule in RULES)
    show(Report("Title", (layer,), findings, settings=SETTINGS))
    drawn = page.locator("section").inner_text()
    assert ("nothing to draw" in drawn) == (case != "one step")
