"""What the recurrent weights of a model say before it has seen a batch."""

from retrograde.spectra.initialisations import Likeness
from retrograde.spectra.kinds import Kind
from retrograde.spectra.weights import (
    Bound,
    GateWeights,
    Horizon,
    Inspection,
    LayerWeights,
    inspect_weights,
)

__all__ = [
    "Bound",
    "GateWeights",
    "Horizon",
    "Inspection",
    "Kind",
    "LayerWeights",
    "Likeness",
    "inspect_weights",
]
