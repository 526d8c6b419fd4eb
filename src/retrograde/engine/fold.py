"""One backward pass fed to any number of questions, in the rows that its entries ask for."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.engine.adjoint import Fold, SummedSpan, rows_of_entries
from retrograde.engine.binning import Binning
from retrograde.engine.entries import Entries
from retrograde.engine.merging import merged_rows
from retrograde.engine.unroll import Unrolled


@runtime_checkable
class SummingFold(Fold, Protocol):
    """A fold that needs no rows where those whose lags share a bin come as one.

    Attributes:
        starts: the first lags of the bins that it tells apart, the first being 0.
    """

    starts: Sequence[int]

    def add(self, span: SummedSpan, lags: Int[Tensor, "M"]) -> None:
        """Take some neighbouring steps instead of `update`, the last ones first.

        Args:
            span: sums of rows whose lags share a bin, which may be finer ones than its own.
            lags: the first lags of these bins.
        """


class SumsByLag:
    """Rows whose lags no fold tells apart as one, the farthest first.

    Args:
        folds: what takes the sums.
    """

    def __init__(self, folds: Sequence[SummingFold]):
        starts = sorted({start for each in folds for start in each.starts})
        self._folds, self._bins, self.sums = folds, Binning(starts), len(starts)
        self._lags = torch.tensor(starts[::-1])

    def places(self, lags: Int[Tensor, "E K"]) -> Int[Tensor, "E K"]:
        """The number of the sum that rows with these lags belong to."""
        return self.sums - 1 - self._bins.numbers(lags)

    def add(self, span: SummedSpan) -> None:
        """Hand sums over to every fold."""
        for each in self._folds:
            each.add(span, self._lags)


@torch.no_grad()
def fold(
    unrolled: Unrolled,
    entries: Entries,
    folds: Iterable[Fold],
    generator: torch.Generator | None = None,
) -> None:
    """Feed one backward pass to any number of folds.

    Args:
        unrolled: the pass.
        entries: where the loss enters, and in which rows.
        folds: what takes the rows.
        generator: draws the signs of companion rows, where rows are merged and sizes are asked for.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    folds = tuple(folds)
    some = tuple(each for each in folds if isinstance(each, SummingFold))
    summing = SumsByLag(some) if len(some) == len(folds) and generator is None else None
    rows = (
        merged_rows(unrolled, entries, generator, summing)
        if entries.relative
        else rows_of_entries(unrolled, entries, summing)
    )
    for span in rows:
        for each in folds:
            each.update(span)
        del span  # the next one finds room where it was
