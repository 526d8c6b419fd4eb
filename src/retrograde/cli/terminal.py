"""The terminal: results on standard output, progress and errors on standard error."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from retrograde._files import why
from retrograde._terminal import WIDTH, plain
from retrograde.errors import InputError


def show(drawn: RenderableType) -> None:
    """Draw on the terminal, or as plain text 120 columns wide where there is none."""
    terminal = Console(highlight=False)
    if terminal.is_terminal:
        terminal.print(drawn)
        return
    page = Console(width=WIDTH, highlight=False)
    with page.capture() as captured:
        page.print(drawn)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def forgive_encodings() -> None:
    """What a stream cannot encode is written out as \\u1234 instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def guarded_output() -> Iterator[None]:
    """Standard output that is closed, full or gone is an error of ours, whoever writes to it.

    Raises:
        InputError: when something is written, or at the end.
    """
    stdout = sys.stdout
    guarded = _Output(stdout)
    sys.stdout = guarded
    try:
        yield
    finally:
        sys.stdout = stdout
        guarded.flush()


class _Output:
    """A text stream as it is, but for its errors. It is None where there is none from the start."""

    def __init__(self, stream: Any):
        # One that refuses all, and stays open as standard streams do.
        self._stream = stream or open(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._refusing():
            return int(self._stream.write(text))

    def writelines(self, lines: Iterable[str]) -> None:
        with self._refusing():
            self._stream.writelines(lines)

    def flush(self) -> None:
        with self._refusing():
            self._stream.flush()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # the latter: somebody closed it
            _silence(self._stream)
            raise InputError(f"cannot write to standard output: {why(error)}") from None


def _silence(stream: Any) -> None:
    """Let what is still waiting to be written go nowhere, or Python complains at its very end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(message: str) -> None:
    """Say on standard error what is wrong, if there is one."""
    if sys.stderr is None:
        return
    try:
        print(plain(message), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _silence(sys.stderr)


@contextmanager
def progress(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error that vanishes when the work is done; only on a terminal.

    Yields:
        A function of how much is done, of how much in all, and what comes next. Until it is called
        the bar says `what`, without an end in sight.
    """
    errors = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(plain(what), total=None)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=plain(what))

        yield tell
