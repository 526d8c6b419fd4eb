"""The pages of the reference, one for each package, with all of its public names.

Sphinx writes them while it builds the documentation (docs/conf.py), so that none of them can be out
of date; the text is that of the docstrings. A name stands on the page of the package that exports
it; the first page lists those at the top level.
"""

import ast
import importlib
import inspect
from types import ModuleType

PAGES = {
    "recording": ("retrograde.recording",),
    "monitor": ("retrograde.monitor",),
    "decomposition": ("retrograde.decomposition",),
    "spectra": ("retrograde.spectra",),
    "weights": ("retrograde.spectra.weights",),
    "horizon": ("retrograde.horizons", "retrograde.truncation"),
    "audits": ("retrograde.audits",),
    "declarations": ("retrograde.declarations",),
    "diagnosis": ("retrograde.diagnosis",),
    "reports": ("retrograde.report",),
    "clipping": ("retrograde.clipping",),
    "modules": ("retrograde.nn",),
    "cells": ("retrograde.cells",),
    "compiled": ("retrograde.compiled",),
    "tasks": ("retrograde.tasks",),
    "studies": ("retrograde.studies",),
    "lightning": ("retrograde.integrations.lightning",),
    "errors": ("retrograde.errors",),
}
"""By page: the modules whose public names it documents."""

INDEX = """The Python API
==============

Every public name, with its meaning, shapes, errors and an example that runs. What stands at the top
level of the package:

.. list-table::
   :widths: 30 70

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
    """The dotted place where a name is defined, which no two names share."""
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
    """By page and dotted definition: the name as a user imports it, and the object; each once.

    Raises:
        SystemExit: if a name at the top level of the package stands on no page.
    """
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
    top = importlib.import_module("retrograde")
    if missing := [name for name in public(top) if defined_in(top, name) not in seen]:
        raise SystemExit(f"PAGES in scripts/api_pages.py has no module that exports {missing}")
    return found


def first_sentence(value: object) -> str:
    """What a docstring opens with."""
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")


def entry(place: str, name: str, value: object) -> str:
    """What autodoc is asked to show."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return f"\n.. auto{'class' if inspect.isclass(value) else 'function'}:: {name}\n"
    return f"\n.. autodata:: {place}\n   :no-value:\n"


def render() -> dict[str, str]:
    """The pages by file name."""
    found = names()
    full = {
        place: place if not (inspect.isclass(value) or inspect.isroutine(value)) else name
        for entries in found.values()
        for place, (name, value) in entries.items()
    }
    pages = {}
    for page, modules in PAGES.items():
        title = ", ".join(f"``{module}``" for module in modules)
        about = "\n\n".join(first_sentence(importlib.import_module(m)) for m in modules)
        entries = "".join(entry(place, *named) for place, named in found[page].items())
        pages[f"{page}.rst"] = f"{title}\n{'=' * len(title)}\n\n{about}\n{entries}"
    top = importlib.import_module("retrograde")
    rows = "".join(
        f"   * - :py:obj:`~{full[defined_in(top, name)]}`\n"
        f"     - {first_sentence(getattr(top, name))}\n"
        for name in public(top)
    )
    contents = "".join(f"   {page}\n" for page in PAGES)
    return {"index.rst": INDEX + rows + f"\n.. toctree::\n   :maxdepth: 1\n\n{contents}", **pages}
