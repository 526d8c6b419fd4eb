"""The type checker of the tests: beartype, which compiles a check where it is first asked for.

Of some ten thousand functions and methods most are never called with checks on, and compiling all
of them would take seconds in each process of the tests. That of an inner function is compiled once.

The import hook of jaxtyping decorates every function, one that is defined inside another at every
call of that other. jaxtyping hands over no code, only a signature, so that the checks of two
functions with the same name and annotations are the same.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import beartype

_inner: dict[object, Callable[..., Any]] = {}


def checked(signature: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does nothing but check its arguments (and result) by their annotations."""
    made: list[Callable[..., Any]] = []

    def check(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(_made(signature))
        return made[0](*args, **kwargs)

    return check


def _made(signature: Callable[..., Any]) -> Callable[..., Any]:
    if "<locals>" not in signature.__qualname__:
        return beartype(signature)
    annotations = tuple((n, repr(a)) for n, a in signature.__annotations__.items())
    key = (signature.__module__, signature.__qualname__, annotations)
    if key not in _inner:
        _inner[key] = beartype(signature)
    return _inner[key]


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without the tests' own type checks, as a user calls the package (and twice as fast)."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
