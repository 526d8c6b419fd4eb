"""Clipping, at the end of the backward pass or inside it: where, how much, and what it did."""

from retrograde.clipping.advice import GroupAdvice, Suggestion, suggest
from retrograde.clipping.clipper import Clipper, clip
from retrograde.clipping.gradients import Part
from retrograde.clipping.groups import scope_of
from retrograde.clipping.inside import (
    AbstractInside,
    ChainInside,
    HDetach,
    PreActivationValue,
    StateNorm,
)
from retrograde.clipping.policies import (
    AGC,
    AbstractPolicy,
    AutoClip,
    ByGroup,
    Chain,
    GlobalNorm,
    Value,
    ZClip,
    chain,
)
from retrograde.clipping.statistics import GroupStatistics, Statistics

__all__ = [
    "AGC",
    "AbstractInside",
    "AbstractPolicy",
    "AutoClip",
    "ByGroup",
    "Chain",
    "ChainInside",
    "Clipper",
    "GlobalNorm",
    "GroupAdvice",
    "GroupStatistics",
    "HDetach",
    "Part",
    "PreActivationValue",
    "StateNorm",
    "Statistics",
    "Suggestion",
    "Value",
    "ZClip",
    "chain",
    "clip",
    "scope_of",
    "suggest",
]
