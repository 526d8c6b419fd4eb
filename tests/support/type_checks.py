"""The type checks of the tests: jaxtyping with beartype, made where one is first asked for.

The import hook of jaxtyping decorates every function, one that is defined inside another at every
call of that other, which costs several times what most of them do. Of some ten thousand functions
and methods most are never called with checks on. Here all of that waits for the first call that is
to be checked, and the check of an inner function is compiled once; one that a test makes with
checks off stays as it is. (jaxtyping hands over no code, only a signature, so that the checks of
two functions with the same name and annotations are the same.)

What a check says follows from types and shapes. So it is made once for all of what is given and
returned that are the same, which spares a recursion the checks of all its steps but one.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator
from operator import attrgetter
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import beartype
from jaxtyping import _decorator
from torch import Tensor

_inner: dict[Hashable, Callable[..., Any]] = {}
_passed: dict[Hashable, set[Hashable]] = {}
_at_once = _decorator.jaxtyped
_on: bool | None = None
"""None until the first test: what is made while modules are imported is there for all of them."""


def _late(fn: Any = _decorator._sentinel, *, typechecker: Any = _decorator._sentinel) -> Any:
    """`jaxtyping.jaxtyped`, done at the first call that is to be checked."""
    if fn is _decorator._sentinel:
        return functools.partial(_late, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return _at_once(fn, typechecker=typechecker)  # which comes back for the functions in it
    if _on is False and "<locals>" in fn.__qualname__:
        return fn  # made anew at every call of the function around it
    checking: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not _on:
            return fn(*args, **kwargs)
        if not checking:
            checking.append(_checking(fn, typechecker))
        return checking[0](*args, **kwargs)

    return wrapped


def _checking(fn: Callable[..., Any], typechecker: Any) -> Callable[..., Any]:
    """The function, checked where what is given or returned is of a kind not seen before."""
    within = "<locals>" in fn.__qualname__
    passed = _passed.setdefault(_signature_of(fn), set()) if within else set[Hashable]()
    asked: list[Callable[..., Any]] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        return asked.pop()(*args, **kwargs)

    # Names in annotations are looked up where the function is defined.
    there = FunctionType(call.__code__, fn.__globals__, closure=call.__closure__)
    full = _at_once(functools.wraps(fn)(there), typechecker=typechecker)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        given = _kind(args), _kind(kwargs)
        if given in passed:
            returned = fn(*args, **kwargs)
            if (given, _kind(returned)) in passed:
                return returned
            asked.append(lambda *_, **__: returned)
            full(*args, **kwargs)
        else:
            asked.append(fn)
            try:
                returned = full(*args, **kwargs)
            finally:
                asked.clear()  # where it was not called
        passed.update((given, (given, _kind(returned))))
        return returned

    return wrapped


def _kind(value: Any) -> Hashable:
    """All of a value that a check of it can look at."""
    kind = type(value)
    inside = _INSIDE[kind]
    return kind if inside is None else (kind, *inside(value))


class _Inside(dict[type, Callable[[Any], Iterable[Hashable]] | None]):
    """What a check looks at in a value, by the type of the value; None: at nothing."""

    def __missing__(self, kind: type) -> Callable[[Any], Iterable[Hashable]] | None:
        self[kind] = None
        if issubclass(kind, Tensor):
            self[kind] = attrgetter("dtype", "shape")
        elif kind is str:  # of some a Literal says which they may be
            self[kind] = lambda value: (value,)
        elif issubclass(kind, tuple | list):
            self[kind] = functools.partial(map, _kind)
        elif kind is dict:
            self[kind] = lambda value: map(_kind, value.items())
        return self[kind]


_INSIDE = _Inside()


def _signature_of(fn: Callable[..., Any]) -> Hashable:
    """What two functions have in common whose checks are the same."""
    annotations = tuple((name, repr(given)) for name, given in fn.__annotations__.items())
    return fn.__module__, fn.__qualname__, annotations


_decorator.jaxtyped = jaxtyping.jaxtyped = _late


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does nothing but check its arguments (and result) by their annotations."""
    if "<locals>" not in signature.__qualname__:
        return beartype(signature)
    key = _signature_of(signature)
    if key not in _inner:
        _inner[key] = beartype(signature)
    return _inner[key]


@contextlib.contextmanager
def checks(on: bool) -> Iterator[None]:
    """With the tests' own type checks, or without, as a user calls the package."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def unchecked() -> contextlib.AbstractContextManager[None]:
    """For what runs very many passes."""
    return checks(False)
