"""What FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION stands for: a user's model, batch and loss."""

import importlib
import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable, Mapping
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
    """What FUNCTION returned; `cells` are declarations of recurrences of the user's own."""

    model: torch.nn.Module
    batch: Any
    loss_fn: Callable[..., Any]
    cells: Mapping[Any, Any] | None = None

    @property
    def arguments(self) -> tuple[torch.nn.Module, Any, Callable[..., Any]]:
        """Model, batch and loss as the package takes them; if the loss raises, it is the user's."""
        return self.model, self.batch, users(self.loss_fn)


def load(target: str, seed: int) -> Subject:
    """Load a file or a module, call its function and check what that returns.

    Args:
        target: FILE.py:FUNCTION, or PACKAGE.MODULE:FUNCTION for what is installed or can be
            imported from the working directory.
        seed: of torch, numpy and random, set before the file is loaded and again before FUNCTION
            is called, so that `torch.manual_seed(seed); FUNCTION()` repeats it elsewhere.

    Raises:
        InputError: if there is no such function, it fails, or it returns something else.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise InputError(
            "expected FILE.py:FUNCTION, as in train.py:example, or PACKAGE.MODULE:FUNCTION; got "
            f"{_files.named(Path(target))!r}"
        )
    _sow(seed)
    module = _imported(place) if is_module(place) else _loaded(place)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if callable(value)]
        raise InputError(
            f"{place} has no function {_checks.shown(name)}{_checks.closest(name, functions)}; "
            "define it to take nothing and return (model, batch, loss_fn)"
        )
    _sow(seed)
    result = users(function)()
    declared = isinstance(result, tuple) and len(result) == 4 and isinstance(result[3], Mapping)
    if not declared and not (isinstance(result, tuple) and len(result) == 3):
        raise InputError(_wrong_form(name, f"{type(result).__name__}"))
    model, batch, loss_fn = result[:3]
    if not isinstance(model, torch.nn.Module) or not callable(loss_fn):
        kinds = ", ".join(type(part).__name__ for part in result)
        raise InputError(_wrong_form(name, f"({kinds})"))
    return Subject(model, batch, loss_fn, *result[3:])


def file_of(target: str) -> Path:
    """The file that FILE.py:FUNCTION names."""
    return Path(target.rpartition(":")[0])


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
        f"function of (model, batch), and declared cells as a fourth if there are any; it returned "
        f"{arrived}"
    )


def is_module(place: str) -> bool:
    """Whether it names a module, as `import` does, and no file."""
    names = place.split(".")
    return names[-1] != "py" and all(map(str.isidentifier, names)) and not os.path.exists(place)


def _imported(name: str) -> ModuleType:
    """The module of that name, as `python -m` would find it."""
    sys.path.insert(0, str(Path.cwd()))
    package = name.partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise InputError(
            f"there is no module {_checks.shown(package)}, and no file {_checks.shown(name)}; "
            "give FILE.py:FUNCTION, or install the package"
        )
    module: ModuleType = users(importlib.import_module)(name)
    return module


def _loaded(file: str) -> ModuleType:
    """The file as a module, known by its name as if it had been imported (dataclasses ask)."""
    path = _files.check_readable(file, "the path of a Python file")
    kind = _files.kind(path)
    if kind and kind != "a Python file":
        raise InputError(f"{path} is {kind}; give a Python file")
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
        if not filename.startswith((own, "<frozen importlib", importlib.__file__)):
            return trace
        trace = trace.tb_next
    return None
