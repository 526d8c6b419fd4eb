"""The forward pass of a recording once more, in the precision and the parts of the analysis."""

from retrograde.decomposition.non_finite import first_non_finite
from retrograde.engine import Unrolled, unroll, with_factors
from retrograde.errors import NonFiniteError
from retrograde.recording import Recorded


def replay(recorded: Recorded) -> Unrolled:
    """Run the cell over what it read.

    Raises:
        NonFiniteError: if a NaN or an infinity was recorded or comes up, with its place.
    """
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
