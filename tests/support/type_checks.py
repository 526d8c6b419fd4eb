"""The type checks of the tests: jaxtyping with beartype, made where one is first asked for.

The import hook of jaxtyping decorates every function, one that is defined inside another at every
call of that other, which costs several times what most of them do. Of some ten thousand functions
and methods most are never called with checks on. Here all of that waits for the first call that is
to be checked, and the check of an inner function is compiled once. (jaxtyping hands over no code,
only a signature, so that the checks of two functions with the same name and annotations are the
same.)
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import beartype
from jaxtyping import _decorator

_inner: dict[object, Callable[..., Any]] = {}
_at_once = _decorator.jaxtyped


def _late(fn: Any = _decorator._sentinel, *, typechecker: Any = _decorator._sentinel) -> Any:
    """`jaxtyping.jaxtyped`, done at the first call that is to be checked."""
    if not inspect.isfunction(fn):
        return _at_once(fn, typechecker=typechecker)  # which comes back for the functions in it
    decorated: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return fn(*args, **kwargs)
        if not decorated:
            decorated.append(_at_once(fn, typechecker=typechecker))
        return decorated[0](*args, **kwargs)

    return wrapped


_decorator.jaxtyped = jaxtyping.jaxtyped = _late


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does nothing but check its arguments (and result) by their annotations."""
    if "<locals>" not in signature.__qualname__:
        return beartype(signature)
    annotations = tuple((n, repr(a)) for n, a in signature.__annotations__.items())
    key = (signature.__module__, signature.__qualname__, annotations)
    if key not in _inner:
        _inner[key] = beartype(signature)
    return _inner[key]


@contextlib.contextmanager
def checks(on: bool) -> Iterator[None]:
    """With the tests' own type checks, or without, as a user calls the package."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", not on)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def unchecked() -> contextlib.AbstractContextManager[None]:
    """For what runs very many passes."""
    return checks(False)
