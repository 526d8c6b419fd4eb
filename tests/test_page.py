"""The page in a real browser: it draws, answers to the mouse, and asks the network for nothing."""

import json
import shutil

import pytest
import torch
from torch import nn

import retrograde
from retrograde import charts
from retrograde.report import Layer, Report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="NO BROWSER: the page is not tested; install Debian's chromium (CI always does)",
)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = "<script>alert('x')</script> \"quotes\" 長い名前 " + "very-long-name" * 10


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1366, "height": 900})
    page.seen = []
    page.on("console", lambda message: page.seen.append(message.text))
    page.on("pageerror", lambda error: page.seen.append(str(error)))
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    yield page
    page.close()


def layer(name, steps=20):
    torch.manual_seed(0)
    model = nn.LSTM(2, 3)
    with retrograde.record(model) as recording:
        model(torch.randn(steps, 2, 2))[0].square().sum().backward()
    return Layer(name, retrograde.decompose(recording))


def test_the_page(page, tmp_path):
    path = tmp_path / "page.html"
    report = Report("Title", (layer("first"), layer(HOSTILE)), (0, 3, 8), notes=(HOSTILE,))
    report.to_html(path)
    assert path.stat().st_size < 2_000_000
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('svg.marks').length === 12")
    assert page.seen == []
    assert page.asked == [path.as_uri()]

    assert page.locator("li").first.inner_text() == report.sentences[0]
    top = page.locator("li").first.bounding_box()["y"]
    assert top < page.locator("table").bounding_box()["y"]  # the sentence comes first
    assert HOSTILE in page.locator("h2").nth(1).inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for number in range(12):
        marks = page.locator("svg.marks").nth(number).locator("[aria-roledescription]")
        assert marks.count() > 0

    page.locator("#chart-0-0 svg.marks path[aria-roledescription='rect mark']").nth(30).hover()
    tooltip = page.locator("#vg-tooltip-element")
    tooltip.wait_for()
    for word in ("entry step t", "use step k", "lag (steps)", "norm"):
        assert word in tooltip.inner_text()


def test_the_page_prints(page, tmp_path):
    path = tmp_path / "page.html"
    Report("Title", (layer("first"),), (0, 3, 8)).to_html(path)
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('svg.marks').length === 6")
    page.emulate_media(media="print")
    assert page.pdf()[:5] == b"%PDF-"
    assert page.locator("svg.marks").nth(5).is_visible()


def test_the_largest_map_leaves_room_for_two_on_a_page():
    """The charts' own JavaScript takes 0.9 MB of the 2 MB."""
    log2 = torch.randn(1000, 1000, dtype=torch.float64) - 1000
    spec = charts.entry_by_use(log2, torch.arange(1000), None).to_dict()
    assert len(json.dumps(spec)) < 500_000
