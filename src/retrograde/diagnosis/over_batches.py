"""What holds in most batches: findings of one batch alone may be chance, and are not told.

An error of soundness is told wherever it is seen: one NaN is enough to ruin the weights.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from retrograde.diagnosis.finding import SEVERITIES, Check, Finding, Spread
from retrograde.diagnosis.rules import RULES

Key = tuple[str, str | None]
"""A rule, and the layer in which it found something."""


@dataclass(frozen=True)
class Seen:
    """What was found in one batch, and what became of every rule there."""

    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]


def over_batches(seen: Sequence[Seen]) -> tuple[list[Finding], list[Check], list[str]]:
    """The findings that hold in most of the batches, each with its spread over them.

    Args:
        seen: one for each batch; the first is the one that the report shows.

    Returns:
        The findings, as the first batch that has them tells them; what became of every rule; and
        notes on what was left out.
    """
    first, batches = seen[0], len(seen)
    if batches == 1:
        return list(first.findings), list(first.checks), []
    counts = Counter(key for each in seen for key in {_key(f) for f in each.findings})
    ruinous = {_key(f) for each in seen for f in each.findings if _ruins(f)}
    most = ruinous | {key for key, count in counts.items() if 2 * count > batches}
    findings: list[Finding] = []
    for each in seen:
        known = {_key(finding) for finding in findings}
        for finding in each.findings:
            if _key(finding) in most - known:
                findings.append(_with_spread(finding, counts[_key(finding)], seen))
    few = {_key(f): f for each in reversed(seen) for f in each.findings if _key(f) not in most}
    others = ", and errors of soundness that any of them shows" if ruinous else ""
    notes = [f"Findings are those of most of {batches} batches{others}."]
    notes += [
        f"No finding, since it holds in {counts[key]} of {batches} batches only: {found.rule} "
        f"({found.layer or 'the whole model'}). {found.message.rstrip('.')}."
        for key, found in few.items()
    ]
    return findings, [_check(check, most, counts, batches) for check in first.checks], notes


def _ruins(finding: Finding) -> bool:
    """Whether one batch that shows it is enough."""
    return finding.severity == "error" and RULES[finding.rule].kind == "soundness"


def _key(finding: Finding) -> Key:
    return finding.rule, finding.layer


def _with_spread(finding: Finding, count: int, seen: Sequence[Seen]) -> Finding:
    """A finding with its spread, and the severity that it has in most batches."""
    alike = [
        next(other for other in each.findings if _key(other) == _key(finding))
        for each in seen
        if any(_key(other) == _key(finding) for other in each.findings)
    ]
    numbers = [other.evidence[0].value for other in alike if other.evidence]
    values = tuple(number for number in numbers if not math.isnan(number))
    severity = SEVERITIES[median_low(SEVERITIES.index(other.severity) for other in alike)]
    return replace(finding, severity=severity, batches=Spread(count, len(seen), values))


def _check(check: Check, most: set[Key], counts: Counter[Key], batches: int) -> Check:
    """What became of a rule in most batches."""

    def concerns(key: Key) -> bool:
        rule, layer = key
        return rule == check.name and check.layer in (None, layer)

    if any(concerns(key) for key in most):
        return check if check.status == "found" else replace(check, status="found", reason="")
    if check.status != "found":
        return check
    count = max((counts[key] for key in counts if concerns(key)), default=0)
    return replace(check, status="passed", reason=f"found in {count} of {batches} batches only")
