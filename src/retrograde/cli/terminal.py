"""The terminal: results on standard output, progress and errors on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from retrograde._terminal import WIDTH, plain


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


def complain(message: str) -> None:
    """Say on standard error what is wrong."""
    print(plain(message), file=sys.stderr)


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
