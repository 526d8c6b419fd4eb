"""The rules, in the order in which they are told: causes before their consequences."""

from collections.abc import Mapping

from retrograde.diagnosis.rules.balance import CONFLICT, OUTWEIGHS
from retrograde.diagnosis.rules.folklore import MISLEADS
from retrograde.diagnosis.rules.gates import DEAD, DOUBLE, SATURATED, SHORT
from retrograde.diagnosis.rules.growth import EXPLODING, NO_GRADIENT, NON_FINITE
from retrograde.diagnosis.rules.kept import KEPT
from retrograde.diagnosis.rules.reach import NEAR, VANISHING
from retrograde.diagnosis.rules.rule import Rule

RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        KEPT,
        NON_FINITE,
        NO_GRADIENT,
        EXPLODING,
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

__all__ = ["RULES", "Rule"]
