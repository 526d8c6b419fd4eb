"""Bins of lags, and the sum of all adjoint rows whose lags share one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.engine.scaling import NOTHING, Scaled, power_of_two
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

    Where every entry has several rows, `classes` of them, each class has bins of its own.
    """

    def __init__(self, lags: tuple[range, ...], classes: int = 1):
        self._count, self._classes = len(lags), classes
        self._starts = torch.tensor([bin_.start for bin_ in lags[1:]], dtype=torch.int64)
        self._numbers = torch.arange(len(lags) * classes)

    def sum(self, rows: Scaled, sizes: Float[Tensor, "N"], lags: Int[Tensor, "E"]) -> Scaled:
        """One row for each class and bin, on the largest exponent of its rows that are not zero.

        Rows come entry by entry, latest first; so do the sums, class by class, farthest bin first.
        """
        numbers = self._numbers.to(lags.device)
        farther = torch.bucketize(lags, self._starts.to(lags.device), right=True)
        bin_of_row = (numbers[self._count - 1 :: self._count, None] - farther).flatten()
        order = torch.arange(len(sizes), device=lags.device).view(-1, self._classes).T.flatten()
        exponent = torch.where(sizes > 0, rows.exponent, NOTHING)[order]
        top = torch.full_like(numbers, NOTHING).scatter_reduce_(0, bin_of_row, exponent, "amax")
        sums = torch.nn.functional.embedding_bag(
            order,
            rows.values.flatten(1),
            torch.searchsorted(bin_of_row, numbers),
            mode="sum",
            per_sample_weights=power_of_two(exponent - top[bin_of_row], rows.values),
        )
        return Scaled(sums.view(len(top), *rows.values.shape[1:]), top)

    def alone(self, row: Scaled, lag: Int[Tensor, "1"]) -> Scaled:
        """The same of a single row, where there are no classes."""
        bin_ = self._count - 1 - torch.bucketize(lag, self._starts.to(lag.device), right=True)
        values = row.values.new_zeros(self._count, *row.values.shape[1:])
        exponent = row.exponent.new_full((self._count,), NOTHING)
        return Scaled(
            values.index_copy_(0, bin_, row.values), exponent.index_copy_(0, bin_, row.exponent)
        )

    def nearest_first(self, sums: Scaled) -> Scaled:
        """The same rows with the bins of each class in order of lag."""
        order = torch.arange(len(sums.exponent), device=sums.exponent.device)
        order = order.view(-1, self._count).flip(1).flatten()
        return Scaled(sums.values[order], sums.exponent[order])
