"""Questions to one backward pass: each is a fold over the engine's stream of adjoint steps."""

from retrograde.decomposition.at_lags import NormsAtLags
from retrograde.decomposition.flow import Flow
from retrograde.decomposition.from_recording import decompose
from retrograde.decomposition.parts import Parts
from retrograde.decomposition.residual import Residual

ByTime = ByLag = ByParameter = Split = Parts
"""Names from when each decomposition had a type of its own, kept for one release."""

__all__ = [
    "ByLag",
    "ByParameter",
    "ByTime",
    "Flow",
    "NormsAtLags",
    "Parts",
    "Residual",
    "Split",
    "decompose",
]
