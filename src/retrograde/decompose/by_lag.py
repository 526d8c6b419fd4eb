"""By lag: the exact sum of all C[t,k] whose lag t - k falls into a bin, as a matrix.

The pull-back is linear, so rows of a bin are summed before they are pulled back, and the outer
products of many steps are one matrix product. A bin costs about as much as one entry row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import charts
from retrograde.cells.base import AbstractCell
from retrograde.decompose.bins import LagBins
from retrograde.decompose.parts import shares
from retrograde.engine.adjoint import AdjointStep
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import Scaled


@dataclass(frozen=True, eq=False)
class ByLag:
    """The gradient of one parameter (or, as one vector, of all) in parts by lag.

    Attributes:
        parameter: the parameter's name, None for the whole gradient.
        lags: the lags of each part, as ranges: `range(3, 5)` holds lags 3 and 4.
        scaled: the parts as values and exponents of two.
    """

    parameter: str | None
    lags: tuple[range, ...]
    scaled: Scaled

    @property
    def log2(self) -> Float[Tensor, "M"]:
        """log2 of the Frobenius norm of each part, float64."""
        return self.scaled.log2_norms()

    @property
    def norm(self) -> Float[Tensor, "M"]:
        """The norms as plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    @property
    def share(self) -> Float[Tensor, "M"]:
        """Signed share <part, G> / <G, G> of each part in the whole gradient G; they sum to 1.

        NaN if the whole gradient is zero.
        """
        return shares(self.scaled)

    def parts(self) -> Float[Tensor, "M *R"]:
        """The parts as plain tensors of the parameter's shape; they sum to the gradient."""
        return self.scaled.plain()

    def chart(self) -> Any:
        """Norm and share over lag as an Altair chart; `.save("lag.png")` needs no browser."""
        return charts.shares_by_lag(self.lags, self.log2, self.share)


class LagSums:
    """The fold behind `by_lag`; with a single bin it is the whole gradient."""

    def __init__(self, lags: tuple[range, ...], cell: AbstractCell):
        self._lags, self._bins = lags, LagBins(lags)
        self._sums = AdjointSums(cell, len(lags))

    def update(self, step: AdjointStep) -> None:
        self._sums.add(step, self._bins.sum(step.delta, step.norms, step.lags))

    def result(self) -> dict[str, ByLag]:
        return {
            name: ByLag(name, self._lags, self._bins.nearest_first(total))
            for name, total in self._sums.result().items()
        }
