"""By crossing: the parts by lag, split by how often their paths crossed recurrent weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.engine.crossings import gradients_by_crossing
from retrograde.engine.entries import Entries
from retrograde.engine.unroll import Unrolled


@dataclass(frozen=True)
class Crossings(AbstractLabels):
    """The question: how often the paths of a part crossed recurrent weights, and at which lags."""

    lags: tuple[range, ...]
    max_crossings: int

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass with a row for every loss step and number of crossings."""
        classes = self.max_crossings + 1
        starts = [bin_.start for bin_ in self.lags]
        found = gradients_by_crossing(unrolled, entries, classes, starts)
        labels = (*map(str, range(self.max_crossings)), f"{self.max_crossings}+")
        axes = ({"crossing": labels}, {"lag": self.lags})
        return {name: Parts.of(axes, name, total) for name, total in found.items()}
