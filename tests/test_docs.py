"""README and docs are run: Python blocks in order, in one namespace a page, output as printed."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [match.groups() for match in BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {}, ""
    for language, code in blocks(page):
        if language == "python":
            assert not printed, f"the page does not show this output:\n{printed}"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, str(page), "exec"), namespace)
            printed = output.getvalue()
        elif language == "text":
            assert code == printed
            printed = ""
    assert not printed, f"the page does not show this output:\n{printed}"


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
