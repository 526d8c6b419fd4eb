"""Scripts in processes of their own that do not load torch each time anew.

Loading torch, the package and what draws its charts takes more than two seconds, most of the time
of many a script. The first call starts a process that does so once, without the tests and their
type checks; each script runs in a copy of that process (`fork`).
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
import warnings
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = ["torch", "altair", "pandas", "rich", "retrograde", "sybil", "typer", "vl_convert"]


@dataclass(frozen=True)
class Done:
    """What `subprocess.run` would say of the program."""

    returncode: int | None
    stdout: str
    stderr: str


def run_script(script: Path, *arguments: str | Path) -> Done:
    """`python -W error SCRIPT ARGUMENTS...`."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _server().Process(
            target=_script, args=([str(script), *map(str, arguments)], streams)
        )
        process.start()
        process.join()
        return Done(process.exitcode, *(path.read_text(encoding="utf-8") for path in streams))


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _script(argv: list[str], streams: list[Path]) -> None:
    for ours, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), ours)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    sys.argv[:] = argv
    sys.path[0] = str(Path(argv[0]).parent)
    runpy.run_path(argv[0], run_name="__main__")
