"""The forward pass of a recording once more, in the precision and the parts of the analysis."""

import torch

from retrograde.decomposition.non_finite import first_non_finite
from retrograde.engine import Unrolled, unroll, with_factors
from retrograde.errors import NonFiniteError
from retrograde.recording import Recorded

AGREES = 1e-2
"""A forward pass agrees with its recording if it ends in the same state to this part of it."""


def ends_as_recorded(recorded: Recorded, unrolled: Unrolled, rounding: float) -> bool | None:
    """Whether a pass that was run again ends in the state that the recorded one ended in.

    To a hundredth, or 32 rounding errors in low precision. None where that is not known.
    """
    final = recorded.final
    if final is None:
        return None
    tolerance = max(AGREES, 32 * max(rounding, recorded.rounding or 0.0))
    difference = torch.linalg.vector_norm(unrolled.between(len(unrolled), len(unrolled))[0] - final)
    return bool(difference <= tolerance * torch.linalg.vector_norm(final))


def replay(recorded: Recorded) -> Unrolled:
    """Run the cell over what it read.

    Raises:
        NonFiniteError: if a NaN or an infinity was recorded or comes up, with its place.
    """
    unrolled = recorded.ran
    if unrolled is None:
        unrolled = unroll(
            recorded.cell,
            recorded.inputs,
            recorded.initial,
            boundaries=recorded.boundaries,
            lengths=recorded.lengths,
        )
    place = first_non_finite(recorded, unrolled)
    if place:
        raise NonFiniteError(f"{place}. A decomposition needs a finite pass", place)
    return with_factors(unrolled, recorded.direct)
