"""Time: the forward unrolling, and the one backward recursion that every analysis folds over."""

from retrograde.engine.adjoint import AdjointStep, Fold, backpropagate, fold
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import Scaled
from retrograde.engine.unroll import Unrolled, unroll

__all__ = [
    "AdjointStep",
    "Entries",
    "Fold",
    "Scaled",
    "Unrolled",
    "backpropagate",
    "fold",
    "unroll",
]
