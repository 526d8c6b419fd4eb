"""What is said of recurrent matrices in general, where the pass at hand does something else."""

import math

from retrograde.diagnosis.finding import Evidence, Finding
from retrograde.diagnosis.rules.reach import PASCANU
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject
from retrograde.spectra import Radius


def _growth(subject: Subject) -> Evidence | None:
    """The growth per step of the first layer where radius and measurement disagree, or the first.

    Nothing is said within the margin of 1, on either side.
    """
    margin = subject.limits["radius_margin"]
    decided = [r for r in subject.radii if abs(r.says) > margin]
    if not decided:
        return None
    radius = _first(decided, margin)
    explodes = radius.says > 0
    return Evidence(
        "growth per step of any gradient",
        math.exp(radius.exponent),
        "times",
        math.exp(-margin if explodes else margin),
        "above" if explodes else "below",
    )


def _first(radii: list[Radius], margin: float) -> Radius:
    def disagrees(radius: Radius) -> bool:
        return radius.says * radius.exponent < 0 and abs(radius.exponent) > margin

    return next(filter(disagrees, radii), radii[0])


def _misleads(subject: Subject, evidence: Evidence) -> Finding:
    margin = subject.limits["radius_margin"]
    radius = _first([r for r in subject.radii if abs(r.says) > margin], margin)
    said, done = ("explode", "shrink") if radius.says > 0 else ("vanish", "grow")
    return Finding(
        "misleading-radius",
        "info",
        subject.name,
        f"Its spectral radius of {radius.value:.3g}, {'above' if radius.says > 0 else 'below'} "
        f"{radius.threshold:g}, is said to make gradients {said}; here they {done}, by "
        f"{evidence.value:.3g} a step. The measurement holds",
        (
            evidence,
            Evidence("spectral radius", radius.value, f"in {radius.route}"),
            Evidence("leading Lyapunov exponent", radius.exponent, "nats per step"),
        ),
        (
            "Inputs and state hold the squashing function where its slope is smaller than its "
            "largest, so that every step shrinks more than the matrix alone tells",
        )
        if radius.says > 0
        else (
            "The recurrent weights are far from normal: the slopes, which differ from unit to "
            "unit, make another matrix of them, with larger eigenvalues",
        ),
        (
            "Go by the measured growth; the eigenvalues of the matrix decide only where slopes "
            "are all equal",
            "retrograde.spectrum(recording) has all exponents, and the bounds that do hold",
        ),
        route=radius.route,
    )


MISLEADS = Rule(
    "misleading-radius",
    "The spectral radius misleads",
    "In a plain recurrent network: whether the spectral radius of the recurrent weights, above or "
    "below 1 (4 behind a sigmoid), foretells what the product of the Jacobians does, measured by "
    "its leading Lyapunov exponent. It is a theorem in linear networks only; what holds of others "
    "is that a largest singular value below that threshold makes gradients vanish.",
    _growth,
    _misleads,
    ("radius_margin",),
    (),
    (PASCANU,),
)
