"""What the recurrent weights of a model say before it has seen a batch."""

from retrograde.spectra.weights.initialisations import Likeness
from retrograde.spectra.weights.inspection import Inspection, inspect_weights
from retrograde.spectra.weights.kinds import Kind
from retrograde.spectra.weights.layers import BiasHorizon, GateWeights, LayerWeights, WeightBound

__all__ = [
    "WeightBound",
    "GateWeights",
    "BiasHorizon",
    "Inspection",
    "Kind",
    "LayerWeights",
    "Likeness",
    "inspect_weights",
]
