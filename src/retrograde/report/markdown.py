"""A report as Markdown, for an issue, a pull request or a lab journal."""

import re
from collections.abc import Callable

from retrograde import _files
from retrograde.report.data import ReportData
from retrograde.report.html import environment
from retrograde.report.text import (
    CHECKED,
    batches_in_words,
    evidence_in_words,
    place,
    training_in_words,
    trial_in_words,
)


def escaped(text: object) -> str:
    """Text of which Markdown and HTML see nothing but text, in one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(str(text).split()))


def fenced(code: str) -> str:
    """Code that cannot end the block that it stands in."""
    return code.replace("```", "` ` `")


FILTERS: dict[str, Callable[..., object]] = {
    "md": escaped,
    "fenced": fenced,
    "place": place,
    "evidence_in_words": evidence_in_words,
    "batches_in_words": batches_in_words,
    "trial_in_words": trial_in_words,
    "training_in_words": training_in_words,
}


def render(report: ReportData) -> str:
    """The report as Markdown, tables in GitHub's form."""
    template = environment(**FILTERS).overlay(autoescape=False).get_template("report.md.jinja")
    titles, rows = report.table()
    text = template.render(report=report, titles=titles, rows=rows, checked=CHECKED)
    return _files.encodable(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")
