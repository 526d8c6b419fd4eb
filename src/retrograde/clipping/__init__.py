"""Clipping at the end of the backward pass: where, how much, and what it did."""

from retrograde.clipping.advice import GroupAdvice, Suggestion, suggest
from retrograde.clipping.clipper import Clipper, clip
from retrograde.clipping.gradients import Part
from retrograde.clipping.groups import scope_of
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
    "AbstractPolicy",
    "AutoClip",
    "ByGroup",
    "Chain",
    "Clipper",
    "GlobalNorm",
    "GroupAdvice",
    "GroupStatistics",
    "Part",
    "Statistics",
    "Suggestion",
    "Value",
    "ZClip",
    "chain",
    "clip",
    "scope_of",
    "suggest",
]
