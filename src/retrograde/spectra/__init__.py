"""What the recurrence would do with any gradient: Jacobians, their spectra, bounds and horizons."""

from retrograde.spectra.bounds import Bound, Radius, recurrent_matrices
from retrograde.spectra.exponents import Exponents
from retrograde.spectra.horizons import Horizons, compare
from retrograde.spectra.jacobians import Chain
from retrograde.spectra.singular import SingularValues
from retrograde.spectra.spectrum import Spectrum, spectrum
from retrograde.spectra.weights import inspect_weights

__all__ = [
    "Bound",
    "Chain",
    "Exponents",
    "Horizons",
    "Radius",
    "SingularValues",
    "Spectrum",
    "compare",
    "inspect_weights",
    "recurrent_matrices",
    "spectrum",
]
