"""Questions to one backward pass: each is a fold over the engine's stream of adjoint steps."""

from retrograde.decompose.by_lag import ByLag
from retrograde.decompose.by_parameter import ByParameter
from retrograde.decompose.by_time import ByTime
from retrograde.decompose.flow import Flow, decompose
from retrograde.decompose.residual import Residual
from retrograde.decompose.split import Split

__all__ = ["ByLag", "ByParameter", "ByTime", "Flow", "Residual", "Split", "decompose"]
