"""Programs in processes of their own that do not load torch each time anew.

Loading torch, the package and what draws its charts takes more than two seconds, most of the time
of many a program. The first call starts a process that does so once (preloaded.py), without the
tests and their type checks; each program runs in a copy of that process (`fork`).
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import IO
from unittest import mock

CLOSED = "closed"
"""In place of a stream: a descriptor that is not open."""


@dataclass(frozen=True)
class Done:
    """What `subprocess.run` would say of the program."""

    returncode: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Started:
    """A program that runs."""

    process: BaseProcess
    printed: tuple[IO[str], IO[str]]

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGINT)

    def done(self, timeout: float | None = None) -> Done:
        """Wait until it has ended.

        Raises:
            TimeoutError: if it still runs after so many seconds; it is killed.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"it still runs after {timeout} seconds")
        printed = []
        for file in self.printed:
            with file:
                file.seek(0)
                printed.append(file.read())
        return Done(self.process.exitcode, *printed)


def copies() -> ForkServerContext:
    """What starts a process as a copy of the one that has loaded all that."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.preloaded"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()  # which hands its path over from Python 3.12.8 on only
    return context


def run(program: Path | str, *arguments: str | Path, **streams: IO[str] | int | str) -> Done:
    """`python -W error PROGRAM ARGUMENTS...`, or `-m PROGRAM` where it is the name of a module.

    Its output goes to a file or a descriptor where one is given, or nowhere with CLOSED.
    """
    return start(program, *arguments, **streams).done()


def start(
    program: Path | str,
    *arguments: str | Path,
    stdout: IO[str] | int | str | None = None,
    stderr: IO[str] | int | str | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Started:
    """The same, without waiting for its end."""
    context = copies()
    printed = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    asked = zip((stdout, stderr), printed, strict=True)
    streams = [_handed_over(file if stream is None else stream) for stream, file in asked]
    given = (program, [*map(str, arguments)], streams, os.getcwd(), {**os.environ, **environment})
    process = context.Process(target=_run, args=given)
    process.start()
    for stream in filter(None, streams):
        stream.close()
    return Started(process, printed)


def _handed_over(file: IO[str] | int | str) -> Connection | None:
    """The one thing with a descriptor that multiprocessing hands to another process."""
    if isinstance(file, str):
        return None
    return Connection(os.dup(file if isinstance(file, int) else file.fileno()))


def _run(
    program: Path | str,
    arguments: list[str],
    streams: list[Connection | None],
    folder: str,
    environment: dict[str, str],
) -> None:
    files: list[IO[str] | None] = []
    for number, stream in enumerate(streams, start=1):
        if stream is None:
            os.close(number)
            files.append(None)  # as Python does where there is none
        else:
            os.dup2(stream.fileno(), number)
            stream.close()
            files.append(open(number, "w", 1 if number == 2 else -1, closefd=False))
    sys.stdout, sys.stderr = files  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests are deaf to
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    sys.argv[:] = [str(program), *arguments]
    if isinstance(program, str):
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(program.parent)
        runpy.run_path(str(program), run_name="__main__")
