"""README and docs are run: Python blocks in order, in one namespace a page, output as printed."""

import re
from pathlib import Path

import pytest

from conftest import unchecked
from run_pages import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs_and_prints_what_it_shows(page, tmp_path):
    text = page.read_text()
    with unchecked():
        assert run(text, page.name, tmp_path) == text
    for image in re.findall(r"\]\(images/([^)]+\.svg)\)", text):
        assert (tmp_path / image).exists(), f"{page.name} shows {image} and does not draw it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_is_documented():
    import retrograde

    text = " ".join(page.read_text() for page in PAGES)
    for name in ("record", "decompose", "diagnose"):
        assert name in text and getattr(retrograde, name).__doc__
    for name in retrograde.__all__:
        assert getattr(retrograde, name).__doc__, f"{name} has no docstring"
