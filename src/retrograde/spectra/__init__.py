"""What the recurrence would do with any gradient: Jacobians, their spectra, bounds and horizons."""

from retrograde.spectra.bounds import Bound, recurrent_matrices
from retrograde.spectra.exponents import Exponents
from retrograde.spectra.horizons import Horizons
from retrograde.spectra.jacobians import Chain
from retrograde.spectra.singular import SingularValues
from retrograde.spectra.spectrum import Spectrum, spectrum

__all__ = [
    "Bound",
    "Chain",
    "Exponents",
    "Horizons",
    "SingularValues",
    "Spectrum",
    "recurrent_matrices",
    "spectrum",
]
