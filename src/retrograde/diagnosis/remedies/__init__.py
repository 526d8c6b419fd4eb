"""What can be tried on a copy of a model, by what it changes; `REMEDIES` has all of it by name."""

from retrograde.diagnosis.remedies import generations, scale, weights, wiring
from retrograde.diagnosis.remedies.remedy import (
    REMEDIES,
    Applied,
    Remedy,
    Target,
    Unfit,
    assignment,
    expression,
)

__all__ = [
    "REMEDIES",
    "Applied",
    "Remedy",
    "Target",
    "Unfit",
    "assignment",
    "expression",
    "generations",
    "scale",
    "weights",
    "wiring",
]
