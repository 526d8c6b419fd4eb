"""What an audit found, as text for a terminal and as a page that opens offline."""

from dataclasses import dataclass
from importlib.metadata import version
from os import PathLike
from typing import Any

from retrograde import _files
from retrograde._terminal import plain, rich
from retrograde.report.html import environment

TITLES = ("layer", "precision", "steps", "what", "error", "rounding", "ratio", "verdict")
"""The columns of the table of checks."""


@dataclass(frozen=True)
class AuditPage:
    """An audit in words.

    Attributes:
        summary: how much was compared, and whether it is right.
        differences: a sentence for each.
        rows: the table of checks, with columns as in `TITLES`.
        notes: what could not be audited, and why.
    """

    summary: str
    differences: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def rich(self) -> Any:
        """The same for a terminal."""
        Text = rich().Text  # noqa: N806
        table = rich().Table(box=None, pad_edge=False)
        for column in TITLES:
            table.add_column(column)
        for row in self.rows:
            table.add_row(*(Text(plain(word)) for word in row))
        label = ("difference  ", "bold red")
        told = [Text.assemble(label, plain(words)) for words in self.differences]
        return rich().Group(
            Text(self.summary), *told, table, *(Text(plain(note)) for note in self.notes)
        )

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the page.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        page = environment().get_template("audit.html.jinja")
        text = page.render(
            title="Is the gradient of this implementation the true one?",
            audit=self,
            titles=TITLES,
            version=version("retrograde"),
        )
        _files.write_text(path, _files.encodable(text))
