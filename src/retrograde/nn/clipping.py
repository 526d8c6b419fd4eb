"""A policy at work inside the back-propagation of a layer, and how often it clipped."""

import torch
from torch import Tensor

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

    def note(self, clipped: Tensor, looked_at: int) -> None:
        """Count what was made smaller, of so many factors."""
        self._clipped[clipped.device] = self._clipped.get(clipped.device, 0) + clipped
        self._looked_at += looked_at

    @property
    def clip_rate(self) -> float:
        """The share of what the policy looked at that it made smaller; NaN before it saw any."""
        clipped = sum(int(count) for count in self._clipped.values())
        return clipped / self._looked_at if self._looked_at else float("nan")
