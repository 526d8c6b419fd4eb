"""Run what torch.compile compiled as it was written while a block records.

In compiled code a loop over cells is one kernel, in which no call can be seen.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch

_lock = threading.Lock()
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
