"""By crossing: the parts by lag, split by how often their paths crossed recurrent weights."""

from collections.abc import Mapping

from retrograde.decompose.bins import LagBins
from retrograde.decompose.split import Split
from retrograde.engine.crossings import backpropagate_by_crossing
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.unroll import Unrolled


def by_crossing(
    unrolled: Unrolled, entries: Entries, lags: tuple[range, ...], max_crossings: int
) -> Mapping[str, Split]:
    """One pass with a row for every entry and number of crossings, parameter by parameter."""
    classes = max_crossings + 1
    bins = LagBins(lags, classes)
    sums = AdjointSums(unrolled.cell, classes * len(lags))
    for step in backpropagate_by_crossing(unrolled, entries, classes):
        sums.add(step, bins.sum(step.delta, step.sizes, step.lags))
    ways = (*map(str, range(max_crossings)), f"{max_crossings}+")
    return {
        name: Split(name, "crossings", ways, lags, bins.nearest_first(total))
        for name, total in sums.result().items()
    }
