"""The design shows in the layout: levels, light imports, and a public surface that is pinned."""

import ast
import subprocess
import sys
from pathlib import Path

import retrograde

SOURCE = Path(retrograde.__file__).parent
LEVELS = [  # a module imports only from its own level and the levels above it in this list
    {"errors", "_types", "_json", "_terminal", "_checks", "_files", "_optional"},
    {"cells", "charts", "clipping"},
    {"engine"},
    {"nn"},
    {"record"},
    {"decompose"},
    {"spectra"},
    {"diagnosis"},
    {"report"},
    {"monitor"},
    {"integrations"},
    {"data"},
    {"tasks"},
    {"demo"},
    {"cli", "__main__", "__init__"},
]


def level(module: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if module in names)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retrograde"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


def test_a_level_imports_only_from_the_levels_above_it():
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for name in imported(path):
            assert level(name) <= level(own), f"{path.name} ({own}) imports {name}"


def test_the_package_imports_nothing_heavy():
    """Charts, command line, integrations, examples and studies load when they are used."""
    heavy = {
        "altair",
        "vl_convert",
        "jinja2",
        "rich",
        "typer",
        "lightning",
        "pytorch_lightning",
        "jsonschema",
        "pydantic",
        "safetensors",
    }
    code = "import sys, retrograde; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert not heavy & {name.split(".")[0] for name in modules}
    apart = {"cli", "data", "demo", "integrations", "tasks"}
    assert not apart & {name.split(".")[1] for name in modules if name.startswith("retrograde.")}


def test_the_public_names_are_pinned():
    assert sorted(retrograde.__all__) == [
        "Flow",
        "Monitor",
        "Recorded",
        "Recording",
        "Report",
        "RetrogradeError",
        "Spectrum",
        "VoidDecompositionWarning",
        "cells",
        "clipping",
        "decompose",
        "diagnose",
        "load",
        "nn",
        "record",
        "record_cell",
        "save",
        "spectrum",
    ]
