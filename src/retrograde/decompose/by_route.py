"""By route: the parts by lag, split by the route of the last hop, the one that arrives at step k.

Row sums commute with the pull-back, so the rows of a bin are summed before they are split, and a
route costs as much as a bin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from retrograde.cells.base import AbstractCell
from retrograde.decompose.bins import LagBins
from retrograde.decompose.labels import AbstractLabels
from retrograde.decompose.parts import Parts
from retrograde.engine.adjoint import AdjointStep, fold
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import Scaled
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
        self._later: AdjointStep | None = None

    def update(self, step: AdjointStep) -> None:
        rows = [self._bins.alone(self._entries.at(step.k), step.lags[-1:])]
        if self._later is None:
            nothing = Scaled(torch.zeros_like(rows[0].values), rows[0].exponent)
            rows += [nothing] * (len(self._ways) - 1)
        else:
            before = self._later
            sums = self._bins.sum(before.delta, before.norms, step.lags[: len(before.lags)])
            chunk = before.chunk
            arriving = chunk.through(chunk.plan.by_route, before.k, sums.values)
            rows += [Scaled(values, sums.exponent) for values in arriving]
        every = Scaled(torch.cat([r.values for r in rows]), torch.cat([r.exponent for r in rows]))
        self._sums.add(step, Scaled(every.values, every.log2_scale()))
        self._later = step

    def result(self) -> dict[str, Parts]:
        axes = ({"route": self._ways}, {"lag": self._lags})
        return {
            name: Parts.of(axes, name, self._bins.nearest_first(total))
            for name, total in self._sums.result().items()
        }
