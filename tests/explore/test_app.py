"""The lecture in a real browser: knobs move, pictures follow, and no request leaves the machine."""

import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import pytest

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
    asked, said = [], []
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))

    def local_only(route):
        asked.append(urlsplit(route.request.url).hostname)
        route.continue_() if asked[-1] == "127.0.0.1" else route.abort()

    page.route("**", local_only)
    page.goto(f"{lecture}?screen=2")
    picture = page.locator(".vega-embed svg").first
    picture.wait_for(timeout=30_000)

    def changed(act):
        """What is drawn after an act, which must differ from what was drawn before."""
        before = picture.inner_html()
        act()
        for _ in range(100):
            page.wait_for_timeout(50)
            if picture.count() and picture.inner_html() != before:
                return
        raise AssertionError("the picture is the same")

    knob = page.get_by_role("slider").first
    changed(lambda: knob.press("ArrowRight"))
    changed(lambda: page.get_by_text("lags", exact=True).click())
    assert set(asked) == {"127.0.0.1"} and not said
