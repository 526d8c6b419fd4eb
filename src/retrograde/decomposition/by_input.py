"""By lag, of the input: the exact sum of all dL_t/dx_k whose lag t - k falls into a bin.

    dL_t/dx_k = (dx-part of step k)^T delta_k        sum over t = dL/dx_k

How far back the loss is sensitive to what was read. The rows of a bin are summed before they are
pulled back, as in by_lag.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.adjoint import AdjointSpan, SummedSpan
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import rows_together
from retrograde.engine.scaling import NO_EXPONENT, Scaled, times_power_of_two
from retrograde.engine.unroll import Unrolled

INPUT = "input"
"""What `by_lag` takes for the input, in the place of a parameter's name."""


@dataclass(frozen=True)
class Inputs(AbstractLabels):
    """The question: which parts of dL/dx come from which lags, each of shape [T, B, I]."""

    lags: tuple[range, ...]

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass."""
        sums = InputSums(self.lags, unrolled)
        fold(unrolled, entries, [sums])
        return sums.result()


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some neighbouring steps: values and exponents, bin by bin."""

    first: int
    values: Float[Tensor, "M K B I"]
    exponent: Int[Tensor, "M K"]


class InputSums:
    """The fold behind it."""

    def __init__(self, lags: tuple[range, ...], unrolled: Unrolled):
        self._lags, self._bins, self._x = lags, LagBins(lags), unrolled.x
        self._pieces: list[_Piece] = []
        self.starts = self._bins.starts

    def update(self, span: AdjointSpan) -> None:
        for piece in span.pieces(self._bins.rows):
            self._take(piece, *self._bins.sum(piece))

    def add(self, span: SummedSpan, lags: Int[Tensor, "M"]) -> None:
        """Rows that were summed by lag on their way."""
        for piece in span.pieces(self._bins.rows):
            places = self._bins.of_lags(lags.unsqueeze(1).expand_as(piece.exponent))
            self._take(piece, *rows_together(piece.values, places, piece.exponent, self._bins.rows))

    def _take(
        self,
        span: AdjointSpan | SummedSpan,
        values: Float[Tensor, "M K B S"],
        exponent: Int[Tensor, "M K"],
    ) -> None:
        """Pull the sums at some steps back to what was read there."""
        adjoint = span.chunk.pull_back(values.flatten(1, 2), span.first, len(span))
        found = adjoint.input().unflatten(1, (len(span), -1))  # type: ignore[no-untyped-call]
        self._pieces.append(_Piece(span.first, found, exponent))

    def result(self) -> dict[str, Parts]:
        """The parts, on one exponent for each bin."""
        steps, batch, size = self._x.shape
        values = self._x.new_zeros(len(self._lags), steps, batch, size)
        exponent = torch.full((len(self._lags), steps), NO_EXPONENT, device=values.device)
        for piece in self._pieces:
            some = slice(piece.first, piece.first + piece.values.shape[1])
            values[:, some], exponent[:, some] = piece.values, piece.exponent
        top = exponent.amax(1, keepdim=True)
        shift = torch.where(exponent == NO_EXPONENT, 0, exponent - top)
        moved = times_power_of_two(values.flatten(0, 1), shift.flatten()).view_as(values)
        rows = Scaled(moved, torch.where(top == NO_EXPONENT, 0, top).squeeze(1))
        parts = Parts.of(({"lag": self._lags},), INPUT, self._bins.nearest_first(rows))
        return {INPUT: parts}
