"""Does what is published work where nothing else is installed?

    python scripts/installation.py core      the wheel with core dependencies, then with `cli`
    python scripts/installation.py oldest    the oldest versions that pyproject.toml allows

Each builds the wheel and makes an environment of its own in a temporary folder, which it removes.
`core` installs the versions of constraints.txt, uses the package as a program and as a library, and
lets `pip check` look for dependencies that do not fit. `oldest` installs the lower bound of every
core dependency and runs the tests of the core there. Of torch 2.6.0 the registry has only the build
with CUDA for Linux, so that `oldest` downloads 3 GB; the tests run on the CPU.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

CORE = """
import importlib.metadata, tempfile, torch, retrograde

extras = ("altair", "lightning", "marimo", "matplotlib", "pandas", "pydantic", "scipy", "typer")
for name in extras:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    raise SystemExit(f"{name} is installed; a core dependency needs it now?")

torch.manual_seed(0)
model, x = torch.nn.LSTM(3, 8), torch.randn(40, 4, 3)
loss_fn = lambda model, x: model(x)[0][-1].square().mean()
with retrograde.record(model) as recording:
    loss_fn(model, x).backward()
flow = retrograde.decompose(recording)
assert flow.residual < 1e-5, flow.residual
with tempfile.TemporaryDirectory() as folder:
    retrograde.save(recording, f"{folder}/pass.safetensors")
    again = retrograde.decompose(retrograde.load(f"{folder}/pass.safetensors"))
assert again.reach == flow.reach
report = retrograde.diagnose(model, x, loss_fn, needs_lag=39, remedies="pass")
assert not report.ok and "vanishing" in str(report)
print(f"{retrograde.backend()} backend ({retrograde.backend().note})")
print(f"reach {flow.reach} of {flow.steps - 1} steps, residual {float(flow.residual):.0e}")
"""

MISSING = """
import importlib, torch, retrograde, retrograde.explore

model, x = torch.nn.LSTM(3, 8), torch.randn(40, 4, 3)
loss_fn = lambda model, x: model(x)[0][-1].square().mean()
monitor = retrograde.Monitor(model)
with monitor, retrograde.record(model) as recording:
    loss_fn(model, x).backward()
flow = retrograde.decompose(recording)
report = retrograde.diagnose(model, x, loss_fn, remedies="pass")
lightning = lambda: importlib.import_module("retrograde.integrations.lightning")
digits = importlib.import_module("retrograde.tasks").SequentialDigits()
asked = {
    "report": [
        flow.chart, flow.by_lag().chart, monitor.history.chart,
        lambda: report.to_html("page.html"), lambda: report.to_json("report.json"),
    ],
    "dataframe": [flow.by_lag().to_dataframe, monitor.history.to_dataframe],
    "plot": [flow.by_lag().plot],
    "lightning": [lightning],
    "keras": [lambda: importlib.import_module("retrograde.integrations.keras")],
    "explore": [retrograde.explore.serve],
    "study": [lambda: digits.draw(1, torch.Generator())],
}
for extra, calls in asked.items():
    for call in calls:
        try:
            call()
        except retrograde.errors.MissingExtraError as error:
            assert f"pip install 'retrograde[{extra}]'" in str(error), error
        else:
            raise SystemExit(f"something of the extra {extra} works without it")
print(*asked)
"""
"""What each extra is for, without it; `cli` and `demo` are asked for as commands."""

USER = """
import torch

def example():
    torch.manual_seed(0)
    loss_fn = lambda model, x: model(x)[0][-1].square().mean()
    return torch.nn.LSTM(3, 8), torch.randn(40, 4, 3), loss_fn
