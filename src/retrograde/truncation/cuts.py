"""A pass with its state detached every K steps, and the phases that such a cut can have."""

from dataclasses import replace

import torch

from retrograde.engine.boundary import Boundary
from retrograde.engine.unroll import Unrolled

MOST_PHASES = 8
"""Phases of a cut that are tried: all of them up to this many, else so many evenly spaced."""


def octaves(steps: int) -> tuple[int, ...]:
    """The K at which single phases are looked at: 1, 2, 4, ... up to the number of steps."""
    return tuple(2**power for power in range(steps.bit_length()))


def phases(steps: int) -> tuple[int, ...]:
    """The phases that are tried of a cut every K steps: where it falls first, from 1 to K.

    K itself is among them: that of `x.split(K)`.
    """
    count = min(steps, MOST_PHASES)
    return tuple(steps * number // count for number in range(1, count + 1))


def cut_every(unrolled: Unrolled, steps: int, phase: int) -> Unrolled:
    """The same pass with its state detached before steps phase, phase + K, phase + 2 K, ..."""
    cuts = {}
    for k in range(phase, len(unrolled), steps):
        before, old = unrolled.states[k], unrolled.boundaries.get(k)
        state = before if old is None else old.entering(before)
        cuts[k] = Boundary(state, torch.zeros_like(state, dtype=torch.bool), ())
    return replace(unrolled, boundaries={**unrolled.boundaries, **cuts})
