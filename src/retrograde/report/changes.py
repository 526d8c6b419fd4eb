"""What changed from one report to another, as data."""

from dataclasses import dataclass
from typing import Literal

from retrograde._words import counted, number
from retrograde.diagnosis import Finding

Verdict = Literal["better", "worse", "changed", "same"]


@dataclass(frozen=True)
class Difference:
    """A setting that the two reports do not share, in words."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Number:
    """One number before and after.

    Attributes:
        name, unit: what it is.
        before, after: its values; None where a report does not have it.
        verdict: "better" or "worse" where a need or a rule says which way is healthy, "changed"
            where nothing does, "same" where they differ by rounding only.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    verdict: Verdict


@dataclass(frozen=True)
class FindingChange:
    """A finding before and after; None where there was none.

    Attributes:
        verdict: "better" if it is gone or less severe, "worse" if it is new or more severe; for a
            finding of the same severity, which way its first evidence moved that moved at all.
        evidence: its numbers before and after.
        doubt: why it cannot be judged, "" if it can: the rule or the layer was not looked at in one
            of the two, or a threshold that it stands on was changed.
    """

    before: Finding | None
    after: Finding | None
    verdict: Verdict
    evidence: tuple[Number, ...] = ()
    doubt: str = ""

    @property
    def finding(self) -> Finding:
        """The later one, or the earlier one where it is gone."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def words(self) -> str:
        """What happened to it."""
        if self.after is None:
            return "gone"
        if self.before is None:
            return "new"
        if self.before.severity != self.after.severity:
            return f"{self.before.severity} -> {self.after.severity}"
        return "as before" if self.verdict == "same" else "other numbers"


@dataclass(frozen=True)
class LayerChange:
    """A layer of both reports, number by number; what neither report has is left out."""

    name: str
    numbers: tuple[Number, ...]
    findings: tuple[FindingChange, ...]

    @property
    def same(self) -> bool:
        """Whether nothing of it changed."""
        numbers, findings = self.numbers, self.findings
        return all(part.verdict == "same" for part in numbers) and all(
            found.verdict == "same" for found in findings
        )


@dataclass(frozen=True)
class Changes:
    """What two reports differ in; `Comparison` says what each field is."""

    names: tuple[str, str]
    settings: tuple[Difference, ...]
    findings: tuple[FindingChange, ...]
    layers: tuple[LayerChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    loss: Number | None = None

    @property
    def same(self) -> bool:
        """Whether nothing changed: no loss, finding, number or layer. Settings may differ."""
        return (
            not (self.only_before or self.only_after)
            and (self.loss is None or self.loss.verdict == "same")
            and all(found.verdict == "same" for found in self.findings)
            and all(layer.same for layer in self.layers)
        )

    @property
    def worse(self) -> bool:
        """Whether the loss, a finding or a number got worse."""
        findings, numbers = self._parts()
        verdicts = {part.verdict for part in findings} | {part.verdict for part in numbers}
        return "worse" in verdicts or (self.loss is not None and self.loss.verdict == "worse")

    def _parts(self) -> tuple[list[FindingChange], list[Number]]:
        """All findings and all numbers, wherever they stand."""
        findings = [*self.findings, *(found for layer in self.layers for found in layer.findings)]
        return findings, [part for layer in self.layers for part in layer.numbers]

    @property
    def summary(self) -> str:
        """What became of the loss, and how much else got better and worse, in a sentence."""
        if self.same:
            return "Nothing changed."
        changes, numbers = self._parts()
        parts = []
        if self.loss is not None and self.loss.verdict != "same":
            verdict = f", {self.loss.verdict}" if self.loss.verdict != "changed" else ""
            before, after = number(self.loss.before), number(self.loss.after)
            parts.append(f"the loss went from {before} to {after}{verdict}")
        for verdict, words in (
            ("better", "better"),
            ("worse", "worse"),
            ("changed", "changed, neither better nor worse"),
        ):
            found = sum(part.verdict == verdict for part in changes)
            values = sum(part.verdict == verdict for part in numbers)
            some = [
                counted(many, noun)
                for many, noun in ((found, "finding"), (values, "number"))
                if many
            ]
            if some:
                parts.append(f"{' and '.join(some)} {words}")
        alone = len(self.only_before) + len(self.only_after)
        if alone:
            parts.append(f"{counted(alone, 'layer')} in one report only")
        words = "; ".join(parts)
        return f"{words[:1].upper()}{words[1:]}."
