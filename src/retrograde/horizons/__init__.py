"""Is the window long enough? The truncation curve of a model over batches."""

from retrograde.horizons.over_batches import BATCHES, horizon
from retrograde.horizons.over_training import over_training

__all__ = ["BATCHES", "horizon", "over_training"]
