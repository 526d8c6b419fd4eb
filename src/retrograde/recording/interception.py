"""What of torch is replaced while a block records, and put back when the last such block ends.

- The forward of a layer's class is wrapped. This sees a call with what the layer itself was given
  and returned, whatever hooks stand around it, also where `layer.forward(x)` is called directly or
  where a subclass packs or scales its input before it calls super().forward(). Nothing changes for
  modules that are not recorded, and a copy of a module is another module.
- torch.autograd.backward is wrapped, since torch has no hook for the start of a backward pass.
- What torch.compile compiled runs as it was written: in compiled code a loop over cells is one
  kernel, in which no call can be seen.
- A copy or a file of a recorded module is that of a module without our hooks.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

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


Root = Tensor | GradientEdge

Roots = list[tuple[Root, Tensor]]
"""The tensors at which a backward pass starts, and the gradients that it starts with."""

Listener = Callable[[Roots], Callable[[], None]]
"""Told of a backward pass before it starts, by its roots; what it returns is called at its end."""

_listeners: list[Listener] = []
_wrapper: Callable[..., None] | None = None


@contextmanager
def on_backward(listener: Listener) -> Iterator[None]:
    """Call the listener at every torch.autograd.backward, and so at every Tensor.backward.

    torch has no hook for this, so the function is replaced while there is a listener.
    """
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


_blocks = 0
_eager = False
_undo: Callable[[], None] | None = None
"""Undoes, at the end of the last block, what the first that needed it began."""


@contextmanager
def uncompiled(needed: bool) -> Iterator[None]:
    """Run compiled code as it was written, in all threads, until the last such block ends.

    Args:
        needed: also what was compiled before; else only what is compiled inside the block, if that
            is the first use of torch.compile.
    """
    global _blocks, _eager, _undo
    loaded = "torch._dynamo" in sys.modules
    if loaded and not needed:
        yield
        return
    with _lock:
        _blocks += 1
        if loaded and not _eager:
            _force_eager()
        elif _undo is None:
            _wait_for_compile()
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks and _undo is not None:
                _undo()
                _eager, _undo = False, None


def _force_eager() -> None:
    """Tell torch to run the code as it is written."""
    global _eager, _undo
    if _undo is not None:  # only waiting so far
        _undo()
    _eager = True
    stance = torch.compiler.set_stance("force_eager")
    _undo = partial(stance.__exit__, None, None, None)


def _wait_for_compile() -> None:
    """Force eager when torch.compile is first used; doing so now would take a second to load."""
    global _undo
    original = torch.compile

    @wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        with _lock:
            if _blocks and torch.compile is compile:
                _force_eager()
        return compiled

    def put_back() -> None:
        if torch.compile is compile:
            torch.compile = original

    torch.compile = compile
    _undo = put_back


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
