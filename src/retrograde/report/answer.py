"""What the reader of a report must know before anything else, short enough for one screen."""

from collections import Counter
from dataclasses import dataclass

from retrograde._checks import listed
from retrograde._words import counted
from retrograde.diagnosis import Finding
from retrograde.diagnosis.finding import SEVERITIES
from retrograde.report.data import ReportData, far_in_words, looked_in_words, verdict
from retrograde.report.sentences import reach_in_words, what_helps
from retrograde.report.text import place

MOST_NAMED = 4
"""Maximum number of layers, or of further findings, that are named one by one."""

MOST_LINES = 4
"""Maximum number of lines of code on the first screen."""

WORDS = {"error": "error", "warning": "warning", "info": "remark"}


@dataclass(frozen=True)
class Answer:
    """What is wrong, if anything is, where, and what to do next.

    Attributes:
        severity: of the worst finding; "passed" where nothing needs mending, "unknown" where no
            rule could look, "" where none was asked.
        verdict: how much was found, in a few words.
        lead: the answer, in sentences.
        rows: what else is to be known, with a word for each: where, what to do, how far.
        code: the lines that apply the best remedy, "" where there is none or it is long.
    """

    severity: str
    verdict: str
    lead: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    code: str = ""


def answer(report: ReportData) -> Answer:
    """The answer to the question that the report's title asks."""
    asked = report.answers if len(report.answers) <= MOST_NAMED else ()
    if not report.settings.rules and not report.findings:
        return Answer("", "", report.sentences[:MOST_NAMED], ())
    if report.settings.rules and not report.looked and report.ok:
        rows = [("What to do", "Read in the table of checks why no rule could look.")]
        return Answer("unknown", "nothing can be said", (looked_in_words(report),), tuple(rows))
    if report.ok:
        found = f"{verdict(report)}. " + looked_in_words(report)
        rows = [] if asked else [("How far", far_in_words(report))]
        rows.append(("What next", _next(report)))
        words = "nothing to mend"
        if report.findings:
            words += f", {_counts(report.findings)}"
            rows.append(("Remarks", _told(report.findings)))
        return Answer("passed", words, (*asked, found), tuple(rows))
    first, *others = report.findings
    alike = {f.layer: f for f in others if f.rule == first.rule and f.layer}
    rows = [("Where", place(first) + (f"; likewise {_some(list(alike))}" if alike else ""))]
    helps = what_helps(first).rstrip(".") + "."
    advice = [text.rstrip(".") + "." for text in first.advice[:1]]
    rows += [("What helps", helps)] if first.trials else []
    rows += [("What to do", text) for text in advice if not first.trials or text != helps]
    if not asked and (far := _reaches(report)):
        rows.append(("How far", far))
    if rest := [found for found in others if found not in alike.values()]:
        rows.append(("Also found", _told(rest)))
    code = next((trial.code for trial in first.trials[:1] if trial.recommended), "")
    lead = (*asked, first.message.rstrip(".") + ".")
    short = code if code.count("\n") < MOST_LINES else ""
    return Answer(first.severity, _counts(report.findings), lead, tuple(rows), short)


def _next(report: ReportData) -> str:
    if report.solved:
        return "Nothing: it has learnt what there is to learn."
    if report.settings.needs_lag is None:
        return "Name the lag that matters to you, needs_lag=, and ask whether it is within reach."
    return (
        "Nothing in the recurrent layers. If the model does not learn all the same, look at data, "
        "loss and learning rate; the table of checks says what is ruled out."
    )


def _reaches(report: ReportData) -> str:
    """How far the gradient reaches, beside the lag that it should reach."""
    known = [layer for layer in report.layers if layer.seen]
    if not known:
        return ""
    if len(known) > MOST_NAMED:
        reaches = [layer.reach for layer in known]
        ends = f"{min(reaches)} to {counted(max(reaches), 'step')}"
        words = f"The gradient reaches back {ends} in {len(known)} layers"
    elif len(known) > 1:
        each = listed([f"{reach_in_words(layer)} in {layer.name}" for layer in known])
        words = f"The gradient reaches back {each}"
    else:
        words = f"The gradient reaches back {reach_in_words(known[0])}"
    lag = report.settings.needs_lag
    needed = "1 is" if lag == 1 else f"{lag} are"
    return words + (f"; {needed} needed." if lag is not None else ".")


def _counts(findings: tuple[Finding, ...]) -> str:
    """ "1 error, 2 remarks", the worst first."""
    found = Counter(finding.severity for finding in findings)
    return listed(counted(found[s], WORDS[s]) for s in reversed(SEVERITIES) if found[s])


def _told(findings: tuple[Finding, ...] | list[Finding]) -> str:
    """Rules and where they found something, in a line."""
    where: dict[str, list[str]] = {}
    for finding in findings:
        where.setdefault(finding.rule, []).append(finding.layer or "the whole model")
    told = [f"{rule} ({_some(list(dict.fromkeys(names)))})" for rule, names in where.items()]
    return _some(told) + "."


def _some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return listed(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
