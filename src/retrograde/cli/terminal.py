"""The terminal: results on standard output, progress and errors on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from retrograde.report.text import plain


def console() -> Console:
    """The terminal, or 120 columns where there is none."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(width=120, highlight=False)


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
