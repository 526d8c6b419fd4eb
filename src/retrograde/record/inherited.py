"""Subclasses of torch's layers with a forward of their own: what they hand to the layer they are.

Such a forward may take other arguments, pack its input or scale it, before it calls that of the
class above it. Hooks on the module see the outer call alone, so the inner one is looked at: for the
block, the forward of torch's class is wrapped. Nothing changes for modules that nobody watches.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Before = Callable[[nn.Module, Any], None]
After = Callable[[nn.Module, Any, Any, Any], None]

_watched: dict[type[nn.Module], list[tuple[nn.Module, Before, After]]] = {}
_lock = threading.Lock()


def is_own(forward: Any) -> bool:
    """Whether a forward is that of one of torch's layers, or of ours."""
    return bool(forward.__module__.startswith(("torch.nn.modules", "retrograde.nn")))


@contextmanager
def looking_inside(module: nn.Module, before: Before, after: After) -> Iterator[None]:
    """Have the layer's own forward looked at, as by a pre-hook and a hook that is always called."""
    kinds = (kind for kind in type(module).__mro__ if issubclass(kind, nn.Module))
    kind = next(kind for kind in kinds if "forward" in vars(kind) and is_own(kind.forward))
    entry = (module, before, after)
    with _lock:
        if kind not in _watched:
            _watched[kind] = []
            _wrap(kind)
        _watched[kind].append(entry)
    try:
        yield
    finally:
        with _lock:
            _watched[kind] = [other for other in _watched[kind] if other is not entry]
            if not _watched[kind]:
                del _watched[kind]
                kind.forward = kind.forward.__wrapped__  # type: ignore[attr-defined]


def _wrap(kind: type[nn.Module]) -> None:
    original = kind.forward

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        looking = [entry for entry in _watched.get(kind, ()) if entry[0] is self]
        for _, before, _ in looking:
            before(self, args)
        returned = None
        try:
            returned = original(self, *args, **kwargs)
        finally:
            for _, _, after in looking:
                after(self, args, kwargs, returned)
        return returned

    kind.forward = forward
