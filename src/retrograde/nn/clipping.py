"""A policy at work inside the back-propagation of a layer, and how often it clipped."""

import torch
from torch import Tensor

from retrograde.cells.rewiring import Factors
from retrograde.clipping import AbstractInside


class Clipping:
    """What a layer needs to know of the policy in its back-propagation.

    Args:
        policy: what clips.
    """

    def __init__(self, policy: AbstractInside):
        self.policy = policy
        self._clipped: dict[torch.device, Tensor] = {}  # stays there until somebody asks
        self._looked_at = 0

    def note(self, factors: Factors) -> None:
        """Count the factors of some steps of one layer."""
        for each in factors.values():
            clipped = (each < 1).sum()
            self._clipped[each.device] = self._clipped.get(each.device, 0) + clipped
            self._looked_at += each.numel()

    @property
    def clip_rate(self) -> float:
        """The share of what the policy looked at that it made smaller; NaN before it saw any."""
        clipped = sum(int(count) for count in self._clipped.values())
        return clipped / self._looked_at if self._looked_at else float("nan")
