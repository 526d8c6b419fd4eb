"""Bins of lags."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


class Binning:
    """Bins of neighbouring lags, the nearest first.

    Args:
        starts: the first lag of each, ascending from 0.
    """

    def __init__(self, starts: Sequence[int]):
        self._count, self._starts = len(starts), torch.tensor(starts[1:], dtype=torch.int64)

    def __len__(self) -> int:
        return self._count

    def numbers(self, lags: Int[Tensor, "*R"]) -> Int[Tensor, "*R"]:
        """The number of the bin of each lag; the first one before there is any."""
        return torch.bucketize(lags.contiguous(), self._starts.to(lags.device), right=True)
