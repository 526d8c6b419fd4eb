"""A policy at work inside the back-propagation of a layer, and how often it bit."""

import torch
from torch import Tensor

from retrograde.cells.base import Factors
from retrograde.clipping import AbstractInside


class Clipping:
    """What a layer needs to know of the policy in its back-propagation.

    Args:
        policy: what clips.
    """

    def __init__(self, policy: AbstractInside):
        self.policy = policy
        self._clipped: Tensor | float = 0.0  # on the device, read when somebody asks
        self._looked_at = 0

    def note(self, factors: Factors) -> None:
        """Count the factors of some steps of one layer."""
        for each in factors.here.values():
            self._clipped = self._clipped + (each < 1).sum(dtype=torch.float64)
            self._looked_at += each.numel()

    @property
    def bit(self) -> float:
        """The share of what the policy looked at that it made smaller; NaN before it saw any."""
        return float(self._clipped) / self._looked_at if self._looked_at else float("nan")
