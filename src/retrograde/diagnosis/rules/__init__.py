"""Experiments and rules, in the order in which they are told: question by question (`KINDS`)."""

from collections.abc import Mapping

from retrograde.diagnosis.experiments import EXPERIMENTS, Experiment
from retrograde.diagnosis.finding import KINDS
from retrograde.diagnosis.rules.balance import CONFLICT, OUTWEIGHS
from retrograde.diagnosis.rules.gates import DEAD, DOUBLE, SATURATED, SHORT
from retrograde.diagnosis.rules.growth import EXPLODING, NO_GRADIENT, NON_FINITE
from retrograde.diagnosis.rules.reach import NEAR, VANISHING
from retrograde.diagnosis.rules.rule import Rule
from retrograde.diagnosis.rules.spectral_radius import MISLEADS
from retrograde.diagnosis.rules.void import DECIDED, VOID

LAYER_RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        VOID,
        NON_FINITE,
        NO_GRADIENT,
        EXPLODING,
        DECIDED,
        SATURATED,
        DEAD,
        DOUBLE,
        SHORT,
        VANISHING,
        NEAR,
        OUTWEIGHS,
        CONFLICT,
        MISLEADS,
    )
}

_ALL: tuple[Experiment | Rule, ...] = (*EXPERIMENTS.values(), *LAYER_RULES.values())

RULES: Mapping[str, Experiment | Rule] = {
    rule.name: rule for rule in sorted(_ALL, key=lambda rule: KINDS.index(rule.kind))
}
"""What is looked at: question by question, the model as a whole first, then layer by layer."""

__all__ = ["LAYER_RULES", "RULES", "Rule"]
