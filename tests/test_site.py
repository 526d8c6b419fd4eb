"""The documentation as it is built: nothing comes from a network, and equations are drawn."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.browser import browser, in_a_browser  # noqa: F401

DOCS = Path(__file__).parent.parent / "docs"

INDEX = """# Some pages

```{toctree}
vocabulary
how-it-works
```
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two of the pages, built as all of them are; links to the others lead nowhere."""
    pytest.importorskip("sphinx")
    source, built = tmp_path_factory.mktemp("pages"), tmp_path_factory.mktemp("site")
    (source / "index.md").write_text(INDEX)
    for page in ("vocabulary.md", "how-it-works.md"):
        shutil.copy(DOCS / page, source / page)
    shutil.copytree(DOCS / "images", source / "images")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", DOCS, source, built]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture
def opened(browser, site):  # noqa: F811
    """Opens a page on a laptop, and fails if it asks for anything that does not lie beside it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    asked = []

    def open_page(name):
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.as_uri()}/{name}")
        return page

    yield open_page
    elsewhere = [url for url in asked if not url.startswith((site.as_uri(), "data:"))]
    context.close()
    assert asked and not elsewhere


@in_a_browser
def test_an_equation_is_drawn(opened):
    page = opened("how-it-works.html")
    above, below = (
        page.locator("math[display=block] mfrac").first.locator(f"xpath=*[{n}]").bounding_box()
        for n in (1, 2)
    )
    assert 0 < above["height"] and above["y"] + above["height"] <= below["y"] + 1
    (full, small) = page.evaluate(
        """[...document.querySelector("math msub").children].map(
            (part) => parseFloat(getComputedStyle(part).fontSize))"""
    )
    assert small < full
    fonts = "document.fonts.ready.then(() => [...document.fonts].map((font) => font.status))"
    assert page.evaluate(fonts) == ["loaded"]
    assert "$" not in page.locator("article p").all_inner_texts()[0]


@in_a_browser
def test_the_vocabulary_is_one_screen(opened):
    page = opened("vocabulary.html")
    box = page.locator("#vocabulary").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 800
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@in_a_browser
def test_the_search_finds_words(opened):
    page = opened("search.html?q=carousel")
    page.wait_for_selector("ul.search li a")
    assert "Vocabulary" in page.locator("ul.search").inner_text()
