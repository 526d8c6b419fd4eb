"""Sums of rows by class and bin of lags, held until gradients are formed of many steps at once."""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.engine.adjoint import SummedSpan
from retrograde.engine.binning import Binning
from retrograde.engine.unroll import CHUNK, Chunk

HELD = 2**22
"""Adjoints of neighbouring steps are held together up to this many numbers, 16 MiB in float32."""


class Gathered:
    """Sums of rows by class and bin at neighbouring steps, as many of them as may be held.

    Gradients are formed of all these steps at once: each time goes through all gradients in memory.

    Args:
        starts: where the bins of lags begin.
        classes: rows of an entry.
        direct: what the loss gives at each step.

    Attributes:
        bins: these bins.
        left: how many more steps there is room for.
    """

    def __init__(self, starts: Sequence[int], classes: int, direct: Float[Tensor, "T B S"]):
        self.bins, self._sums = Binning(starts), len(starts) * classes
        numbers = self._sums * direct[0].numel()
        self.left = self._most = max(1, min(CHUNK, HELD // max(1, numbers)))
        self._direct, self._first = direct, 0

    @cached_property
    def _values(self) -> Float[Tensor, "N K B S"]:
        # The place of one more step keeps sums apart in the sets of a cache.
        room = self._direct.new_empty(self._sums, self._most + 1, *self._direct.shape[1:])
        return room[:, : self._most]

    @cached_property
    def _units(self) -> Int[Tensor, "N K"]:
        return self._direct.new_empty(self._sums, self._most, dtype=torch.int64)

    def room(self, steps: int) -> Float[Tensor, "N K B S"]:
        """For the sums of so many steps before those that are held."""
        return self._values[:, self.left - steps : self.left]

    def take(self, first: int, units: Int[Tensor, "N K"]) -> None:
        """Hold the sums that were written to the room for them, and their exponents."""
        self._units[:, self.left - units.shape[1] : self.left] = units
        self.left, self._first = self.left - units.shape[1], first

    def give(self, chunk: Chunk) -> SummedSpan | None:
        """All that is held, and hold nothing; it is there until more is written."""
        here, self.left = slice(self.left, self._most), self._most
        if here.start == here.stop:
            return None
        return SummedSpan(self._first, self._values[:, here], self._units[:, here], chunk)
