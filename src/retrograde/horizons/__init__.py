"""Is the window long enough? The truncation curve of a model over batches."""

from retrograde.horizons.over_batches import BATCHES, TRAINING_STEPS, horizon
from retrograde.horizons.over_training import over_training

__all__ = ["BATCHES", "TRAINING_STEPS", "horizon", "over_training"]
