"""Gradients that grow on their way back, and passes that are not finite any more."""

import math

import torch

from retrograde._words import number
from retrograde.cells.leaves import gate_of
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.reach import PASCANU
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject

ARPIT = (
    "Devansh Arpit, Bhargav Kanuparthi, Giancarlo Kerg, Nan Rosemary Ke, Ioannis Mitliagkas, "
    'Yoshua Bengio, "h-detach: Modifying the LSTM Gradient Towards Better Optimization", '
    "ICLR (2019), arXiv 1810.03023"
)

CHAOS = 1e-3
"""A residual above this is no rounding of one pass, it has grown along the sequence."""


def _growth(subject: Subject) -> Evidence | NotApplicable:
    if subject.live is None:
        return NotApplicable(subject.why_not_live)
    total, _ = subject.growth
    limit = subject.limits["growth_total"]
    return Evidence("growth of the adjoint", total, "powers of two", limit, "below", "growth_total")


def _exploding(subject: Subject, evidence: Evidence) -> Finding:
    flow = subject.live
    assert flow is not None
    total, lag = subject.growth
    per_step = total / lag
    dtype, steps_left = _until_overflow(subject, per_step)
    route, without = min(
        subject.growth_without.items(),
        key=lambda pair: -math.inf if pair[1] != pair[1] else pair[1],
    )
    alone = math.nan if without != without else without
    within = steps_left < flow.steps
    passed = gate_of(subject.recorded.cell, route)
    return Finding(
        "exploding",
        "error" if within or subject.sensitive or not _finite(subject) else "warning",
        subject.name,
        f"The gradient explodes on its way back, most of it along {route}",
        (
            evidence,
            Evidence("mean growth", per_step, "powers of two per step"),
            *(
                [Evidence(f"growth without {route}", alone, "powers of two")]
                if alone == alone
                else []
            ),
            Evidence(f"steps until {dtype} overflows", steps_left, "steps"),
        ),
        _causes(subject, route),
        (
            "Make the recurrent weights smaller, or orthogonal: that is where it grows",
            "Clipping by norm at the end keeps the step finite and leaves the growth: what is left "
            "is the direction of the earliest steps",
            "Cut the sequence (truncated back-propagation) if the far past does not matter",
            *_chaos(float(flow.residual)),
        ),
        gate=passed[0].name if passed else None,
        position=passed[1] if passed else None,
        route=route,
        steps=(flow.steps - 1 - lag, flow.steps - 1),
    )


def _causes(subject: Subject, route: str) -> tuple[str, ...]:
    radius = subject.spectral_radius
    if radius is not None:
        first = (
            f"The recurrent weights stretch what passes them: spectral radius {number(radius)}"
            if radius > 1
            else f"The recurrent weights stretch some directions, although their spectral radius "
            f"is {number(radius)}: they are far from normal"
        )
        return (first, "An activation whose slope does not fall off (relu) does not hold it back")
    return (
        f"The recurrent weights behind {route} are large: each step multiplies by them",
        "Open forget gates keep what the recurrent paths have blown up",
        "A learning rate that was too large has made the weights grow",
    )


def _chaos(residual: float) -> tuple[str, ...]:
    if residual <= CHAOS:
        return ()
    return (
        "Take the numbers as sizes: the forward pass is chaotic, and "
        "rounding differences grow in it as the gradient does. A model in float64 gives exact ones",
    )


def _until_overflow(subject: Subject, per_step: float) -> tuple[str, float]:
    """The data type of the gradient, and in how many steps of such growth it ends."""
    assert subject.flow is not None
    gradients = subject.recorded.gradients.values()
    dtype = next((g.dtype for g in gradients), subject.recorded.x.dtype)
    mean = subject.flow.adjoints.log2_mean_by_lag
    start = float(mean[mean.isfinite()][0])
    left = (math.log2(torch.finfo(dtype).max) - start) / per_step
    return str(dtype).removeprefix("torch."), float(math.floor(left))


def _finite(subject: Subject) -> bool:
    return all(bool(g.isfinite().all()) for g in subject.recorded.gradients.values())


