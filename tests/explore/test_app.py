"""The lecture in a real browser: knobs move, pictures follow, and no request leaves the machine."""

import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

from retrograde.explore.equations import colours
from support.browser import in_a_browser

pytest.importorskip("marimo")


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@pytest.fixture
def lecture(tmp_path):
    """Its address, served by the command itself in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "retrograde", "explore", "--headless", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as served:
        try:
            assert f"http://127.0.0.1:{port};" in served.stdout.readline()
            for _ in range(200):
                with socket.socket() as trial:
                    if not trial.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            served.terminate()


@in_a_browser
def test_knobs_move_pictures_follow_and_no_request_leaves_the_machine(browser, lecture):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    asked, said = set(), []
    page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))

    def changed(what, act):
        """Something that is drawn, after an act that must change it."""
        before = what.inner_html(timeout=30_000)
        act()
        for _ in range(200):
            page.wait_for_timeout(50)
            if what.count() and what.inner_html() != before:
                return what.inner_html()
        raise AssertionError("it is the same")

    page.goto(f"{lecture}?screen=2")
    chart, knob = page.locator(".vega-embed svg").first, page.get_by_role("slider").first
    changed(chart, lambda: knob.press("ArrowRight"))
    changed(chart, lambda: page.get_by_label("picture").select_option("lags"))
    assert "reach:" in chart.inner_html()

    page.get_by_role("button", name="next: 3. Step by step").click()
    network = page.locator(".unrolled-wide svg")
    assert "currentColor" in network.inner_html(timeout=30_000)
    walked = changed(network, lambda: page.get_by_role("button", name="one step back").click())
    assert colours("lstm-2000")["carousel"] in walked
    assert page.locator(".katex").count() >= 2
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.locator(".unrolled-narrow svg").is_visible() and not network.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    assert asked <= {"127.0.0.1", None} and not said
