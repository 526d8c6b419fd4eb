"""See where backward passes start: torch.autograd.backward is wrapped while a block records.

torch has no hook for that. The function is put back when the last such block ends.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Root = Tensor | GradientEdge

Roots = list[tuple[Root, Tensor]]
"""The tensors at which a backward pass starts, and the gradients that it starts with."""

Listener = Callable[[Roots], Callable[[], None]]
"""Told of a backward pass before it starts, by its roots; what it returns is called at its end."""

_listeners: list[Listener] = []
_wrapper: Callable[..., None] | None = None
_lock = threading.Lock()


@contextmanager
def on_backward(listener: Listener) -> Iterator[None]:
    """Call the listener at every torch.autograd.backward, and so at every Tensor.backward."""
    with _lock:
        if not _listeners:
            _wrap_backward()
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)
            if not _listeners:
                _unwrap_backward()


def _wrap_backward() -> None:
    global _wrapper
    original = torch.autograd.backward

    @wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
        each, given = _tuple(tensors), _tuple(grad_tensors)
        given = given or (None,) * len(each)
        roots = [
            (root, _ones(root) if gradient is None else gradient)
            for root, gradient in zip(each, given, strict=False)
        ]
        current = tuple(_listeners) if backward is _wrapper else ()
        done = [listener(roots) for listener in current]
        try:
            original(tensors, grad_tensors, *args, **kwargs)
        finally:
            for finish in done:
                finish()

    torch.autograd.backward = _wrapper = backward


def _unwrap_backward() -> None:
    """Put torch's function back. If ours has been wrapped since, it stays and calls it."""
    global _wrapper
    if torch.autograd.backward is _wrapper:
        torch.autograd.backward = torch.autograd.backward.__wrapped__  # type: ignore[attr-defined]
    _wrapper = None


def _ones(root: Root) -> Tensor:
    return torch.ones_like(root) if isinstance(root, Tensor) else torch.ones(())


def _tuple(tensors: Any) -> tuple[Any, ...]:
    if tensors is None:
        return ()
    return (tensors,) if isinstance(tensors, Root) else tuple(tensors)
