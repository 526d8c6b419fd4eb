"""In what rows the loss steps are taken: as asked, or by length and memory, and for given bins."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.decomposition.bins import lag_bins
from retrograde.engine.entries import FULL_ROWS, Entries
from retrograde.errors import ArgumentError

RELATIVE = 16
"""Lags are known to this part of themselves where rows are merged and the caller did not say."""

TABLES = 2**31
"""Rows are merged by default where the tables by loss step and use step take more bytes."""


def rows_for(
    direct: Float[Tensor, "T B S"],
    parameters: int,
    max_rows: int | None = None,
    relative: int | None = None,
) -> Entries:
    """Rows as asked; by default one for each loss step or block, unless their tables are too large.

    Args:
        direct: what the loss gives to the state at each step.
        parameters: how many there are, each with a table of norms and one of shares.
        max_rows, relative: as in `decompose`.

    Raises:
        ArgumentError: for a number that is not a positive integer, or both of them.
    """
    max_rows = _checks.optional_whole("max_rows", max_rows)
    relative = _checks.optional_whole("relative", relative)
    if max_rows is not None and relative is not None:
        raise ArgumentError(
            f"give max_rows or relative, not both; got max_rows={max_rows} and relative={relative}"
        )
    if relative is not None:
        return Entries.merging(direct, relative)
    entries = Entries.of(direct, max_rows)
    tables = 2 * parameters + 2  # two more are those of the adjoint and its lags
    if max_rows is None and 8 * tables * len(direct) * len(entries) > TABLES:
        return Entries.merging(direct, RELATIVE)
    return entries


def lag_rows(entries: Entries) -> Entries:
    """The rows that questions by lag are answered from: merged ones in place of blocks.

    A block of loss steps knows lags to its width alone, and a merged row to a part of the lag.
    """
    if entries.relative or entries.single:
        return entries
    return Entries.merging(entries.direct, RELATIVE)


def telling(entries: Entries, lags: tuple[range, ...]) -> Entries:
    """The rows that tell bins exactly; merged ones do for octaves, which are many."""
    entries = lag_rows(entries)
    relative, edge = entries.relative, lags[-1].start
    if not relative or edge <= relative or lags == lag_bins("octaves", len(entries.direct)):
        return entries
    return replace(entries, exact=max(bin_.start for bin_ in lags if bin_.start <= FULL_ROWS))
