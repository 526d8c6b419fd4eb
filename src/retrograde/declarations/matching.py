"""Which modules of a model are declared recurrent."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from retrograde import _checks
from retrograde.declarations import keras
from retrograde.declarations.declaration import Declaration
from retrograde.declarations.known import KNOWN
from retrograde.errors import ArgumentError

Declared = Mapping[str | type[nn.Module], Declaration]
"""Declarations by the name or the class of modules."""


def declared_in(modules: Mapping[str, nn.Module], cells: Declared | None) -> dict[str, Declaration]:
    """The declarations of the modules of a model, by their paths in it.

    A module that is named comes before its class, and both before what is known of the package that
    it comes from.

    Raises:
        ArgumentError: for a declaration that matches nothing, with the names closest to it.
    """
    cells = checked(cells)
    known = {path: known_of(module) for path, module in modules.items()}
    found = {path: each for path, each in known.items() if each is not None}
    for key, declaration in sorted(cells.items(), key=lambda item: isinstance(item[0], str)):
        paths = [path for path, module in modules.items() if _is(key, path, module)]
        if not paths:
            raise ArgumentError(_nothing(key, modules))
        found |= dict.fromkeys(paths, declaration)
    return {
        path: declaration
        for path, declaration in found.items()
        if not any(path.startswith(f"{outer}.") or not outer for outer in found if outer != path)
    }


def known_of(module: nn.Module) -> Declaration | None:
    """The declaration of a class of another package, or of one that it inherits from."""
    for one in type(module).__mro__:
        if one.__module__.partition(".")[0] in PACKAGES:
            name = f"{one.__module__}.{one.__qualname__}"
            if name == keras.RNN:
                return keras.declaration_of(module)
            if name in KNOWN:
                return KNOWN[name]
    return None


PACKAGES = frozenset(name.partition(".")[0] for name in (*KNOWN, keras.RNN))
"""The packages of which something is known."""


def checked(cells: object) -> Declared:
    """The declarations, if they are any.

    Raises:
        ArgumentError: for anything else.
    """
    if cells is None:
        return {}
    words = "from names or classes of modules to retrograde.Declaration values"
    for key, value in _checks.mapping("cells", cells, words).items():
        if not isinstance(value, Declaration) or not isinstance(key, str | type):
            raise ArgumentError(
                f"cells must be a mapping {words}; got {_checks.shown(key)}: {_checks.shown(value)}"
            )
    return cells  # type: ignore[return-value]


def _is(key: Any, path: str, module: nn.Module) -> bool:
    if isinstance(key, str):
        return path == key
    return isinstance(module, key)


def _nothing(key: Any, modules: Mapping[str, nn.Module]) -> str:
    """Why a declaration matches nothing."""
    if isinstance(key, str):
        names = [path for path in modules if path]
        return (
            f"cells names {key!r}, but the model has no such module"
            f"{_checks.closest(key, names)}; it has: {_checks.listed(names) or 'no other module'}"
        )
    kinds = {type(module).__name__: None for module in modules.values()}
    return (
        f"cells declares {key.__module__}.{key.__qualname__}, but no module of the model is one"
        f"{_checks.closest(key.__name__, kinds)}; it has: {_checks.listed(kinds)}"
    )
