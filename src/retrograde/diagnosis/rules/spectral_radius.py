"""What is said of recurrent matrices in general, where the pass at hand does something else."""

from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.reach import PASCANU
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject
from retrograde.spectra import Radius


def _exponent(subject: Subject) -> Evidence | NotApplicable:
    """That of the first layer where radius and measurement disagree, or of the first.

    Nothing is said of a radius, or an exponent, within the margin of neither growing nor shrinking.
    """
    radius, margin = _first(subject), subject.limits["radius_margin"]
    if isinstance(radius, NotApplicable):
        return radius
    name, unit = "leading Lyapunov exponent", "nats per step"
    if radius.says > 0:
        return Evidence(name, radius.exponent, unit, -margin, "above", "radius_margin")
    return Evidence(name, radius.exponent, unit, margin, "below", "radius_margin")


def _first(subject: Subject) -> Radius | NotApplicable:
    margin, radii = subject.limits["radius_margin"], subject.radii
    if isinstance(radii, NotApplicable):
        return radii
    decided = [radius for radius in radii if abs(radius.says) > margin]
    if not decided:
        return NotApplicable("its spectral radius is too near its threshold to foretell anything")

    def disagrees(radius: Radius) -> bool:
        return radius.says * radius.exponent < 0 and abs(radius.exponent) > margin

    return next(filter(disagrees, decided), decided[0])


def _misleads(subject: Subject, evidence: Evidence) -> Finding:
    radius = _first(subject)
    assert isinstance(radius, Radius)
    above = radius.says > 0
    said, done = ("explode", "shrink") if above else ("vanish", "grow")
    return Finding(
        "misleading-radius",
        "info",
        subject.name,
        f"Its spectral radius, {'above' if above else 'below'} {radius.threshold:g}, is said to "
        f"make gradients {said}; here they {done}, and the measurement holds",
        (
            evidence,
            Evidence("spectral radius", radius.value, f"in {radius.route}"),
        ),
        (
            "Inputs and state hold the activation function where its slope is smaller than its "
            "largest, so that every step shrinks more than the matrix alone tells",
        )
        if above
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
    _exponent,
    _misleads,
    ("radius_margin",),
    (),
    (PASCANU,),
    rests_on="forward",
    kind="advice",
)
