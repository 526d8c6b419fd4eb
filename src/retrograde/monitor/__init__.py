"""A few numbers of the backward pass, again and again while a model trains, for any logger."""

from retrograde.monitor.history import History
from retrograde.monitor.monitor import Monitor
from retrograde.monitor.trigger import Event

__all__ = ["Event", "History", "Monitor"]
