"""By route: the parts by lag, split by the route of the last hop, the one that arrives at step k.

Row sums commute with the pull-back, so the rows of a bin are summed before they are split, and a
route costs as much as a bin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import NO_EXPONENT
from retrograde.engine.unroll import Unrolled

DIRECT = "direct"
"""What has made no hop: it enters at the use step itself."""


@dataclass(frozen=True)
class Routes(AbstractLabels):
    """The question: along which routes, and at which lags, parts arrive."""

    lags: tuple[range, ...]

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass."""
        sums = RouteSums(self.lags, unrolled.cell, entries)
        fold(unrolled, entries, [sums])
        return sums.result()


class RouteSums:
    """The fold behind `by_route`."""

    def __init__(self, lags: tuple[range, ...], cell: AbstractCell, entries: Entries):
        self._lags, self._bins, self._entries = lags, LagBins(lags), entries
        self._ways = (DIRECT, *cell.routes)
        self._sums = AdjointSums(cell, len(self._ways) * len(lags))
        self._arriving: tuple[Tensor, Tensor] | None = None  # at the step before those seen

    def update(self, span: AdjointSpan) -> None:
        for piece in span.pieces(len(self._ways) * self._bins.rows):
            self._take(piece)

    def _take(self, span: AdjointSpan) -> None:
        """What the loss gives to some steps, and what comes back to them along each route."""
        newest = torch.where(span.lags >= 0, span.lags, len(self._entries.direct)).amin(0)
        direct, entered = self._bins.alone(*self._entries.between(span.first, len(span)), newest)
        leaving, exponent = self._leaving(span)
        if self._arriving is None:
            nothing = torch.zeros_like(leaving[:, :, :1])
            self._arriving = nothing, torch.full_like(exponent[:, :1], NO_EXPONENT)
        arriving = torch.cat((leaving[:, :, 1:], self._arriving[0]), 2)
        exponent_of = torch.cat((exponent[:, 1:], self._arriving[1]), 1)
        self._arriving = leaving[:, :, :1], exponent[:, :1]

        values = torch.cat((direct, arriving.flatten(0, 1)))
        exponents = torch.cat((entered, exponent_of.repeat(len(arriving), 1)))
        some = values.flatten(2).any(2)
        self._sums.add(span, values, torch.where(some, exponents, NO_EXPONENT))

    def _leaving(self, span: AdjointSpan) -> tuple[Float[Tensor, "R M K B S"], Int[Tensor, "M K"]]:
        """What goes from each step to the step before, by route, in the bins it has there."""
        steps, rows = len(span), len(span.lags)
        before = (
            torch.where(span.lags < 0, -1, span.lags + 1)
            if self._entries.relative
            else self._entries.lags_between(span.first - 1, steps, rows)
        )
        sums, exponent = self._bins.sum(span, before)
        by_route = span.pull_back(sums).by_route()
        if not by_route:  # a truncated plain RNN has none
            return sums.new_zeros(0, *sums.shape), exponent
        routes = torch.stack(list(by_route.values())).view(-1, *sums.shape)
        for k, boundary in span.chunk.boundaries.items():
            if span.first <= k < span.first + steps:
                some = routes[:, :, k - span.first]
                routes[:, :, k - span.first] = boundary.pull_back(some.flatten(0, 1)).view(
                    some.shape
                )
        return routes, exponent

    def result(self) -> dict[str, Parts]:
        axes = ({"route": self._ways}, {"lag": self._lags})
        return {
            name: Parts.of(axes, name, self._bins.nearest_first(total))
            for name, total in self._sums.result().items()
        }
