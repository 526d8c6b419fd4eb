"""One backward pass fed to any number of questions, in the rows that its entries ask for."""

from collections.abc import Iterable

import torch

from retrograde.engine.adjoint import Fold, SummingFold, rows_of_entries
from retrograde.engine.entries import Entries
from retrograde.engine.merging import merged_rows
from retrograde.engine.unroll import Unrolled


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
    alone = folds[0] if len(folds) == 1 and generator is None else None
    summing = alone if isinstance(alone, SummingFold) else None
    rows = (
        merged_rows(unrolled, entries, generator, summing)
        if entries.relative
        else rows_of_entries(unrolled, entries, summing)
    )
    for span in rows:
        for each in folds:
            each.update(span)
        del span  # the next one finds room where it was
