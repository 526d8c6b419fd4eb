"""Packages of an extra may be missing, and docstrings removed: what is printed says what to do."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retrograde._optional import optional
from retrograde.diagnosis import RULES, explain
from retrograde.errors import MissingExtraError
from support import processes

ROOT = Path(__file__).parent.parent

EXTRAS = ("altair", "h5py", "jinja2", "keras", "lightning", "marimo", "matplotlib", "pandas")
EXTRAS += ("pydantic", "pytorch_lightning", "typer", "vl_convert")
"""What the core does without (`make test-install` runs it where they are not installed at all)."""

PASS = """
import torch, retrograde
torch.manual_seed(0)
model, x = torch.nn.LSTM(2, 4), torch.randn(30, 3, 2)
loss_fn = lambda model, x: model(x)[0][-1].square().mean()
report = retrograde.diagnose(model, x, loss_fn, needs_lag=29, remedies="pass")
"""

WITHOUT_EXTRAS = (
    f"import sys; sys.modules |= dict.fromkeys({EXTRAS!r})\n"
    + PASS
    + """
print(report)
assert report._repr_html_() is None  # a notebook falls back to the text
with retrograde.record(model) as recording:
    loss_fn(model, x).backward()
flow = retrograde.decompose(recording)
for call in (
    flow.chart,
    flow.by_lag().chart,
    lambda: report.to_html("report.html"),
    lambda: report.to_json("report.json"),
    lambda: retrograde.Report.from_json("report.json"),
    flow.by_lag().to_dataframe,
    flow.by_lag().plot,
    lambda: __import__("retrograde.integrations.lightning"),
    lambda: __import__("retrograde.integrations.keras"),
    retrograde.explore.serve,
):
    try:
        call()
    except retrograde.errors.MissingExtraError as error:
        print("said:", error)
from retrograde.cli import main
main()
"""
).replace("import torch, retrograde", "import torch, retrograde, retrograde.explore")

WITHOUT_DOCSTRINGS = (
    PASS
    + """
from unittest import mock
from retrograde.cli import main
from retrograde.diagnosis import RULES, explain
assert retrograde.record.__doc__ is None
print(*map(explain, RULES), report, sep="")
for arguments in ["--help"], ["diagnose", "--help"]:
    with mock.patch("sys.argv", ["retrograde", *arguments]):
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 0
"""
)


def run(code, *options, folder=None):
    """A program in a process of its own: its exit code, what it printed, and its complaints."""
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_without_extras_the_core_works_and_the_rest_says_what_to_install(tmp_path):
    code, printed, complaints = run(WITHOUT_EXTRAS, folder=tmp_path)
    said = [line.removeprefix("said: ") for line in printed.splitlines() if "said: " in line]
    missing = "which is not installed; install it with pip install"
    assert said == [
        f"a chart needs altair, {missing} 'retrograde[report]'",
        f"a chart needs altair, {missing} 'retrograde[report]'",
        f"a page needs jinja2, {missing} 'retrograde[report]'",
        f"a report as JSON needs pydantic, {missing} 'retrograde[report]'",
        f"a report as JSON needs pydantic, {missing} 'retrograde[report]'",
        f"a table needs pandas, {missing} 'retrograde[dataframe]'",
        f"a plot needs matplotlib, {missing} 'retrograde[plot]'",
        f"retrograde.integrations.lightning needs lightning, {missing} 'retrograde[lightning]' "
        "(or pytorch-lightning)",
        f"retrograde.integrations.keras needs keras, {missing} 'retrograde[keras]'",
        f"the lecture needs altair, {missing} 'retrograde[explore]'",
    ]
    assert "vanishing" in printed and "residual" in printed
    assert complaints == f"error: the command line needs typer, {missing} 'retrograde[cli]'\n"
    assert code == 2


def test_every_extra_that_a_message_names_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r'optional\("[^"]+", "([^"]+)"\)', path.read_text())
    }
    assert {"report", "cli", "demo"} <= named <= set(extras)


def test_a_missing_module_of_the_package_itself_is_a_fault():
    with pytest.raises(ModuleNotFoundError) as caught, optional("a chart", "report"):
        import retrograde.nowhere  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def test_without_docstrings_the_program_prints_the_same(tmp_path):
    """`python -OO` removes them, and assertions; both runs are compared word by word."""
    program = tmp_path / "program.py"
    program.write_text(WITHOUT_DOCSTRINGS.replace("assert retrograde.record.__doc__ is None", ""))
    done = processes.run(program)
    with_them = done.returncode, done.stdout, done.stderr
    without = run(WITHOUT_DOCSTRINGS, "-OO")
    assert with_them == without and without[0] == 0, without[2]
    assert "".join(map(explain, RULES)) in without[1]
    for words in ("scalar loss", "findings at or above", "Train two small forecasters"):
        assert words in " ".join(without[1].split())
