"""The report that a user holds: the data, and the texts and files that are made of them."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

from retrograde import _files
from retrograde.errors import MissingExtraError
from retrograde.report import html, json, markdown, text
from retrograde.report.data import ReportData


@dataclass(frozen=True)
class Report(ReportData):
    """What one backward pass says about the recurrent layers of a model; made by `diagnose`.

    `print` shows it, and so does a notebook.

    Attributes:
        title: the heading.
        layers: what was decomposed.
        findings: what is wrong, the most important first; empty if nothing is.
        horizon: the lag that the sentences answer to, if there is one.
        notes: what a reader must know about data and setting.
        settings: all that is needed to repeat it.
        checks: what became of each rule at each layer: whether it looked, and why not if it did
            not.
        loss: of the batch; None where a recording was given.
        growth: by layer, how far back its gradient went while it learned, where that was asked.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(2, 4), torch.ones(20, 3, 2), lambda model, x: model(x)[0].sum()
        ... )
        >>> report.ok, report.findings
        (True, ())
        >>> [name for name in report.scalars() if name.endswith("reach")]
        ['retrograde/GRU/reach']
    """

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write one self-contained page that opens offline.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        _files.write_text(path, html.render(self))

    def to_json(self, path: str | PathLike[str]) -> None:
        """Write the report as JSON, which `from_json` reads back.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        _files.write_text(path, json.render(self))

    def to_markdown(self) -> str:
        """The report as Markdown, for an issue or a lab journal; tables are in GitHub's form.

        Raises:
            MissingExtraError: without the extra `report`; the message says how to install it.
        """
        return markdown.render(self)

    @staticmethod
    def from_json(path: str | PathLike[str]) -> "Report":
        """Read a report that `to_json` wrote.

        Raises:
            InputError: if the file cannot be read or is no report of this schema.
        """
        return json.read(path, Report)

    def __repr__(self) -> str:
        found = ", ".join(f"{found.rule} ({found.severity})" for found in self.findings[:8])
        more = f" and {len(self.findings) - 8} more" if len(self.findings) > 8 else ""
        return f"Report: {self.summary}\nFindings: {found or 'none'}{more}"

    def __str__(self) -> str:
        return text.render(self)

    def __rich__(self) -> Any:
        return text.renderable(self)

    def _repr_html_(self) -> str | None:
        try:
            return html.excerpt(self)
        except MissingExtraError:
            return None  # a notebook then shows the text
