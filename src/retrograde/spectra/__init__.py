"""What the recurrence would do with any gradient: Jacobians, their spectra, bounds and memory."""

from retrograde.spectra.bounds import Bound, Radius, recurrent_matrices
from retrograde.spectra.exponents import Exponents
from retrograde.spectra.jacobians import Chain
from retrograde.spectra.memory import Memory, compare
from retrograde.spectra.singular import SingularValues
from retrograde.spectra.spectrum import Spectrum, spectrum
from retrograde.spectra.weights import inspect_weights

Horizons = Memory  # its earlier name, until 0.2

__all__ = [
    "Bound",
    "Chain",
    "Exponents",
    "Memory",
    "Radius",
    "SingularValues",
    "Spectrum",
    "compare",
    "inspect_weights",
    "recurrent_matrices",
    "spectrum",
]
