"""Bins of lags, and the sum of all adjoint rows whose lags share one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.binning import Binning
from retrograde.engine.gradients import rows_together
from retrograde.engine.scaling import NO_EXPONENT, Scaled
from retrograde.errors import ArgumentError

Bins = str | Sequence[int]


def lag_bins(bins: Bins, steps: int) -> tuple[range, ...]:
    """The lags of each bin, for a sequence of `steps` steps.

    Args:
        bins: "octaves" (0, 1, 2, 3-4, 5-8, ...), "every" (each lag on its own), or the first lag
            of each bin, ascending from 0: (0, 13, 52) is 0-12, 13-51, 52 and more.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(bins, str) and bins == "every":
        starts = list(range(steps))
    elif isinstance(bins, str) and bins == "octaves":
        starts = [0, 1, *(2**i + 1 for i in range(max(1, steps).bit_length()))]
    else:
        words = '"octaves", "every" or the first lag of each bin, as in (0, 13, 52)'
        starts = _checks.whole_numbers("bins", bins, words=words)
        ascending = all(a < b for a, b in zip(starts, starts[1:], strict=False))
        if not starts or starts[0] or not ascending:
            raise ArgumentError(
                "bins must start with 0 and ascend, as in (0, 13, 52); got "
                f"{_checks.shown(tuple(starts))}"
            )
    starts = [start for start in starts if start < max(1, steps)]
    return tuple(
        range(start, stop) for start, stop in zip(starts, [*starts[1:], max(1, steps)], strict=True)
    )


class LagBins:
    """Sums adjoint rows whose lags share a bin: the pull-back is linear, so this comes first.

    Rows come entry by entry, latest first; so do the sums, farthest bin first.

    Attributes:
        starts: the first lags of the bins, the nearest first.
        rows: the number of sums at each step.
    """

    def __init__(self, lags: tuple[range, ...]):
        self.starts, self.rows = [bin_.start for bin_ in lags], len(lags)
        self._bins = Binning(self.starts)

    def sum(self, span: AdjointSpan) -> tuple[Float[Tensor, "M K B S"], Int[Tensor, "M K"]]:
        """At each step a row for each bin, and the largest exponent of its nonzero rows."""
        exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        return rows_together(span.values, self.of_lags(span.lags), exponent, self.rows)

    def of_lags(self, lags: Int[Tensor, "N K"]) -> Int[Tensor, "N K"]:
        """The number of the sum that a row with each of these lags belongs to."""
        return self.rows - 1 - self._bins.numbers(lags)

    def nearest_first(self, sums: Scaled) -> Scaled:
        """The sums, which may come way by way, with the bins of each way in order of lag."""
        order = torch.arange(len(sums.exponent), device=sums.exponent.device)
        order = order.view(-1, self.rows).flip(1).flatten()
        return Scaled(sums.values[order], sums.exponent[order])
