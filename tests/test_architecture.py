"""The design shows in the layout: levels, light imports, and a public surface that is pinned."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

import retrograde

SOURCE = Path(retrograde.__file__).parent
LEVELS = [  # a module imports only from its own level and the levels above it in this list
    {"errors", "_types", "_json", "_terminal", "_checks", "_files", "_optional", "_words"},
    {"cells", "charts", "clipping", "_notebook", "plots"},
    {"engine", "compiled"},
    {"nn"},
    {"declarations"},
    {"recording"},
    {"truncation"},
    {"decomposition"},
    {"spectra"},
    {"diagnosis"},
    {"horizons"},
    {"report", "audits"},
    {"monitor"},
    {"integrations"},
    {"data"},
    {"tasks"},
    {"demo", "explore"},
    {"studies"},
    {"cli", "__main__", "__init__"},
]


def level(module: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if module in names)


def module_of(path: Path) -> str:
    *parts, last = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts if last == "__init__" else [*parts, last])


MODULES = {module_of(path): path for path in SOURCE.rglob("*.py")}


@pytest.fixture(scope="module", name="trees")
def _trees() -> dict[str, ast.AST]:
    """Every module, parsed."""
    return {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retrograde"):
            parts = (node.module or "").split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


def test_a_level_imports_only_from_the_levels_above_it(trees):
    for module, path in MODULES.items():
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for name in imported(trees[module]):
            assert level(name) <= level(own), f"{path.name} ({own}) imports {name}"


def test_contributing_names_every_level_in_order():
    """The rows of the table are the levels: what stands in one row shares a level."""
    lines = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text().splitlines()
    first = lines.index("| level | holds |") + 2
    cells = [line.split("|")[1] for line in takewhile(bool, lines[first:])]
    named = [
        {name.removesuffix(".py") for name in re.findall(r"`(\w+\.?\w*)/?`", c)} for c in cells
    ]
    assert named == LEVELS


def imports_of(tree: ast.AST) -> set[str]:
    """The modules that a module, or a part of one, imports; of our own those where a name lives."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found


def cycle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, none if there are none."""
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other(trees):
    """Imports inside functions, and those for type checkers alone, count like any other."""
    imports = {name: imports_of(tree) for name, tree in trees.items()}
    imports = {name: found & set(MODULES) for name, found in imports.items()}
    assert cycle_in(imports) == []
    assert cycle_in(imports | {"retrograde.errors": {"retrograde.report"}})  # it would be found


def behind_functions(tree: ast.Module) -> tuple[set[str], set[str]]:
    """What functions import: in `with optional(...)`, and elsewhere."""
    behind: set[str] = set()
    bare: set[str] = set()

    def look(node: ast.AST, function: bool, optional: bool) -> None:
        if isinstance(node, ast.With):
            called = [ast.unparse(item.context_expr) for item in node.items]
            optional |= any(words.startswith("optional(") for words in called)
        function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if function and isinstance(node, ast.Import | ast.ImportFrom):
            (behind if optional else bare).update(imports_of(node))
        for child in ast.iter_child_nodes(node):
            look(child, function, optional)

    look(tree, False, False)
    return behind, bare


def test_functions_import_optional_dependencies_only(trees):
    """Our own modules stand at the top of a file, unless the one imported needs an extra itself."""
    late, delayed = {}, {}
    for name, tree in trees.items():
        behind, bare = behind_functions(tree)
        late[name] = {module for module in bare if module.split(".")[0] not in HEAVY}
        delayed[name] = {module for module in behind if module in MODULES}
    assert {name: found for name, found in late.items() if found} == {}
    assert {name: found for name, found in delayed.items() if found} == {
        "retrograde.cli": {"retrograde.cli.commands"},  # typer
        "retrograde.cli.commands": {"retrograde.demo"},  # lightning
    }


HEAVY = {
    *("altair", "vl_convert", "jinja2", "rich", "typer", "lightning", "pytorch_lightning"),
    *("jsonschema", "pydantic", "safetensors", "pandas", "PIL", "marimo"),
}
"""Packages of extras, and those of the core that take long to load."""


def test_the_package_imports_nothing_heavy():
    """Charts, command line, integrations, examples and studies load when they are used."""
    code = (
        "import sys, retrograde; print(*sys.modules);import retrograde.studies; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare, with_studies = done.stdout.splitlines()
    assert not HEAVY & {name.split(".")[0] for name in with_studies.split()}
    modules = bare.split()
    assert not HEAVY & {name.split(".")[0] for name in modules}
    apart = {"cli", "data", "demo", "explore", "integrations", "tasks"}
    assert not apart & {name.split(".")[1] for name in modules if name.startswith("retrograde.")}


def test_the_public_names_are_pinned():
    assert sorted(retrograde.__all__) == [
        "Audit",
        "Declaration",
        "Flow",
        "Horizon",
        "Monitor",
        "Recorded",
        "Recording",
        "Report",
        "RetrogradeError",
        "Spectrum",
        "VoidDecompositionWarning",
        "audit",
        "backend",
        "cells",
        "clipping",
        "declarations",
        "decompose",
        "diagnose",
        "horizon",
        "load",
        "nn",
        "record",
        "record_cell",
        "save",
        "spectrum",
    ]
