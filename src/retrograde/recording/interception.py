"""See the calls of a layer: the forward of its class is wrapped while a block records.

That shows what the layer itself was given and returned, whatever hooks stand around it, also where
`layer.forward(x)` is called directly or where a subclass packs or scales its input before it calls
super().forward(). Nothing changes for modules that are not recorded, and a copy of a module is
another module. The forward is put back when the last such block ends.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

Before = Callable[[nn.Module, Any], None]
After = Callable[[nn.Module, Any, Any, Any], None]
Forward = Callable[..., Any]

Method = tuple[type[nn.Module], str]
"""A class and the name of its method, "forward" but for a few."""

_watched: dict[Method, dict[int, list[tuple[Before, After]]]] = {}
_wrapped: dict[Method, tuple[Forward, Forward]] = {}
_lock = threading.Lock()


def is_own(forward: Any) -> bool:
    """Whether a forward is that of one of torch's layers, or of ours."""
    return bool(forward.__module__.startswith(("torch.nn.modules", "retrograde.nn")))


def computing(module: nn.Module) -> type[nn.Module]:
    """The class whose forward is that of the recurrent layer that a module is."""
    return next(kind for kind in _with_forward(module) if is_own(kind.forward))


def outermost(module: nn.Module, method: str = "forward") -> type[nn.Module]:
    """The class whose forward (or other method) runs when that of a module is called."""
    return next(_with_forward(module, method))


def _with_forward(module: nn.Module, method: str = "forward") -> Iterator[type[nn.Module]]:
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return (kind for kind in kinds if method in vars(kind))


@contextmanager
def observed(
    module: nn.Module,
    kind: type[nn.Module],
    before: Before,
    after: After,
    method: str = "forward",
) -> Iterator[None]:
    """Call `before` and `after` around every call of a class's forward with this module.

    Like a forward pre-hook and a forward hook that is always called; `after` is given None for what
    was returned if the call fails.
    """
    entry, key = (before, after), (kind, method)
    with _lock:
        if key not in _watched:
            _watched[key] = {}
            _wrap(key)
        _watched[key].setdefault(id(module), []).append(entry)
    try:
        yield
    finally:
        with _lock:
            observers = _watched[key][id(module)]
            observers[:] = [other for other in observers if other is not entry]
            if not observers:
                del _watched[key][id(module)]
            if not _watched[key]:
                del _watched[key]
                _unwrap(key)


def _wrap(key: Method) -> None:
    original, watched = getattr(*key), _watched[key]

    @wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        observers = tuple(watched.get(id(self), ()))
        if not observers:
            return original(self, *args, **kwargs)
        for before, _ in observers:
            before(self, args)
        returned = None
        try:
            returned = original(self, *args, **kwargs)
        finally:
            for _, after in observers:
                after(self, args, kwargs, returned)
        return returned

    ours: Forward = forward
    if "torch._dynamo" in sys.modules:  # asking torch whether it compiles would load that
        ours = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
    setattr(*key, ours)
    _wrapped[key] = original, ours


def _unwrap(key: Method) -> None:
    """Put the forward back. If ours has been wrapped since, it stays and calls the original."""
    original, ours = _wrapped.pop(key)
    if getattr(*key) is ours:
        setattr(*key, original)
