"""What every text for a terminal has in common; rich draws."""

from functools import cache
from io import StringIO
from types import SimpleNamespace
from typing import Any

WIDTH = 120
"""Columns of a text that is not written to a terminal."""

KEPT = "\n\t\u00a0"
"""Besides what prints."""


@cache
def rich() -> Any:
    """What rich draws with; imported when the first text is drawn, not with the package."""
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    return SimpleNamespace(Console=Console, Group=Group, Padding=Padding, Table=Table, Text=Text)


def plain(text: str) -> str:
    """The text with control characters written out: a name must not steer the terminal."""
    return "".join(c if c.isprintable() or c in KEPT else _written_out(c) for c in text)


def as_text(drawn: Any) -> str:
    """What rich would draw, as plain text, wherever this runs."""
    file = StringIO()
    console = rich().Console(
        file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


def indented(drawn: Any, by: int = 2) -> Any:
    """A few columns to the right."""
    return rich().Padding(drawn, (0, 0, 0, by), expand=False)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode()
