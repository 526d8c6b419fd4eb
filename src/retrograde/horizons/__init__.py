"""Is the window long enough? The truncation curve of a model over batches."""

from retrograde.horizons.over_batches import horizon

__all__ = ["horizon"]
