"""A report for a terminal, drawn by rich: the answer, findings, layers, checks, notes.

Styles only colour what the words say already, so that the text reads the same without them.
"""

import math
from collections.abc import Iterable
from statistics import mean
from typing import Any, Literal

from retrograde._terminal import as_text, indented, plain, rich
from retrograde._words import number, residual, suffix, value
from retrograde.diagnosis import Evidence, Finding, Training, Trial
from retrograde.report.data import ReportData

CHECKED = ("question", "check", "result", "where", "why")
"""The columns of the table of checks."""

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}


def renderable(report: ReportData) -> Any:
    """The report as something that a rich console can print."""
    parts: list[Any] = [rich().Text(plain(report.title), style="bold")]
    if report.findings or report.settings.rules:
        parts.append(rich().Text(plain(report.summary)))
    for found in report.findings:
        parts += ["", _finding(found)]
    parts += ["", _table(*report.table())]
    parts += [rich().Text(plain(sentence)) for sentence in report.answers]
    if report.checks:
        parts += ["", _table(CHECKED, report.checked, "left")]
    parts += [rich().Text(plain(note), style="dim") for note in report.notes]
    return rich().Group(*parts)


def render(report: ReportData) -> str:
    """The report as plain text, 120 columns wide."""
    return as_text(renderable(report))


def place(found: Finding) -> str:
    """Where it was found: layer, gate, position, route and steps, as far as it has them."""
    parts = [found.layer or "the whole model"]
    if found.gate is not None:
        parts.append(f"gate {found.gate}")
    if found.position is not None:
        parts.append(str(found.position))
    if found.route is not None:
        parts.append(f"route {found.route}")
    if found.steps is not None:
        first, last = found.steps
        parts.append(f"step {first}" if first == last else f"steps {first}-{last}")
    return ", ".join(parts)


def evidence_in_words(evidence: Evidence) -> str:
    """A number and what it was compared with: "reach 7 steps, at least 20 expected"."""
    shown = value(evidence.value, evidence.unit, evidence.name)
    words = f"{evidence.name} {shown} {suffix(evidence.unit, evidence.value)}".rstrip()
    return f"{words}, {expected(evidence)}" if evidence.threshold is not None else words


def expected(evidence: Evidence) -> str:
    """What a number was compared with, and by which threshold of the table; "" if with none."""
    limit, setting = evidence.threshold, f" ({evidence.setting})" if evidence.setting else ""
    if limit is None:
        return ""
    if limit == 0 and evidence.healthy == "below" and evidence.value == int(evidence.value):
        return f"none expected{setting}"
    bound = "at least" if evidence.healthy == "above" else "at most"
    return f"{bound} {value(limit, evidence.unit, evidence.name)} expected{setting}"


def moved(before: float | None, after: float | None, unit: str, name: str = "") -> str:
    """A number before and after: "7 -> 61 steps"."""
    return f"{value(before, unit, name)} -> {value(after, unit, name)} {suffix(unit)}".rstrip()


def batches_in_words(found: Finding) -> str:
    """In how many batches a finding holds, and its number there."""
    spread, evidence = found.batches, found.evidence
    if spread is None:
        return ""
    if not evidence or not spread.values:
        return str(spread)
    low, high = number(min(spread.values)), number(max(spread.values))
    between = low if low == high else f"{low} to {high}"
    return f"{spread}, {evidence[0].name} {between} {evidence[0].unit}".rstrip()


def trial_in_words(trial: Trial, evidence: Evidence | None) -> str:
    """What became of a remedy, in a line that begins with the verdict.

    Args:
        trial: the trial.
        evidence: the number that it was judged by.
    """
    title = trial.title.rstrip(".")
    if trial.after is None and trial.loss_after is None and trial.training is None:
        return f"could not be tried: {title}" + (f": {trial.note}" if trial.note else "")
    if trial.after is None:
        judged = "in one pass" if trial.verdict == "not trained" else trial.verdict
        return f"{judged}: {title}" + (f"; {trial.note}" if trial.note else "")
    name, unit = (evidence.name, evidence.unit) if evidence else ("", "")
    change = f"{name} {moved(trial.before, trial.after, unit)}".strip()
    judged = "in one pass" if trial.verdict == "not trained" else trial.verdict
    parts = [f"{judged}: {title}"]
    parts.append(change if trial.verdict == "not trained" else f"in one pass {change}")
    parts.append(moved_in_words(trial, evidence))
    if trial.residual is not None:
        parts.append(f"residual {residual(trial.residual)}")
    if trial.loss_before is not None and trial.loss_after is not None:
        parts.append(f"loss {moved(trial.loss_before, trial.loss_after, '')}")
    return ", ".join(parts) + (f"; {trial.note}" if trial.note else "")


