"""Which finding comes first in a case, and the tables of that."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import nn

from retrograde.diagnosis.finding import Check, Finding, at_least
from retrograde.errors import RetrogradeError
from retrograde.report import diagnose
from retrograde.report.report import Report
from retrograde.tasks.trial_set.case import HEALTHY, REFUSED, Case, LossFunction

OUTCOMES = ("first", "second", "other", "cannot tell", "nothing")
"""What the diagnosis said, from best to worst for a sick model.

first: the first finding is right; of two troubles, both are told.
second: the second one is; of two troubles, one is the first or second.
other: a warning or an error, which is not that. The worst answer there is.
cannot tell: neither, and the check that is meant did not apply.
nothing: neither, and the check that is meant passed, or stands third or later among remarks.
"""


@dataclass(frozen=True)
class Judgement:
    """What was said of a case.

    Attributes:
        case: the case.
        outcome: one of `OUTCOMES`.
        said: severity and rule of each finding that is not a remark, and of the first in any case.
        reason: what the check that is meant gave as its reason.
    """

    case: Case
    outcome: str
    said: tuple[str, ...]
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether that was the best answer."""
        return self.outcome == ("nothing" if self.case.kind == HEALTHY else "first")


def report_on(case: Case, model: nn.Module, batch: Any, loss_fn: LossFunction) -> Report:
    """The report on what a case has built, without remedies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some troubles itself
        return diagnose(model, batch, loss_fn, remedies=None, **case.options)


def judge(case: Case, seed: int = 0) -> Judgement:
    """Run the diagnosis on a case and compare. A model that is refused with a reason is no miss."""
    try:
        report = report_on(case, *case.build(seed))
    except RetrogradeError as error:
        said = (REFUSED, str(error).splitlines()[0])
        return Judgement(case, "first" if REFUSED in case.rules else "cannot tell", said)
    return judgement_of(case, report.findings, report.checks)


def judgement_of(
    case: Case, findings: Sequence[Finding], checks: Iterable[Check] = ()
) -> Judgement:
    """What findings and checks come to."""
    serious = [each for each in findings if at_least(each.severity, "warning")]
    said = tuple(f"{f.severity} {f.rule}" for f in (serious or findings[:2]))
    named = [each.rule for each in findings if at_least(each.severity, case.least)]
    meant = (*case.rules, *case.also)
    reason = next((c.reason for c in checks if c.name in meant and c.reason), "")
    applies = any(c.name in meant and c.status != "not applicable" for c in checks)
    if case.sound and serious:
        outcome = "other"
    elif case.kind == HEALTHY:
        outcome = "nothing"
    elif named[:1] and named[0] in meant and all(rule in named for rule in case.also):
        outcome = "first"
    elif any(rule in meant for rule in named[:2]):
        outcome = "second"
    elif serious:
        outcome = "other"
    else:
        outcome = "nothing" if applies else "cannot tell"
    return Judgement(case, outcome, said, reason)


def table_of(judgements: Sequence[Judgement], title: str) -> Table:
    """How often each outcome came, by kind."""
    table = Table(title=title, title_justify="left")
    table.add_column("kind")
    table.add_column("cases", justify="right")
    for outcome in OUTCOMES:
        table.add_column(outcome, justify="right")
    kinds = dict.fromkeys(each.case.kind for each in judgements)
    rows = [kind for kind in kinds if kind != HEALTHY]
    for kind in rows:
        table.add_row(*_row(kind, [each for each in judgements if each.case.kind == kind]))
    sick = [each for each in judgements if each.case.kind != HEALTHY]
    table.add_section()
    table.add_row(*_row("all of these", sick))
    table.add_row(*_row(HEALTHY, [each for each in judgements if each.case.kind == HEALTHY]))
    return table


def _row(name: str, judgements: Sequence[Judgement]) -> list[str]:
    counts = Counter(each.outcome for each in judgements)
    return [name, str(len(judgements)), *(str(counts[o] or "") for o in OUTCOMES)]


def misses(judgements: Sequence[Judgement]) -> list[str]:
    """A line for each case that was not answered best."""
    return [
        f"- {each.case.name} ({each.case.kind}): {each.outcome}; "
        f"said: {', '.join(each.said) or 'nothing'}" + f" [{each.reason}]" * bool(each.reason)
        for each in judgements
        if not each.right
    ]