def _non_finite(subject: Subject) -> Evidence:
    values = [subject.recorded.inputs, subject.recorded.direct]
    values += subject.recorded.weights.values()
    values += subject.recorded.gradients.values()
    count = sum(int((~value.isfinite()).sum()) for value in values)
    found = max(count, 1) if subject.place else count
    return Evidence("NaN and infinite values", float(found), "values", 0.0, "below")


def _first_place(subject: Subject, evidence: Evidence) -> Finding:
    place = subject.place
    named = [] if place is None or place.growth is None else [place.growth]
    causes = {
        "weight": "A step of the optimiser was infinite or NaN, and the weights have kept it",
        "input": "The data holds it, or a layer before makes it",
        "initial state": "The state is made outside of the layer, or kept from a pass that failed",
        "state": "The recurrent weights are too large for the forward pass",
        "loss": "The loss, or a layer after this one, divides by 0 or takes the log of 0",
        "adjoint": "The gradient explodes on its way back",
    }
    return Finding(
        "non-finite",
        "error",
        subject.name,
        _sentence(str(place) if place else "the gradient is not finite"),
        (evidence, *(Evidence("growth before", g, "powers of two per step") for g in named)),
        (causes[place.what],) if place else (),
        (
            *_smaller_steps(subject),
            "Mend the first place: everything after it is its consequence",
        ),
        gate=place.gate if place else None,
        route=place.route if place else None,
        steps=(place.step, place.step) if place and place.step is not None else None,
    )


def _smaller_steps(subject: Subject) -> tuple[str, ...]:
    """How to hold back a forward pass that has overflowed."""
    if subject.place is None or subject.place.what != "state":
        return ()
    return (
        "Start the recurrent weights from an orthogonal matrix or the identity "
        "(torch.nn.init.orthogonal_, torch.nn.init.eye_), whose largest singular value is 1, or "
        "use tanh, which bounds the state",
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _entries(subject: Subject) -> Evidence | NotApplicable:
    if subject.flow is None:
        return NotApplicable(subject.why_not_live)
    count = float(len(subject.flow.entries))
    return Evidence("steps at which the loss enters", count, "steps", 1.0, "above")


def _no_gradient(subject: Subject, evidence: Evidence) -> Finding:
    wakes = subject.balance is not None and subject.balance.wakes
    later = "; it will once the output layer, all zeros now, has taken a step" if wakes else ""
    return Finding(
        "no-gradient",
        "info" if wakes else "error",
        subject.name,
        f"The loss gives the layer no gradient: dL/dh is exactly 0 at every step{later}",
        (evidence,),
        (
            *(("An output layer that starts from zeros passes nothing back at first",) * wakes),
            "What comes after the layer passes nothing back: weights of 0, a dead relu, a product "
            "with 0, or a mask that leaves no step",
            "The loss is at its optimum",
        ),
        ("Look at the weights and activations between this layer and the loss",),
    )


NO_GRADIENT = Rule(
    "no-gradient",
    "No gradient arrives",
    "Whether the loss enters the layer at any step at all. Where dL/dh is exactly 0 everywhere, no "
    "weight of the layer learns, and there is nothing to take apart. Where all that stands in the "
    "way is a weight of zeros that gets a gradient itself, it is a remark: the next step of the "
    "optimiser opens the way.",
    _entries,
    _no_gradient,
    (),
    ("fresh-output",),
    kind="wiring",
)
EXPLODING = Rule(
    "exploding",
    "The gradient explodes",
    "How far the mean adjoint of the state rises above that at lag 0 on its way back, when its "
    "data type will overflow at that rate, and the route without which it would grow the least: "
    "each is cut everywhere in turn.",
    _growth,
    _exploding,
    ("growth_total",),
    (
        *("spectral-norm", "orthogonal", "truncated-1997", "window", "clip-inside", "clip"),
        "lower-rate",
    ),
    (PASCANU, ARPIT),
    rests_on="sizes",
    kind="scale",
)
NON_FINITE = Rule(
    "non-finite",
    "A NaN or an infinity",
    "The first place at which weights, inputs, states, loss or adjoints are not finite: forwards "
    "the first step, backwards the latest. The backward pass is followed in scaled form, which "
    "goes on where autograd's numbers end.",
    _non_finite,
    _first_place,
    (),
    ("fresh", "spectral-norm"),
    ("https://github.com/pytorch/pytorch/issues/46849",),
    rests_on="given",
    kind="soundness",
)
