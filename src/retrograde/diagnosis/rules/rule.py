"""What a rule is: one number measured on a layer, a threshold, and what it means to cross it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from retrograde.diagnosis.finding import Check, Evidence, Finding, Kind, NotApplicable
from retrograde.diagnosis.subject import Subject


def _nothing(subject: Subject) -> str:
    return ""


@dataclass(frozen=True)
class Rule:
    """A rule of the diagnosis.

    Attributes:
        name: its name, in findings and on the command line.
        title: the same in words.
        meaning: what it looks at and why that matters.
        measure: the number it stands on and the threshold beside it, or why there is none. Remedies
            are judged by this number.
        describe: the finding, once the number has crossed the threshold.
        thresholds: the rows of the table that it uses.
        remedies: the remedies that are tried, by name.
        sources: papers and threads behind it.
        rests_on: what its number is made of. Rules that rest on the "parts" of the gradient do not
            apply where these are void; those that rest on "sizes" alone do where nothing but
            rounding separates them from the pass that ran; those that rest on the "forward" pass
            do not where it could not be run again; what was "given" (weights, data, autograd's
            gradients) is there anyway.
        unless: why another rule speaks in its place, "" if none does.
        left_out: what part of a layer it could not look at and why, "" if it saw all of it.
        concerns: the recurrent layers one by one; experiments concern the model as a whole.
        kind: the question that it answers a part of.

    Example:
        >>> from retrograde.diagnosis import RULES
        >>> rule = RULES["vanishing"]
        >>> rule.title, rule.thresholds[0], rule.remedies[0]
        ('The gradient vanishes', 'reach_fraction', 'forget-bias')
    """

    name: str
    title: str
    meaning: str
    measure: Callable[[Subject], Evidence | NotApplicable]
    describe: Callable[[Subject, Evidence], Finding]
    thresholds: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    rests_on: Literal["parts", "sizes", "forward", "given"] = "parts"
    unless: Callable[[Subject], str] = _nothing
    left_out: Callable[[Subject], str] = _nothing
    concerns: Literal["layers"] = "layers"
    kind: Kind = field(kw_only=True)

    def answer(self, subject: Subject) -> Finding | Evidence | NotApplicable:
        """The finding about a layer, the healthy number that there is instead, or why neither."""
        if why := self.unknown(subject):
            return NotApplicable(why)
        found = self.measure(subject)
        if isinstance(found, NotApplicable):
            return found
        if math.isnan(found.value):
            return NotApplicable(f"its {found.name} cannot be measured here")
        if why := self.unless(subject):
            return NotApplicable(why)
        return found if found.is_healthy() else self.describe(subject, found)

    def check(self, subject: Subject) -> tuple[Check, Finding | None]:
        """What became of it at a layer, and the finding if there is one."""
        found = self.answer(subject)
        if isinstance(found, NotApplicable):
            return Check(self.name, subject.name, "not applicable", found.reason), None
        left_out = self.left_out(subject)
        if isinstance(found, Evidence):
            return Check(self.name, subject.name, "passed", left_out), None
        return Check(self.name, subject.name, "found", left_out), found

    def unknown(self, subject: Subject) -> str:
        """Why what it rests on is not known of this layer; "" if it is."""
        known = {
            "parts": not subject.void,
            "sizes": not subject.void or subject.sensitive,
            "forward": not subject.void or subject.replayed,
            "given": True,
        }
        if known[self.rests_on]:
            return ""
        if self.rests_on == "forward":
            return "its forward pass could not be run again as it was"
        return "the parts of its gradient are void"
