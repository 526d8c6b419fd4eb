"""The order in which findings are told, which a report, a comparison and a page all keep."""

from collections.abc import Iterable

from retrograde.diagnosis.finding import KINDS, SEVERITIES, Finding
from retrograde.diagnosis.rules import RULES


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors and warnings before remarks; of each, question by question, errors before warnings.

    What else two findings have in common, the one given first is told first.
    """
    return tuple(sorted(findings, key=_place))


def _place(finding: Finding) -> tuple[bool, int, int]:
    kind = KINDS.index(RULES[finding.rule].kind)
    return finding.severity == "info", kind, -SEVERITIES.index(finding.severity)
