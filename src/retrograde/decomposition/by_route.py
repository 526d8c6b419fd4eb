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
from retrograde.compiled.routes import pull_back
from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.adjoint import AdjointSpan, SummedSpan
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import AdjointSums, rows_together
from retrograde.engine.scaling import NO_EXPONENT
from retrograde.engine.scan import plain_boundaries
from retrograde.engine.unroll import Chunk, Unrolled

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
        # The bin of a lag, and of the one after it, at the step before.
        edges = {*self._bins.starts, *(start - 1 for start in self._bins.starts)}
        self.starts = sorted(edges - {-1})

    def update(self, span: AdjointSpan) -> None:
        for piece in span.pieces(len(self._ways) * self._bins.rows):
            lags, steps = piece.lags, len(piece)
            before = (
                torch.where(lags < 0, -1, lags + 1)
                if self._entries.relative
                else self._entries.lags_between(piece.first - 1, steps, len(lags))
            )
            newest = torch.where(lags >= 0, lags, len(self._entries.direct)).amin(0)
            exponent = torch.where(piece.norms > 0, piece.exponent, NO_EXPONENT)
            self._take(piece, exponent, before, newest)

    def add(self, span: SummedSpan, lags: Int[Tensor, "M"]) -> None:
        """Rows of single loss steps that were summed by lag on their way."""
        for piece in span.pieces(len(self._ways) * self._bins.rows):
            before = (lags + 1).unsqueeze(1).expand_as(piece.exponent)
            self._take(piece, piece.exponent, before, before.new_zeros(len(piece)))

    def _take(
        self,
        span: AdjointSpan | SummedSpan,
        exponent: Int[Tensor, "N K"],
        before: Int[Tensor, "N K"],
        newest: Int[Tensor, "K"],
    ) -> None:
        """What the loss gives to some steps, and what comes back to them along each route.

        Args:
            span: rows at these steps.
            exponent: of each, NO_EXPONENT for one of zeros.
            before: the lag of each at the step before.
            newest: the lag of what the loss gives at each step.
        """
        bins, steps, shape = self._bins.rows, len(span), span.values.shape[2:]
        rows = (len(self._ways) - 1) * bins
        values = span.values.new_empty(rows + 1, steps, *shape)  # the last is what the loss gives
        first, units = self._leaving(span, exponent, before, values[:rows])
        if self._arriving is None:
            self._arriving = torch.zeros_like(first), torch.full_like(units[:, 0], NO_EXPONENT)
        values[:rows, -1], arriving = self._arriving
        self._arriving = first, units[:, 0]
        values[rows], entered = self._entries.between(span.first, steps)
        some = values[rows].flatten(1).any(1)
        exponents = torch.cat(
            (
                torch.cat((units[:, 1:], arriving.unsqueeze(1)), 1),
                torch.where(some, entered, NO_EXPONENT).unsqueeze(0),
            )
        )
        direct = self._bins.of_lags(newest.unsqueeze(0))
        back = bins + torch.arange(rows, device=direct.device).unsqueeze(1).expand(-1, steps)
        self._sums.add(span, values, exponents, torch.cat((back, direct)))

    def _leaving(
        self,
        span: AdjointSpan | SummedSpan,
        exponent: Int[Tensor, "N K"],
        before: Int[Tensor, "N K"],
        out: Float[Tensor, "R K B S"],
    ) -> tuple[Float[Tensor, "R B S"], Int[Tensor, "R K"]]:
        """What goes from each step to the step before, by route, in the bins it has there.

        Args:
            span, exponent, before: as in `_take`.
            out: takes it, at the place of the step before; its last place is left as it is.

        Returns:
            What goes from the earliest step, and the exponents of what goes from each.
        """
        chunk, first, steps = span.chunk, span.first, len(span)
        passed = plain_boundaries(chunk, first, steps)
        compiled = None if chunk.compiled_uses is None else chunk.compiled_by_route
        places, bins = self._bins.of_lags(before), self._bins.rows
        if compiled is not None and passed is not None and len(out):
            at = span.here.start
            return pull_back(compiled, at, span.values, places, exponent, bins, passed, out)
        sums, exponent = rows_together(span.values, places, exponent, bins)
        routes = [
            self._past_boundaries(chunk, first, rows.view_as(sums))
            for rows in chunk.pull_back(sums.flatten(1, 2), first, steps).by_route().values()
        ]
        if not routes:  # a truncated plain RNN has none
            return out[:, 0], exponent.new_zeros(0, steps)
        leaving = torch.cat(routes)
        out[:, :-1] = leaving[:, 1:]
        some = leaving.flatten(2).any(2)
        return leaving[:, 0], torch.where(some, exponent.repeat(len(routes), 1), NO_EXPONENT)

    @staticmethod
    def _past_boundaries(
        chunk: Chunk, first: int, rows: Float[Tensor, "M K B S"]
    ) -> Float[Tensor, "M K B S"]:
        """What comes back from neighbouring steps, past the boundaries before them."""
        for k, boundary in chunk.boundaries.items():
            if first <= k < first + rows.shape[1]:
                rows[:, k - first] = boundary.pull_back(rows[:, k - first])
        return rows

    def result(self) -> dict[str, Parts]:
        axes = ({"route": self._ways}, {"lag": self._lags})
        return {
            name: Parts.of(axes, name, self._bins.nearest_first(total))
            for name, total in self._sums.result().items()
        }
