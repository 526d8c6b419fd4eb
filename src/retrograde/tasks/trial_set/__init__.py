"""Models made sick in known ways, and healthy ones: what the diagnosis is held to.

    python -m retrograde.tasks.trial_set

prints, for the half that thresholds may be set by and for the half that is looked at once, which
finding comes first in models of each kind.
"""

from retrograde.tasks.trial_set import (
    healthy,
    later,
    memory,
    nothing_left,
    realistic,
    soundness,
    together,
    wiring,
)
from retrograde.tasks.trial_set.case import HALVES, Case, Half, Training, halves

CASES: tuple[Case, ...] = (
    *wiring.CASES,
    *soundness.CASES,
    *nothing_left.CASES,
    *memory.CASES,
    *together.CASES,
    *healthy.CASES,
    *realistic.CASES,
    *later.CASES,
)
"""All cases, by what they ask: sick ones first."""

HALF = halves(CASES)
"""The half of each, by name."""

BY_NAME = {case.name: case for case in CASES}

__all__ = ["BY_NAME", "CASES", "HALF", "HALVES", "Case", "Half", "Training", "half"]


def half(name: Half) -> tuple[Case, ...]:
    """The cases of one half.

    Example:
        >>> from retrograde.tasks.trial_set import half
        >>> "batch first not said" in {case.name for case in half("development")}
        True
    """
    return tuple(case for case in CASES if HALF[case.name] == name)