def moved_in_words(trial: Trial, evidence: Evidence | None) -> str:
    """Where a number stands after a remedy: the evidence of one pass, and no verdict."""
    if trial.healthy or (evidence is not None and evidence.is_healthy(trial.after)):
        return "on the healthy side"
    return f"{'' if trial.closer else 'no '}nearer to the healthy side"


def training_in_words(trial: Trial) -> str:
    """What training did with the original and with the remedy, "" if it was not asked for."""
    training = trial.training
    if training is None or not training.original or not training.remedy:
        return ""
    original, remedy = training.original, training.remedy
    if training.differences:
        return (
            f"after {max(len(original), len(remedy))} steps, the mean over "
            f"{len(training.differences)} seeds: loss {number(mean(training.remedy_final))}, "
            f"without the remedy {number(mean(training.original_final))}, difference "
            f"{difference_in_words(training)} ({training.optimizer})"
        )
    return (
        f"after {len(remedy)} steps of {training.optimizer}: loss {number(remedy[0])} -> "
        f"{number(remedy[-1])}, without the remedy {number(original[0])} -> {number(original[-1])}"
    )


def difference_in_words(training: Training) -> str:
    """The difference in the final loss with its spread over seeds: "-0.4 ± 0.05"."""
    if not math.isfinite(training.spread):
        return number(training.difference)
    return f"{number(training.difference)} ± {number(training.spread)}"


def _finding(found: Finding) -> Any:
    heading = rich().Text(found.severity, style=STYLES[found.severity])
    heading.append(f"  {plain(found.rule)}  ", style="bold")
    heading.append(plain(place(found)))
    first = found.evidence[0] if found.evidence else None
    inside: list[Any] = [rich().Text(plain(found.message))]
    if found.batches is not None:
        inside.append(rich().Text(plain(batches_in_words(found))))
    inside += [rich().Text(plain(evidence_in_words(evidence))) for evidence in found.evidence]
    inside += _listed("likely causes, the likeliest first:", found.causes)
    if found.trials:
        inside.append(rich().Text("tried on a copy of the model:"))
    for trial in found.trials:
        inside.append(_item(trial_in_words(trial, first), "green" if trial.recommended else ""))
        if more := training_in_words(trial):
            inside.append(indented(rich().Text(plain(more)), by=4))
    best = next((trial for trial in found.trials if trial.recommended and trial.code), None)
    if best is not None:
        inside.append(rich().Text("the lines that do it:"))
        inside.append(indented(rich().Text(plain(best.code.strip("\n")), overflow="fold"), by=4))
    inside += _listed("what to do:", found.advice)
    return rich().Group(heading, indented(rich().Group(*inside)))


def _listed(heading: str, lines: Iterable[str]) -> list[Any]:
    drawn: list[Any] = [_item(line) for line in lines]
    return [rich().Text(heading), *drawn] if drawn else []


def _item(words: str, style: str = "") -> Any:
    """An item of a list, further lines under the first."""
    row = rich().Table.grid(padding=(0, 1))
    row.add_row("-", rich().Text(plain(words), style=style))
    return indented(row)


def _table(
    titles: Iterable[str],
    rows: Iterable[Iterable[str]],
    further: Literal["left", "right"] = "right",
) -> Any:
    """A table of words; `further` says to which side the columns after the first are set."""
    table = rich().Table(pad_edge=False)
    for column, title in enumerate(titles):
        justify: Literal["left", "right"] = further if column else "left"
        table.add_column(rich().Text(plain(title)), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(rich().Text(plain(cell)) for cell in row))
    return table
