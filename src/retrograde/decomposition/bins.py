"""Bins of lags, and the sum of all adjoint rows whose lags share one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.engine.adjoint import AdjointSpan
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

    Where every entry has several rows, `classes` of them, each class has bins of its own.
    """

    def __init__(self, lags: tuple[range, ...], classes: int = 1):
        self._count, self._classes = len(lags), classes
        self._starts = torch.tensor([bin_.start for bin_ in lags[1:]], dtype=torch.int64)

    @property
    def rows(self) -> int:
        """The number of sums at each step."""
        return self._count * self._classes

    def sum(
        self, span: AdjointSpan, lags: Int[Tensor, "E K"] | None = None
    ) -> tuple[Float[Tensor, "M K B S"], Int[Tensor, "M K"]]:
        """At each step a row for each class and bin, and the largest exponent of its nonzero rows.

        Args:
            span: the rows.
            lags: their lags, if they are to count as rows of other steps.
        """
        exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        return rows_together(span.values, self.places(span, lags), exponent, self.rows)

    def places(
        self, span: AdjointSpan, lags: Int[Tensor, "E K"] | None = None
    ) -> Int[Tensor, "N K"]:
        """The number of the sum that each row belongs to.

        Rows come entry by entry, latest first; so do the sums, class by class, farthest bin first.
        """
        return self.of_lags(span.lags if lags is None else lags)

    def of_lags(self, lags: Int[Tensor, "E K"]) -> Int[Tensor, "N K"]:
        """The same of entries with these lags."""
        farther = self._farther(lags)
        last = torch.arange(self._count - 1, self.rows, self._count, device=lags.device)
        return (last.view(-1, 1) - farther.unsqueeze(1)).flatten(0, 1)

    def _farther(self, lags: Int[Tensor, "*R"]) -> Int[Tensor, "*R"]:
        """The number of the bin of each lag, the nearest first."""
        return torch.bucketize(lags.contiguous(), self._starts.to(lags.device), right=True)

    def nearest_first(self, sums: Scaled) -> Scaled:
        """The same rows with the bins of each class in order of lag."""
        order = torch.arange(len(sums.exponent), device=sums.exponent.device)
        order = order.view(-1, self._count).flip(1).flatten()
        return Scaled(sums.values[order], sums.exponent[order])
