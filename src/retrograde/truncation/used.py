"""What a trained model uses: how much the loss rises when all older than K steps is replaced."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SHARE = 0.05
"""A lag is used while replacing it and all older ones costs this share of what it costs at most."""

ERRORS = 2.0
"""And while that is this many standard errors over batches above nothing."""

ROUNDING = 4
"""A loss that moves by no more than so many rounding errors has not moved."""


@dataclass(frozen=True, eq=False)
class Used:
    """The loss when all that is older than K steps is replaced, in the forward pass.

    Attributes:
        steps: the K, from 0 (all, the present step included) to T (nothing is replaced).
        losses: of each batch and K.
        past: what the past was replaced by: "another sample" (its states), "mean" (of the layer's
            input) or "zeros".

    Example:
        >>> import torch
        >>> from retrograde.truncation import Used
        >>> losses = torch.tensor([[1.0, 0.9, 0.9, 0.2], [1.1, 1.0, 1.0, 0.2]])
        >>> Used((0, 1, 3, 5), losses.double(), "another sample").lag  # lags 3 and 4
        4
    """

    steps: tuple[int, ...]
    losses: Float[Tensor, "N K"]
    past: str

    @property
    def bins(self) -> tuple[range, ...]:
        """The lags from each K to the next one."""
        return tuple(map(range, self.steps[:-1], self.steps[1:]))

    @property
    def rise(self) -> Float[Tensor, "K"]:
        """By how much the loss is larger than with nothing replaced, the mean over batches."""
        return (self.losses - self.losses[:, -1:]).mean(0)

    @property
    def by_bin(self) -> Float[Tensor, "M"]:
        """What the lags from each K to the next one are worth: the fall of the loss with them."""
        rise = self.rise
        return rise[:-1] - rise[1:]

    @property
    def rounding(self) -> bool:
        """Whether no loss differs by more than rounding from that with nothing replaced."""
        whole = self.losses[:, -1:]
        eps = torch.finfo(torch.float32).eps  # that of most losses
        return bool(((self.losses - whole).abs() <= ROUNDING * eps * whole.abs()).all())

    @property
    def lag(self) -> int:
        """The farthest lag that is used, to within a bin; -1 if none is.

        Replacing the bin and all older lags costs 5 % of what it costs at most, and that is two
        standard errors over batches above nothing.
        """
        rises = self.losses - self.losses[:, -1:]
        count = len(rises)
        error = rises.std(0) / count**0.5 if count > 1 else torch.zeros_like(rises[0])
        rise = rises.mean(0)
        used = (rise > SHARE * rise.max()) & (rise > ERRORS * error)
        found = torch.nonzero(used[:-1])
        return self.steps[int(found[-1]) + 1] - 1 if len(found) else -1
