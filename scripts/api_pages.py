"""A mkdocs hook: the pages of the reference, one for each package, with all of its public names.

The text is that of the docstrings, which mkdocstrings renders. A name stands on the page of the
package that exports it; the first page lists those at the top level. The pages exist only while the
documentation is built, so that none of them can be out of date.
"""

import ast
import importlib
import inspect
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File

PAGES = {
    "recording": ("retrograde.recording",),
    "monitor": ("retrograde.monitor",),
    "decomposition": ("retrograde.decomposition",),
    "spectra": ("retrograde.spectra",),
    "weights": ("retrograde.spectra.weights",),
    "diagnosis": ("retrograde.diagnosis",),
    "reports": ("retrograde.report",),
    "clipping": ("retrograde.clipping",),
    "modules": ("retrograde.nn",),
    "cells": ("retrograde.cells",),
    "lightning": ("retrograde.integrations.lightning",),
    "errors": ("retrograde.errors",),
}
"""By page: the modules whose public names it documents."""

INDEX = """# Reference

Every public name, with its meaning, shapes, errors and an example that runs. What stands at the top
level of the package:

| name | what it is |
|---|---|
"""


def public(module: ModuleType) -> list[str]:
    """The names that a module gives to its users: those it exports, or else those it defines."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def defined_in(module: ModuleType, name: str) -> str:
    """The dotted place where a name is defined, which is what mkdocstrings looks up."""
    value = getattr(module, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    tree = ast.parse(inspect.getsource(module))
    sources = [
        node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names)
    ]
    return (
        defined_in(importlib.import_module(sources[0]), name)
        if sources
        else (f"{module.__name__}.{name}")
    )


def names() -> dict[str, dict[str, tuple[str, object]]]:
    """By page and dotted definition: the name as a user imports it, and the object; each once."""
    seen: set[str] = set()
    found: dict[str, dict[str, tuple[str, object]]] = {}
    for page, modules in PAGES.items():
        found[page] = {}
        for module in map(importlib.import_module, modules):
            for name in public(module):
                place = defined_in(module, name)
                if place not in seen:
                    seen.add(place)
                    found[page][place] = (f"{module.__name__}.{name}", getattr(module, name))
    return found


def first_sentence(value: object) -> str:
    """What a docstring opens with."""
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def render() -> dict[str, str]:
    """The pages by file name."""
    found = names()
    page_of = {place: page for page, entries in found.items() for place in entries}
    pages = {}
    for page, modules in PAGES.items():
        title = ", ".join(f"`{module}`" for module in modules)
        about = "\n\n".join(first_sentence(importlib.import_module(m)) for m in modules)
        entries = "\n".join(f"\n::: {place}" for place in found[page])
        pages[f"{page}.md"] = f"# {title}\n\n{about}\n{entries}\n"
    top = importlib.import_module("retrograde")
    rows = ""
    for name in public(top):
        place = defined_in(top, name)
        rows += (
            f"| [`{name}`]({page_of[place]}.md#{place}) | {first_sentence(getattr(top, name))} |\n"
        )
    return {"index.md": INDEX + rows, **pages}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """mkdocs calls this with all files of the documentation."""
    for name, text in render().items():
        files.append(File.generated(config, f"api/{name}", content=text))
    return files
