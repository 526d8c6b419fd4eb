"""README and docs are run: Python blocks in order, in one namespace a page, output as printed."""

import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.processes import run

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if re.search(r"^```(python|text)$", page.read_text(), re.MULTILINE)]


DRAWING = ROOT / "docs" / "images" / "vocabulary.svg"
"""The one picture that a script draws and no page."""


def named(page):
    return str(page.relative_to(ROOT))


RUN_PAGES = ROOT / "scripts" / "run_pages.py"


def check(page, folder):
    """In a process of its own, as a reader would run it: without the tests' type checks."""
    return run(RUN_PAGES, "--check", folder, page)


@pytest.mark.parametrize("page", RUN, ids=named)
def test_the_page_runs_and_prints_what_it_shows(page, tmp_path):
    done = check(page, tmp_path)
    assert done.returncode == 0, done.stderr
    images = set(re.findall(r"\]\(images/([^)]+\.svg)\)", page.read_text())) - {DRAWING.name}
    for image in images:
        assert (tmp_path / image).exists(), f"{page.name} shows {image} and does not draw it"


A_PAGE = """# A page

```python
size = 3
print(f"{size} steps, {size / 7:.3f}")
```

Words.

```text
3 steps, 0.429
```

```python
assert size == 3  # one namespace
```
"""


@pytest.mark.parametrize(
    ("shown", "instead", "says"),
    [
        ("0.429", "0.428", None),  # 0.42857: its last digit is one that rounding may decide
        ("0.429", "0.427", "shows"),
        ("3 steps", "4 steps", "shows"),  # a whole number is exact
        ("3 steps", "3 step", "shows"),
        ("```text\n3 steps, 0.429\n```\n", "", "not shown"),
        ("== 3", "== 4", "AssertionError"),
    ],
)
def test_a_page_that_shows_something_else_is_refused(shown, instead, says, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(A_PAGE)
    assert check(page, tmp_path).returncode == 0
    assert A_PAGE.count(shown) == 1
    page.write_text(A_PAGE.replace(shown, instead))
    done = check(page, tmp_path)
    assert (done.returncode == 0) == (says is None), done.stderr
    assert says is None or says in done.stderr
    run(RUN_PAGES, page)
    assert (page.read_text() == A_PAGE) == (says == "shows")  # brought up to date


API_PAGES = runpy.run_path(str(ROOT / "scripts" / "api_pages.py"))
REFERENCE = API_PAGES["render"]()
"""What Sphinx writes into docs/api while it builds."""


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_inside_the_project_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        there = (page.parent / target).exists() or target.removeprefix("api/") in REFERENCE
        assert there, f"{page.name} links to {target}"


def public_names():
    """Classes and functions of the reference, by the name under which a user imports them."""
    pages = API_PAGES["names"]()
    every = (pair for entries in pages.values() for pair in entries.values())
    return {
        name: value for name, value in every if inspect.isclass(value) or inspect.isroutine(value)
    }


def parameters(value):
    """What a user gives, by name; an error that is raised with any message has none."""
    if inspect.isclass(value) and not inspect.isfunction(value.__init__):
        return []
    names = inspect.signature(value).parameters
    return [name for name in names if not name.startswith("_") and name not in ("args", "kwargs")]


PUBLIC = public_names()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented_with_an_example(name):
    """Its examples run with the tests of the package; every parameter is explained by name, be it
    where it is inherited from.
    """
    value = PUBLIC[name]
    assert ">>> " in (value.__doc__ or ""), f"{name} has no example"
    said = "".join(each.__doc__ or "" for each in getattr(value, "__mro__", (value,)))
    for parameter in parameters(value):
        assert re.search(rf"\b{parameter}\b", said), f"{name} does not say what {parameter} is"


def test_each_example_of_the_readme_runs_alone():
    """Apart from the page, which is run as a whole: no name comes from another block."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGES[0].read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    for block in blocks:
        ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
        done = subprocess.run(ruff, input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_pages_show_how_to_begin():
    text = " ".join(page.read_text() for page in PAGES)
    for name in ("record", "decompose", "diagnose", "save", "load"):
        assert f"retrograde.{name}(" in text


def test_the_pages_of_the_rules_are_fresh():
    """None is missing and none is left over."""
    rule_pages = runpy.run_path(str(ROOT / "scripts" / "rule_pages.py"))
    there = {path.name: path.read_text() for path in rule_pages["FOLDER"].iterdir()}
    assert there == rule_pages["render"](), "run python scripts/rule_pages.py"
    assert rule_pages["PROBLEMS"].read_text() == rule_pages["problems"]()


def test_a_rule_that_no_symptom_leads_to_is_refused():
    rule_pages = runpy.run_path(str(ROOT / "scripts" / "rule_pages.py"))
    _, *names = rule_pages["SYMPTOMS"].popitem()[1]
    with pytest.raises(SystemExit, match=f"leads to no.*{names[0]}"):
        rule_pages["problems"]()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_that_is_shown_reads_as_a_tag(page):
    """<a, b> outside of code would not be seen; docstrings are rewritten."""
    prose = re.sub(r"^```.*?^```$|`[^`]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"<[A-Za-z][^<>]*>", re.sub(r"^    .*$", "", prose, flags=re.MULTILINE))


def test_the_drawing_is_fresh():
    drawing = runpy.run_path(str(ROOT / "scripts" / "vocabulary_drawing.py"))
    assert DRAWING.read_text() == drawing["render"](), "run python scripts/vocabulary_drawing.py"


def test_the_citation_names_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_page_is_in_a_table_of_contents():
    """The build would complain, too; it is not part of these tests."""
    docs = ROOT / "docs"
    contents = r"^```\{toctree\}\n(.*?)^```$"
    named = {
        (page.parent / line).relative_to(docs).as_posix()
        for page in docs.rglob("*.md")
        for block in re.findall(contents, page.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    }
    for page in set(docs.rglob("*.md")) - {docs / "index.md"}:
        assert page.relative_to(docs).with_suffix("").as_posix() in named


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_fits_a_laptop(page):
    """Beside the list of pages a screen of 1280 pixels has room for as many characters."""
    for block in re.findall(r"^```.*?^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= 88, line
