"""Parts that do not add up to the gradient: nothing that rests on them may be believed."""

import math

from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject


def _residual(subject: Subject) -> Evidence | NotApplicable:
    if subject.sensitive:
        return NotApplicable("rounding alone moves its parts that far, which rounding-decides says")
    return _evidence(subject)


def _by_rounding(subject: Subject) -> Evidence | NotApplicable:
    if subject.void and not subject.sensitive:
        return NotApplicable("it is not rounding that makes its parts void")
    return _evidence(subject)


def _evidence(subject: Subject) -> Evidence | NotApplicable:
    if subject.flow is None:
        return NotApplicable(subject.why_not_live)
    found = subject.flow.residual
    if math.isnan(found):
        return NotApplicable(f"there is no residual: {found.note}")
    return Evidence("residual", float(found), "of the gradient", found.bound, "below")


def _void(subject: Subject, evidence: Evidence) -> Finding:
    assert subject.flow is not None
    flow, found = subject.flow, subject.flow.residual
    return Finding(
        "void",
        "error",
        subject.name,
        f"Its parts do not add up to {found.against}, as far as the precision of the pass allows: "
        "reach, shares and all else that rests on them are void, and the rules that need them are "
        "silent",
        (evidence,),
        (found.note,),
        (
            "Compare the layer with its class, and run the model in float64"
            if flow.forward_agrees is False
            else "Take away what stands between the layer and its gradient (a hook, a function "
            "with a backward pass of its own, a change of weights or states) and diagnose once "
            "more",
            "If nothing of the kind is there, it is a mistake of this package: please report it",
        ),
    )


def _decided(subject: Subject, evidence: Evidence) -> Finding:
    assert subject.flow is not None
    found = subject.flow.residual
    return Finding(
        "rounding-decides",
        "error",
        subject.name,
        f"Rounding decides its gradient: its parts differ from {found.against} as the same pass "
        "does from itself in another precision; reach and shares are void, growth holds as a size",
        (evidence,),
        (found.note,),
        ("Run the model in float64", "Mend what makes the gradient explode, if it does"),
    )


VOID = Rule(
    "void",
    "The parts do not add up",
    "The residual, the relative difference between the sum of all parts and autograd's own "
    "gradient, against what the precision of the pass allows: 4 eps (8 + sqrt(T)), times the "
    "factor by which contributions cancel, or 16 times what rounding is measured to do to this "
    "gradient, and never more than 0.5. Beyond it the parts are those of another gradient, and "
    "no rule that rests on them speaks. A gradient that left the range of its data type is no "
    "proof against the parts, which do not leave it.",
    _residual,
    _void,
    rests_on="given",
    kind="soundness",
)
DECIDED = Rule(
    "rounding-decides",
    "Rounding decides the gradient",
    "A residual above what the precision of the pass allows, where rounding alone moves the "
    "gradient by half of its size or more: in a chaotic pass, as exploding gradients have it, with "
    "parts that cancel, or with saturated units. Two runs of the same pass then have two "
    "gradients. The parts are those of a pass that a rounding separates from the one that ran, so "
    "that sizes hold for both: the rule on exploding gradients speaks, and is told first, being "
    "the cause; those on reach and shares do not.",
    _by_rounding,
    _decided,
    rests_on="given",
    kind="scale",
)
