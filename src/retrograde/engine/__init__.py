"""Time: the forward unrolling, and the one backward recursion that every analysis folds over."""

from retrograde.engine.adjoint import (
    AdjointSpan,
    AdjointStep,
    Fold,
    backpropagate,
    input_adjoints,
    spans,
)
from retrograde.engine.boundary import Boundary, Read
from retrograde.engine.clipping import with_factors
from retrograde.engine.crossings import backpropagate_by_crossing
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import AdjointSums, ParameterSums
from retrograde.engine.scaling import Scaled
from retrograde.engine.scan import scan
from retrograde.engine.unroll import Chunk, Unrolled, unroll

Border = Boundary  # its earlier name, until 0.2

__all__ = [
    "AdjointSpan",
    "AdjointStep",
    "AdjointSums",
    "Boundary",
    "Chunk",
    "Entries",
    "Fold",
    "ParameterSums",
    "Read",
    "Scaled",
    "Unrolled",
    "backpropagate",
    "backpropagate_by_crossing",
    "fold",
    "input_adjoints",
    "scan",
    "spans",
    "unroll",
    "with_factors",
]
