"""By lag: the exact sum of all C[t,k] whose lag t - k falls into a bin, as a matrix.

The pull-back is linear, so rows of a bin are summed before they are pulled back, and the outer
products of many steps are one matrix product. A bin costs about as much as one entry row. Where
units lead to themselves alone there need be no rows (`retrograde.engine.unitwise`), and lags are
those of single steps however long the sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.adjoint import AdjointSpan, SummedSpan
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.unitwise import gradients_by_lag, is_unitwise
from retrograde.engine.unroll import Unrolled


@dataclass(frozen=True)
class Lags(AbstractLabels):
    """The question: which parts come from which lags."""

    lags: tuple[range, ...]

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass."""
        if is_unitwise(unrolled):
            axes, rows = ({"lag": self.lags},), gradients_by_lag(unrolled, entries, self.lags)
            return {name: Parts.of(axes, name, each) for name, each in rows.items()}
        sums = LagSums(self.lags, unrolled.cell)
        fold(unrolled, entries, [sums])
        return sums.result()

    def divides(self, other: AbstractLabels) -> bool:
        """Whether its bins lie each inside of one of another question's, and fill them."""
        if not isinstance(other, Lags):
            return False
        starts = {each.start for each in self.lags}
        return self.lags[-1].stop == other.lags[-1].stop and starts.issuperset(
            each.start for each in other.lags
        )

    def joined(self, parts: Mapping[str, Parts], other: "Lags") -> Mapping[str, Parts]:
        """Its parts, summed to those of a question whose bins it divides."""
        starts = torch.tensor([each.start for each in other.lags])
        own = torch.tensor([each.start for each in self.lags])
        numbers = torch.searchsorted(starts, own, right=True) - 1
        axes, groups = ({"lag": other.lags},), ((numbers, len(starts)),)
        return {name: each.regrouped(axes, groups) for name, each in parts.items()}


class LagSums:
    """The fold behind `by_lag`; with a single bin it is the whole gradient."""

    def __init__(self, lags: tuple[range, ...], cell: AbstractCell):
        self._lags, self._bins, self._sums = lags, LagBins(lags), AdjointSums(cell, len(lags))
        self.starts = self._bins.starts

    def update(self, span: AdjointSpan) -> None:
        self._sums.add_rows(span, self._bins.of_lags(span.lags))

    def add(self, span: SummedSpan, lags: Int[Tensor, "M"]) -> None:
        """Rows that were summed by lag on their way."""
        places = self._bins.of_lags(lags.unsqueeze(1).expand_as(span.exponent))
        self._sums.add(span, span.values, span.exponent, places)

    def result(self) -> dict[str, Parts]:
        axes = ({"lag": self._lags},)
        return {
            name: Parts.of(axes, name, self._bins.nearest_first(total))
            for name, total in self._sums.result().items()
        }
