"""A copy or a file of a recorded module is that of a module without our hooks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)
"""Where torch keeps the hooks of a module, under the same numbers in each."""


@contextmanager
def left_out_of_copies(module: nn.Module) -> Iterator[None]:
    """In the block, a copy or a file of the module is that of one without our hooks.

    A class that copies itself its own way, as that of a parametrized layer does, is left alone: its
    copies have hooks that do nothing.
    """
    attributes = vars(module)
    if "__getstate__" in attributes or hasattr(type(module), "__deepcopy__"):
        yield
        return

    def state() -> Any:
        own = attributes.pop("__getstate__")
        try:
            found = module.__getstate__()  # type: ignore[no-untyped-call]
            return _without_ours(found) if isinstance(found, dict) else found
        finally:
            attributes["__getstate__"] = own

    attributes["__getstate__"] = state  # copy and pickle ask the instance, not the class
    try:
        yield
    finally:
        del attributes["__getstate__"]


def _without_ours(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module without the hooks of this package."""
    hooks = {name: state[name] for name in _HOOKS if name in state}
    ours = {n for of in hooks.values() for n, hook in of.items() if isinstance(hook, Hook)}
    left = {
        name: type(of)((n, hook) for n, hook in of.items() if n not in ours)
        for name, of in hooks.items()
    }
    return {**state, **left}


class Hook:
    """A hook on a module; a copy of it does nothing."""

    def __init__(self, look: Callable[..., None]):
        self._look = partial(_untraced(), look)

    def __call__(self, *args: Any) -> None:
        self._look(*args)

    def __reduce__(self) -> tuple[type["Hook"], tuple[Callable[..., None]]]:
        return Hook, (_nothing,)


def _nothing(*_: Any) -> None:
    """What a hook on a copy does."""


def _call(hook: Callable[..., None], *args: Any) -> None:
    hook(*args)


def _untraced() -> Callable[..., None]:
    """Calls a hook that torch.compile must not trace. Asking torch about it would load it."""
    return _disabled() if "torch._dynamo" in sys.modules else _call


@cache
def _disabled() -> Callable[..., None]:
    """Made once, since making it takes longer than the hook itself."""
    return torch.compiler.disable(_call)  # type: ignore[no-untyped-call, no-any-return]
