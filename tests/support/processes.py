"""Programs in processes of their own that do not load torch each time anew.

Loading torch, the package and what draws its charts takes more than two seconds, most of the time
of many a program. The first call starts a process that does so once, without the tests and their
type checks; each program runs in a copy of that process (`fork`).
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

LOADED = [
    *("torch", "altair", "pandas", "pydantic", "rich", "sybil", "typer", "vl_convert"),
    *("retrograde", "retrograde.cli.commands"),
]


@dataclass(frozen=True)
class Done:
    """What `subprocess.run` would say of the program."""

    returncode: int | None
    stdout: str
    stderr: str


def run(
    program: Path | str,
    *arguments: str | Path,
    stdout: IO[str] | int | None = None,
    stderr: IO[str] | int | None = None,
) -> Done:
    """`python -W error PROGRAM ARGUMENTS...`, or `-m PROGRAM` where it is the name of a module.

    Its output goes to a file or a descriptor where one is given.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        streams = [_handed_over(stdout or out), _handed_over(stderr or err)]
        given = (program, [*map(str, arguments)], streams, os.getcwd())
        process = context.Process(target=_run, args=given)
        process.start()
        for stream in streams:
            stream.close()
        process.join()
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    return Done(process.exitcode, *printed)


def _handed_over(file: IO[str] | int) -> Connection:
    """The one thing with a descriptor that multiprocessing hands to another process."""
    return Connection(os.dup(file if isinstance(file, int) else file.fileno()))


def _run(program: Path | str, arguments: list[str], streams: list[Connection], folder: str) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", 1, closefd=False)
    os.chdir(folder)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    sys.argv[:] = [str(program), *arguments]
    if isinstance(program, str):
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(program.parent)
        runpy.run_path(str(program), run_name="__main__")
