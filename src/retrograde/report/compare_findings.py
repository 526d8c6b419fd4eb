"""The findings of two reports in pairs: which are better, which worse, and which tell nothing."""

from collections.abc import Iterator, Sequence

from retrograde.diagnosis import Evidence, Finding
from retrograde.diagnosis.finding import SEVERITIES
from retrograde.report.changes import FindingChange, Number, Verdict
from retrograde.report.data import SOLVED
from retrograde.report.differences import judged, moved_thresholds
from retrograde.report.report import Report


class Doubts:
    """Why a finding that one report alone has says nothing about the model."""

    def __init__(self, a: Report, b: Report):
        self._rules = (set(a.settings.rules), set(b.settings.rules))
        self._layers = tuple({layer.name for layer in report.layers} for report in (a, b))
        self._moved = {name for name, *_ in moved_thresholds(a.settings, b.settings)}
        self._need = a.settings.needs_lag != b.settings.needs_lag
        self._reasons = tuple(
            {(c.name, c.layer): c.reason for c in report.checks if c.status == "not applicable"}
            for report in (a, b)
        )
        self._void = tuple({one.name for one in report.layers if one.void} for report in (a, b))

    def about(self, found: Finding, other: int) -> str:
        """The doubt about a finding that report number `other` lacks, "" if there is none."""
        which = ("first", "second")[other]
        if self._rules[other] and found.rule not in self._rules[other]:
            return f"the {which} report did not look for it"
        known = found.layer is None or found.layer in self._layers[other]
        if not known and found.layer in self._layers[1 - other]:
            return f"the {which} report does not have this layer"
        if found.layer in self._void[other]:
            return f"its parts are void in the {which} report"
        reason = self._reasons[other].get((found.rule, found.layer))
        if reason is not None:
            return f"the {which} report could not look for it, since {reason}"
        return self.threshold(found)

    def threshold(self, found: Finding) -> str:
        """Whether what it was compared with was moved."""
        moved = sorted({e.setting for e in found.evidence if e.setting} & self._moved)
        if moved:
            return f"another threshold: {', '.join(moved)}"
        in_steps = [e for e in found.evidence if e.threshold is not None and e.unit == "steps"]
        if self._need and in_steps:
            return "another needs_lag"
        return ""


def paired(
    before: Sequence[Finding], after: Sequence[Finding], doubts: Doubts
) -> tuple[FindingChange, ...]:
    """Findings of one layer: the same rule and place first, then the same rule in order."""
    left, partner = list(after), dict[int, Finding]()
    for alike in (_key, _rule):
        for position, found in enumerate(before):
            if position in partner:
                continue
            match = next((other for other in left if alike(other) == alike(found)), None)
            if match is not None:
                partner[position] = match
                left = [other for other in left if other is not match]
    changes = [
        _both(found, partner[position], doubts) if position in partner else _gone(found, doubts)
        for position, found in enumerate(before)
    ]
    return (*changes, *(_new(found, doubts) for found in left))


def _gone(found: Finding, doubts: Doubts) -> FindingChange:
    doubt = doubts.about(found, 1)
    good = found.rule == SOLVED
    return FindingChange(found, None, "changed" if doubt or good else "better", doubt=doubt)


def _new(found: Finding, doubts: Doubts) -> FindingChange:
    doubt = doubts.about(found, 0)
    good: Verdict = "better" if found.rule == SOLVED else "worse"
    return FindingChange(None, found, "changed" if doubt else good, doubt=doubt)


def _both(before: Finding, after: Finding, doubts: Doubts) -> FindingChange:
    evidence = tuple(_evidence(before.evidence, after.evidence))
    rank = SEVERITIES.index(after.severity) - SEVERITIES.index(before.severity)
    moved: tuple[Verdict, ...] = tuple(e.verdict for e in evidence if e.verdict != "same")
    verdict: Verdict = "better" if rank < 0 else "worse" if rank > 0 else (*moved, "same")[0]
    doubt = doubts.threshold(after) or doubts.threshold(before)
    if rank and doubt:
        verdict = "changed"
    elsewhere = _key(before) != _key(after)
    if verdict == "same" and elsewhere:
        verdict = "changed"
    return FindingChange(before, after, verdict, evidence, doubt if verdict != "same" else "")


def _evidence(before: Sequence[Evidence], after: Sequence[Evidence]) -> Iterator[Number]:
    old = {evidence.name: evidence for evidence in before}
    new = {evidence.name: evidence for evidence in after}
    for name in dict.fromkeys((*old, *new)):
        shown = new.get(name) or old[name]
        before_value, after_value = (
            side[name].value if name in side else None for side in (old, new)
        )
        healthy = shown.healthy if shown.threshold is not None else None
        yield judged(name, shown.unit, before_value, after_value, healthy)


def _rule(found: Finding) -> tuple[object, ...]:
    return found.layer, found.rule


def _key(found: Finding) -> tuple[object, ...]:
    return found.layer, found.rule, found.gate, found.position, found.route