"""

TESTS = (
    "cells/test_cells compiled/test_compiled decomposition/test_non_finite "
    "decomposition/test_routes nn/test_nn recording/test_forms recording/test_record "
    "recording/test_storage"
)
"""Of the core, without charts and pages: those that touch most of torch."""


def run(*command: object, where: Path, expected: int = 0, **more: str) -> str:
    """What a program prints, its complaints included.

    Raises:
        SystemExit: if it ends with another exit code.
    """
    words = [str(word) for word in command]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        words,
        cwd=where,
        env={**environment, "OMP_NUM_THREADS": "1", **more},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(words)[:300]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def installed(where: Path, *requirements: object) -> Path:
    """The folder with the programs of a new environment that holds these packages."""
    run(sys.executable, "-m", "venv", where / "venv", where=where)
    programs = where / "venv" / "bin"
    install(programs, where, *requirements)
    return programs


def install(programs: Path, where: Path, *requirements: object) -> None:
    """Install into an environment, and have pip check that everything fits together."""
    pip = programs / "python", "-m", "pip", "--disable-pip-version-check"
    run(*pip, "install", "--quiet", *requirements, where=where)
    run(*pip, "check", where=where)


def wheel(where: Path, **environment: str) -> Path:
    """The wheel, built from the sources alone: what was compiled before would be taken again."""
    source = where / "source"
    built = ".*", "build", "dist", "site", "*.so", "*.egg-info", "__pycache__"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*built))
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"
    run(*pip, "--no-deps", "--wheel-dir", where, source, where=where, **environment)
    (built,) = where.glob("*.whl")
    return built


def core(where: Path) -> str:
    """The core alone, then the command line."""
    built = wheel(where)
    without = wheel(where / "without", CC="false")
    compiler = shutil.which(os.environ.get("CC", "cc")) is not None
    for one, there in ((built, compiler), (without, False)):
        with zipfile.ZipFile(one) as files:
            assert ("retrograde/compiled/_recurrence.so" in files.namelist()) == there, one
    programs = installed(where, "--constraint", CONSTRAINTS, built)
    said = run(programs / "python", "-W", "error", "-c", CORE, where=where)
    first, second, *_ = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert "the gradient reaches" in run(programs / "python", "-c", first, where=where)
    assert "retrograde.nn.initialise" in run(programs / "python", "-c", second, where=where)
    asked = run(programs / "python", "-c", MISSING, where=where).split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = set(project["optional-dependencies"]) - {"all", "integrations", "docs", "dev"}
    assert ours == {*asked, "cli", "demo"}, "an extra is not looked at"
    refused = run(programs / "retrograde", "--version", where=where, expected=2)
    assert "pip install 'retrograde[cli]'" in refused, refused

    install(programs, where, "--constraint", CONSTRAINTS, f"{built}[cli]")
    retrograde = programs / "retrograde"
    assert run(retrograde, "--version", where=where).startswith("retrograde ")
    (where / "user.py").write_text(USER)
    files = "--html", where / "page.html", "--json", where / "report.json"
    run(
        retrograde,
        "diagnose",
        "user.py:example",
        "--needs-lag",
        39,
        *files,
        where=where,
        expected=1,
    )
    run(retrograde, "compare", "report.json", "report.json", "--html", "two.html", where=where)
    needs = run(retrograde, "demo", "--quick", where=where, expected=2)
    assert "pip install 'retrograde[demo]'" in needs, needs
    needs = run(retrograde, "explore", "--no-browser", where=where, expected=2)
    assert "pip install 'retrograde[explore]'" in needs, needs
    return said


def oldest(where: Path) -> str:
    """The tests of the core with the lower bound of each of its dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [requirement.replace(">=", "==") for requirement in project["dependencies"]]
    tools = [
        requirement
        for requirement in project["optional-dependencies"]["dev"]
        if re.match("beartype|hypothesis|pytest", requirement)
    ]
    built = wheel(where)
    programs = installed(where, built, *bounds, *tools)
    tests = [ROOT / "tests" / f"{name}.py" for name in TESTS.split()]
    # The tests are those of the checkout, the package is the one that was installed.
    options = ("-q", "-p", "no:cacheprovider", "--numprocesses", 2)
    said = run(programs / "python", "-m", "pytest", *options, *tests, where=ROOT)
    return f"{', '.join(bounds)}\n{said.splitlines()[-1]}"


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="retrograde-") as folder:
            print({"core": core, "oldest": oldest}[asked](Path(folder)).strip())
        print(f"{asked}: {time.perf_counter() - start:.0f} s", flush=True)
