"""Inside the block, what torch.compile compiled runs as it was written.

In compiled code a loop over cells is one kernel, in which no call can be seen. torch can be told to
run the code that it was compiled from; it is told so only if a layer needs it, or if torch.compile
is first used inside the block, with hooks of ours on the model.
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
_aside = False
_undo: Callable[[], None] | None = None
"""Ends what the first block that needed it began, at the end of the last one."""


@contextmanager
def uncompiled(needed: bool) -> Iterator[None]:
    """Run compiled code as it was written, in all threads, until the last such block ends.

    Args:
        needed: also what was compiled before; else only what is compiled inside the block, if that
            is the first use of torch.compile.
    """
    global _blocks, _aside, _undo
    loaded = "torch._dynamo" in sys.modules
    if loaded and not needed:
        yield
        return
    with _lock:
        _blocks += 1
        if loaded and not _aside:
            _stand_aside()
        elif _undo is None:
            _wait()
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks and _undo is not None:
                _undo()
                _aside, _undo = False, None


def _stand_aside() -> None:
    """Tell torch to run the code as it is written."""
    global _aside, _undo
    if _undo is not None:  # so far it was only waited
        _undo()
    _aside = True
    stance = torch.compiler.set_stance("force_eager")
    _undo = partial(stance.__exit__, None, None, None)


def _wait() -> None:
    """Do so when torch.compile is first used; telling it now would load what takes a second."""
    global _undo
    original = torch.compile

    @wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        with _lock:
            if _blocks and torch.compile is compile:
                _stand_aside()
        return compiled

    def put_back() -> None:
        if torch.compile is compile:
            torch.compile = original

    torch.compile = compile
    _undo = put_back
