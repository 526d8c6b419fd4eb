"""How much of a gradient is left when back-propagation through time is truncated."""

from retrograde.truncation.horizon import Column, Horizon
from retrograde.truncation.measures import Measures
from retrograde.truncation.price import Price
from retrograde.truncation.signal import Signal
from retrograde.truncation.used import Used

__all__ = ["Column", "Horizon", "Measures", "Price", "Signal", "Used"]
