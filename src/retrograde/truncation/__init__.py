"""How much of a gradient is left when back-propagation through time is truncated."""

from retrograde.truncation.horizon import Horizon
from retrograde.truncation.measures import Measures
from retrograde.truncation.signal import Signal

__all__ = ["Horizon", "Measures", "Signal"]
