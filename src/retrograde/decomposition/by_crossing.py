"""By crossing: the parts by lag, split by how often their paths crossed recurrent weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.crossings import rows_by_crossing
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.unroll import Unrolled


@dataclass(frozen=True)
class Crossings(AbstractLabels):
    """The question: how often the paths of a part crossed recurrent weights, and at which lags."""

    lags: tuple[range, ...]
    max_crossings: int

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass with a row for every loss step and number of crossings."""
        classes = self.max_crossings + 1
        bins = LagBins(self.lags, classes)
        sums = AdjointSums(unrolled.cell, classes * len(self.lags))
        for span in rows_by_crossing(unrolled, entries, classes):
            sums.add_rows(span, bins.places(span))
        labels = (*map(str, range(self.max_crossings)), f"{self.max_crossings}+")
        axes = ({"crossing": labels}, {"lag": self.lags})
        return {
            name: Parts.of(axes, name, bins.nearest_first(total))
            for name, total in sums.result().items()
        }
