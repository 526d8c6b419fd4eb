"""Looking at the calls of a layer where they are computed: in the forward of its class.

For the block, that forward is wrapped. This sees a call with what the layer itself was given and
returned, whatever hooks stand around it, also where `layer.forward(x)` is called directly or where
a subclass packs or scales its input before it calls the forward of the class above. Nothing changes
for modules that nobody watches, and a copy of a module is another module.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Before = Callable[[nn.Module, Any], None]
After = Callable[[nn.Module, Any, Any, Any], None]
Forward = Callable[..., Any]

_watched: dict[type[nn.Module], dict[int, list[tuple[Before, After]]]] = {}
_wrapped: dict[type[nn.Module], tuple[Forward, Forward]] = {}
_lock = threading.Lock()


def is_own(forward: Any) -> bool:
    """Whether a forward is that of one of torch's layers, or of ours."""
    return bool(forward.__module__.startswith(("torch.nn.modules", "retrograde.nn")))


def computing(module: nn.Module) -> type[nn.Module]:
    """The class whose forward is that of the recurrent layer that a module is."""
    return next(kind for kind in _with_forward(module) if is_own(kind.forward))


def outermost(module: nn.Module) -> type[nn.Module]:
    """The class whose forward runs when a module is called."""
    return next(_with_forward(module))


def _with_forward(module: nn.Module) -> Iterator[type[nn.Module]]:
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    return (kind for kind in kinds if "forward" in vars(kind))


@contextmanager
def looking_at(
    module: nn.Module, kind: type[nn.Module], before: Before, after: After
) -> Iterator[None]:
    """Have the calls of a class's forward with this module looked at.

    As by a forward pre-hook and a forward hook that is always called; with None for what was
    returned if the call fails.
    """
    entry = (before, after)
    with _lock:
        if kind not in _watched:
            _watched[kind] = {}
            _wrap(kind)
        _watched[kind].setdefault(id(module), []).append(entry)
    try:
        yield
    finally:
        with _lock:
            looking = _watched[kind][id(module)]
            looking[:] = [other for other in looking if other is not entry]
            if not looking:
                del _watched[kind][id(module)]
            if not _watched[kind]:
                del _watched[kind]
                _unwrap(kind)


def _wrap(kind: type[nn.Module]) -> None:
    original, watched = kind.forward, _watched[kind]

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        looking = tuple(watched.get(id(self), ()))
        if not looking:
            return original(self, *args, **kwargs)
        for before, _ in looking:
            before(self, args)
        returned = None
        try:
            returned = original(self, *args, **kwargs)
        finally:
            for _, after in looking:
                after(self, args, kwargs, returned)
        return returned

    ours: Forward = forward
    if "torch._dynamo" in sys.modules:  # asking torch whether it compiles would load that
        ours = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
    kind.forward = ours
    _wrapped[kind] = original, ours


def _unwrap(kind: type[nn.Module]) -> None:
    """Put the forward back. Where someone has wrapped ours since, it stays and looks at nothing."""
    original, ours = _wrapped.pop(kind)
    if kind.forward is ours:
        kind.forward = original
