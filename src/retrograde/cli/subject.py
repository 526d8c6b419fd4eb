"""What `FILE.py:FUNCTION` stands for: a model, a batch and a loss, from the user's own code."""

import importlib.util
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy
import torch

from retrograde import _checks, _files
from retrograde.errors import InputError, RetrogradeError


@dataclass(frozen=True)
class Subject:
    """What FUNCTION returned."""

    model: torch.nn.Module
    batch: Any
    loss_fn: Callable[..., Any]


def load(target: str, seed: int) -> Subject:
    """Load FILE.py, call FUNCTION and check what it returns.

    Args:
        target: FILE.py:FUNCTION.
        seed: of torch, numpy and random, set before the file is loaded and again before FUNCTION
            is called, so that `torch.manual_seed(seed); FUNCTION()` repeats it elsewhere.

    Raises:
        InputError: if there is no such function, it fails, or it returns something else.
    """
    file, _, name = target.rpartition(":")
    if not file or not name:
        raise InputError(
            f"expected FILE.py:FUNCTION, as in train.py:example; got {_files.named(Path(target))!r}"
        )
    path = _files.check_readable(file, "the path of a Python file")
    _sow(seed)
    function = getattr(_module(path), name, None)
    if not callable(function):
        raise InputError(
            f"{file} has no function {_checks.shown(name)}; define it to take nothing and return "
            "(model, batch, loss_fn)"
        )
    _sow(seed)
    result = users(function)()
    if not (isinstance(result, tuple) and len(result) == 3):
        raise InputError(_wrong_form(name, f"{type(result).__name__}"))
    model, batch, loss_fn = result
    if not isinstance(model, torch.nn.Module) or not callable(loss_fn):
        kinds = ", ".join(type(part).__name__ for part in result)
        raise InputError(_wrong_form(name, f"({kinds})"))
    return Subject(model, batch, loss_fn)


def users(function: Callable[..., Any]) -> Callable[..., Any]:
    """The user's function; if it raises, the user's own traceback is the message."""

    @wraps(function)
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except RetrogradeError:
            raise
        except SystemExit as stop:
            raise InputError(
                f"your code ended the program (sys.exit, code {stop.code!r}) before it returned"
            ) from None
        except Exception as error:
            trace = _below_us(error.__traceback__)
            lines = traceback.format_exception(type(error), error.with_traceback(trace), trace)
            raise InputError("your code raised an exception\n" + "".join(lines)) from None

    return call


def _sow(seed: int) -> None:
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def _wrong_form(name: str, arrived: str) -> str:
    return (
        f"{name}() must return a tuple (model, batch, loss_fn) with a torch.nn.Module and a "
        f"function of (model, batch); it returned {arrived}"
    )


def _module(path: Path) -> ModuleType:
    """The file as a module, known by its name as if it had been imported (dataclasses ask)."""
    name = path.stem if path.stem not in sys.modules else f"retrograde_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    users(spec.loader.exec_module)(module)
    return module


def _below_us(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that starts in the user's file."""
    own = str(Path(__file__).parent.parent)
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith((own, "<frozen importlib")):
            return trace
        trace = trace.tb_next
    return None
