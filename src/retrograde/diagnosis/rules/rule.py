"""What a rule is: one number measured on a layer, a threshold, and what it means to cross it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retrograde.diagnosis.finding import Evidence, Finding
from retrograde.diagnosis.subject import Subject


@dataclass(frozen=True)
class Rule:
    """A rule of the diagnosis.

    Attributes:
        name: its name, in findings and on the command line.
        title: the same in words.
        meaning: what it looks at and why that matters.
        measure: the number it stands on and the threshold beside it; None where it has nothing to
            look at. Remedies are judged by this number.
        describe: the finding, once the number has crossed the threshold.
        thresholds: the rows of the table that it uses.
        remedies: the remedies that are tried, by name.
        sources: papers and threads behind it.
        when: whether it has a say at all; another rule may be the one to speak.
        rests_on: what its number is made of. Rules that rest on the "parts" of the gradient are
            silent where these are void; those that rest on "sizes" alone speak where nothing but
            rounding separates them from the pass that ran; those that rest on the "forward" pass
            are silent where it could not be run again; what was "given" (weights, data, autograd's
            gradients) is there anyway.
        missing: what a layer lacks that it would have to look at, in words; "" if nothing.

    Example:
        >>> from retrograde.diagnosis import RULES
        >>> rule = RULES["vanishing"]
        >>> rule.title, rule.thresholds[0], rule.remedies[0]
        ('The gradient vanishes', 'reach_fraction', 'forget-bias')
    """

    name: str
    title: str
    meaning: str
    measure: Callable[[Subject], Evidence | None]
    describe: Callable[[Subject, Evidence], Finding]
    thresholds: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    when: Callable[[Subject], bool] = lambda subject: True
    rests_on: Literal["parts", "sizes", "forward", "given"] = "parts"
    missing: Callable[[Subject], str] = lambda subject: ""

    def check(self, subject: Subject) -> Finding | None:
        """The finding about a layer, or None."""
        evidence = self.measure(subject) if self.can_tell(subject) else None
        if evidence is None or evidence.is_healthy() or not self.when(subject):
            return None
        return self.describe(subject, evidence)

    def can_tell(self, subject: Subject) -> bool:
        """Whether what it rests on is known of this layer."""
        return {
            "parts": not subject.void,
            "sizes": not subject.void or subject.sensitive,
            "forward": not subject.void or subject.replayed,
            "given": True,
        }[self.rests_on]


def steps(count: int | float) -> str:
    """A number of steps in words."""
    return "1 step" if count == 1 else f"{count:.3g} steps"
