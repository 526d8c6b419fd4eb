"""Are the recurrent weights drawn much too large? Fresh weights, as torch draws them, tell.

ratio = standard deviation of the recurrent weights / (1/sqrt(3 H))

torch draws from U(-1/sqrt(H), 1/sqrt(H)), whose standard deviation is 1/sqrt(3 H).
"""

import math

import torch
from torch import nn

from retrograde.diagnosis.copies import copied_model, seeded
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.run import run
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.thresholds import limits
from retrograde.recording import recurrent_layers


def ratio(layer: nn.Module, hidden: int) -> float:
    """The spread of the recurrent weights beside that of torch's initialisation; 0 without any."""
    weights = [p.detach() for n, p in layer.named_parameters() if "weight_hh" in n]
    spreads = [float(w.double().square().mean().sqrt()) for w in weights if w.numel()]
    return max(spreads, default=0.0) * math.sqrt(3 * hidden)


def _trouble(subject: Subject, size: float) -> str:
    """What weights of this size do to a layer; "" if nothing is wrong with it.

    Training makes weights grow and gates decide, so that much of both is asked for.
    """
    if subject.live is None:
        return ""
    share = max((each.saturated for each in subject.activities), default=0.0)
    growth = subject.growth[0]
    found = []
    large = size > 2 * subject.limits["weight_scale"]
    if share > subject.limits["saturated_share"] / (2 if large else 1):
        found.append("a gate is saturated")
    if growth > subject.limits["growth_total"]:
        found.append("the gradient grows on its way back")
    return " and ".join(found)


def _look(case: Case) -> list[Finding] | NotApplicable:
    layers = {
        name: layer
        for name, layer in recurrent_layers(case.model).items()
        if name in case.subjects and isinstance(layer, nn.RNNBase | nn.RNNCellBase)
    }
    if not layers:
        return NotApplicable("no layer is one of torch's, whose usual weights are known")
    findings = []
    for name, layer in layers.items():
        size = ratio(layer, int(layer.hidden_size))
        trouble = _trouble(case.subjects[name], size)
        if size > case.limits["weight_scale"] and trouble and _fresh_is_well(case, name, size):
            findings.append(_large(case.subjects[name], size, trouble))
    return findings


def _fresh_is_well(case: Case, name: str, size: float) -> bool:
    """Whether nothing of the kind is wrong with a copy whose layer has fresh weights."""
    copy = copied_model(case.model)
    with seeded(case.seed), torch.no_grad():
        recurrent_layers(copy)[name].reset_parameters()  # type: ignore[operator]
    try:
        again = run(copy, case.batch, case.loss_fn, case.seed)
        found, _ = subjects(again.recording, limits(), case.needs_lag, name)
    except Exception:
        return False
    return name in found and found[name].place is None and not _trouble(found[name], size)


def _large(subject: Subject, size: float, trouble: str) -> Finding:
    name, limit = subject.name, subject.limits["weight_scale"]
    return Finding(
        "weight-scale",
        "warning",
        name,
        f"The recurrent weights of {name!r} are far larger than torch draws them: "
        f"{trouble}, which fresh weights mend",
        (
            Evidence(
                "spread over that of torch's initialisation",
                size,
                "times",
                limit,
                "below",
                "weight_scale",
            ),
        ),
        (
            "The weights were drawn from N(0, 1) or U(-1, 1), whatever the number of units",
            "Or steps of the optimiser that were too large have made them grow",
        ),
        (
            f"Draw them as torch does, from U(-1/sqrt(H), 1/sqrt(H)): {name}.reset_parameters(); "
            "or an orthogonal matrix for each gate",
            "If they were trained: go back to an earlier checkpoint, lower the rate, and clip",
        ),
    )


WEIGHT_SCALE = Experiment(
    "weight-scale",
    "The recurrent weights are too large",
    "The spread of the recurrent weights beside that of torch's initialisation, where gates are "
    "saturated or the gradient explodes; the same pass is run with fresh weights, and blamed on "
    "their size if that mends it.",
    _look,
    thresholds=("weight_scale",),
    kind="scale",
    remedies=("fresh", "orthogonal", "lower-rate"),
)
