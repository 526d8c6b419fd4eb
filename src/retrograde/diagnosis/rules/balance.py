"""Parts that work against each other: output layer and recurrence, near and far lags."""

import math

from retrograde._words import lag_in_words
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.rules.reach import PASCANU
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.subject import Subject


def _decades(subject: Subject) -> float:
    """log10 of the relative gradient of what comes after over that of the layer."""
    b = subject.balance
    sizes = () if b is None else (b.layer, b.layer_weight, b.after, b.after_weight)
    if not sizes or not all(0 < size < math.inf for size in sizes):
        return math.nan
    assert b is not None
    return math.log10((b.after / b.after_weight) / (b.layer / b.layer_weight))


def _imbalance(subject: Subject) -> Evidence | NotApplicable:
    if subject.balance is None:
        return NotApplicable("no output layer is known to read it directly")
    if subject.live is None:
        return NotApplicable(subject.why_not_live)
    value = subject.limits["usual_imbalance"] - _decades(subject)
    if math.isnan(value):
        return NotApplicable("a gradient or a weight is 0 as a whole, or not finite")
    limit = subject.limits["imbalance"]
    return Evidence("imbalance", value, "powers of ten", limit, "below", "imbalance")


def _explodes(subject: Subject) -> str:
    growth, _ = subject.growth
    return "its gradient explodes" if growth > subject.limits["growth_total"] else ""


def _outweighs(subject: Subject, evidence: Evidence) -> Finding:
    b = subject.balance
    assert b is not None
    return Finding(
        "output-outweighs",
        "warning",
        subject.name,
        "The output layer outweighs the recurrence: its weights are so large that the recurrent "
        "weights get a gradient out of all proportion to their own size",
        (
            evidence,
            Evidence("gradient of the recurrent layer", b.layer, "L2 norm"),
            Evidence("gradient of what comes after", b.after, "L2 norm"),
            Evidence("weights of the recurrent layer", b.layer_weight, "L2 norm"),
            Evidence("weights of what comes after", b.after_weight, "L2 norm"),
        ),
        (
            "The output layer's weights are too large: they multiply what comes back",
            "The targets are not scaled, and the output layer has to make up for it",
        ),
        (
            "Scale the targets, and start the output layer from its default",
            "Clip the groups apart: one norm over both lets the larger one decide for the other",
        ),
    )


def _against(subject: Subject) -> Evidence | NotApplicable:
    flow = subject.live
    if flow is None:
        return NotApplicable(subject.why_not_live)
    share = flow.by_lag().share
    if not bool(share.isfinite().all()):
        return NotApplicable("its gradient is 0 as a whole, or not finite: parts have no share")
    against = float(share[share < 0].sum())
    limit = subject.limits["conflict"]
    return Evidence(
        "shares against the rest", against, "of the gradient", limit, "above", "conflict"
    )


def _conflict(subject: Subject, evidence: Evidence) -> Finding:
    flow = subject.live
    assert flow is not None
    by_lag = flow.by_lag()
    share = by_lag.share.tolist()
    low = min(range(len(share)), key=share.__getitem__)
    high = max(range(len(share)), key=share.__getitem__)

    def words(number: int) -> str:
        return lag_in_words(by_lag.lags[number])

    return Finding(
        "conflicting-lags",
        "warning",
        subject.name,
        f"Lags pull in opposite directions: lags {words(low)} against lags {words(high)}, and the "
        "gradient is what they leave of each other",
        (
            evidence,
            Evidence(f"share of lags {words(low)}", share[low], "of the gradient"),
            Evidence(f"share of lags {words(high)}", share[high], "of the gradient"),
        ),
        (
            "The task asks the same weights for opposite things at different lags",
            "The optimum is near: what is left of the gradient is a difference of large parts",
        ),
        (
            "Look at the loss apart by horizon; a second layer or a separate head can take one of "
            "the two lags",
            "Mind element-wise clipping: it acts on such differences in an uneven way",
        ),
        steps=(0, flow.steps - 1),
    )


OUTWEIGHS = Rule(
    "output-outweighs",
    "The output layer outweighs the recurrence",
    "L2 norm of the gradient over that of the weights, of the layer that runs last against that of "
    "everything with weights that runs after it. Three powers of ten above what is usual, no one "
    "learning rate and no one clipping norm serves both. An output layer that is small, or zero, "
    "is no finding: it grows with the first steps. Nor is anything said where the gradient "
    "explodes on its way back, which makes it large as well.",
    _imbalance,
    _outweighs,
    ("imbalance", "usual_imbalance"),
    ("fresh-output", "clip-groups"),
    (
        PASCANU,
        "https://github.com/google-research/flood-forecasting/issues/298",
    ),
    rests_on="given",
    unless=_explodes,
    kind="scale",
)
CONFLICT = Rule(
    "conflicting-lags",
    "Near and far lags conflict",
    "Shares by lag are signed: a negative one points against the whole gradient. Where they add up "
    "to much, what the optimiser sees is a small difference of large parts.",
    _against,
    _conflict,
    ("conflict",),
    (),
    (PASCANU,),
    kind="memory",
)
