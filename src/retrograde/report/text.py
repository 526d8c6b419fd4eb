"""A report for a terminal, drawn by rich: the sentences first, then the table."""

from io import StringIO

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from retrograde.report.report import Report


def renderable(report: Report) -> Group:
    """The report as something that a rich console can print."""
    titles, rows = report.table()
    table = Table(title=escape(report.title), title_justify="left", pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(escape(title), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    sentences = [Text(sentence) for sentence in report.sentences]
    notes = [Text(note, style="dim") for note in report.notes]
    return Group(table, *sentences, *notes)


def render(report: Report) -> str:
    """The report as plain text, 120 columns wide."""
    console = Console(file=StringIO(), width=120, color_system=None)
    console.print(renderable(report))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.rstrip()
