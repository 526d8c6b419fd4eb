"""The backward passes behind a flow: each is made when a question first needs it, and kept."""

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_input import Inputs, InputSums
from retrograde.decomposition.by_lag import Lags, LagSums
from retrograde.decomposition.by_route import Routes, RouteSums
from retrograde.decomposition.by_time import ContributionNorms, ContributionShares, parts_by_time
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.lags import lags_that_count
from retrograde.decomposition.parts import Parts, together
from retrograde.decomposition.resolution import lag_rows, telling
from retrograde.decomposition.rows import log2_of_sum, near
from retrograde.decomposition.sizes import ALL, STATE, LagSizes, Sizes
from retrograde.decomposition.whole import Whole
from retrograde.engine import Entries, Scaled, fold
from retrograde.engine.lags import parts_by_lag
from retrograde.engine.unitwise import is_unitwise
from retrograde.errors import ArgumentError
from retrograde.truncation import Measures
from retrograde.truncation.truncated import Truncation

SEED = 0
"""Seed of the random signs of companion rows."""


class Passes:
    """What the backward passes over one set of rows have found so far.

    Rows of single loss steps give tables by loss step and use step and all bins of lags in a first
    pass, rows of blocks the tables alone. Merged rows give bins of lags in a first pass and sizes,
    which take companion rows, in one of their own.

    Args:
        entries: the rows of the tables.
        whole: the gradient that the parts sum to.
    """

    def __init__(self, entries: Entries, whole: Whole):
        self._entries, self._whole, self._unrolled = entries, whole, whole.unrolled
        self._lag_rows = lag_rows(entries)
        self._names, self._steps = tuple(whole.unrolled.cell.parameters), len(whole.unrolled)
        self._found: dict[AbstractLabels, Mapping[str, Parts]] = {}
        self._starts: set[int] = set()
        self._ahead: set[Routes | Inputs] = set()
        self._truncated: dict[tuple[str, int], Mapping[str, Measures]] = {}

    def walk(self, starts: Iterable[int], routes: bool, inputs: bool) -> None:
        """Make the first passes, with bins of lags, and more, that will be asked for."""
        self._starts.update(starts)
        if self._entries.relative:
            _ = self.sizes
            return
        octaves = lag_bins("octaves", self._steps)
        self._ahead |= {Routes(octaves)} if routes else set()
        self._ahead |= {Inputs(octaves)} if inputs else set()
        if self._lag_rows is not self._entries and (sums := self._sums_by_lag()):
            fold(self._unrolled, self._lag_rows, list(sums.values()))
            self._found.update((labels, each.result()) for labels, each in sums.items())
        _ = self._tables  # which needs no sums then

    def _sums_by_lag(self) -> dict[AbstractLabels, LagSums | RouteSums | InputSums]:
        """The folds of the first pass that sums by lag, those that were not made yet."""
        cell, lags = self._unrolled.cell, self._octaves
        found: dict[AbstractLabels, LagSums | RouteSums | InputSums] = {}
        if not is_unitwise(self._unrolled):  # whose lags need no pass of rows
            found[lags] = LagSums(lags.lags, cell)
        for labels in self._ahead:
            if isinstance(labels, Inputs):
                found[labels] = InputSums(labels.lags, self._unrolled)
            else:
                found[labels] = RouteSums(labels.lags, cell, self._lag_rows)
        return {labels: each for labels, each in found.items() if labels not in self._found}

    @property
    def by_time(self) -> Mapping[str, Parts]:
        """The table of each parameter by loss step and use step."""
        return self._tables[0]

    @property
    def adjoints(self) -> Adjoints:
        """The table of the state's adjoint."""
        return self._tables[1]

    @cached_property
    def whole_by_time(self) -> Parts:
        """The table of all parameters together."""
        return together(tuple(self.by_time.values()))

    @cached_property
    def _tables(self) -> tuple[Mapping[str, Parts], Adjoints, Mapping[str, Scaled]]:
        """What most questions need, from a single pass; and the gradient."""
        entries, steps = self._entries, self._steps
        if entries.relative:
            raise ArgumentError(
                "rows were merged as their lags grew, so that there is no number for every loss "
                "step and use step. Use flow.sizes, or decompose(recording, max_rows=...)"
            )
        norms = ContributionNorms(entries, steps, self._names)
        known = self._whole.at_hand
        shares = ContributionShares(entries, steps, known or self._whole.gradient, norms)
        adjoints = AdjointNorms(entries, steps)
        sums = self._sums_by_lag() if entries is self._lag_rows else {}
        # Linear recurrences need no pass of rows for their lags.
        summed = bool(sums) or self._octaves in self._found or is_unitwise(self._unrolled)
        every = [] if summed else [LagSums(lag_bins((0,), steps), self._unrolled.cell)]
        fold(self._unrolled, entries, [shares, adjoints, *sums.values(), *every])
        self._found.update((labels, each.result()) for labels, each in sums.items())
        by_lag = every[0].result() if every else self.parts(self._octaves)
        whole = {name: parts.scaled.total() for name, parts in by_lag.items()}
        if known and not all(near(known[name], whole[name]) for name in known):
            shares = ContributionShares(entries, steps, whole)
            fold(self._unrolled, entries, [shares])
        by_time = parts_by_time(self._unrolled, entries, whole, norms, shares)
        return by_time, adjoints.result(), whole

    @cached_property
    def sizes(self) -> Sizes:
        """Sizes where rows are merged, whose companions take several times the work of sums."""
        found, lags = LagSizes(self._entries, self._steps, self._names), self._octaves
        sums = LagSums(lags.lags, self._unrolled.cell)
        missing = lags not in self._found and not is_unitwise(self._unrolled)
        folds = [found, *((sums,) if missing else ())]
        fold(self._unrolled, self._entries, folds, torch.Generator().manual_seed(SEED))
        if missing:
            self._found[lags] = sums.result()
        return found.result()

    @property
    def _octaves(self) -> Lags:
        """The bins that are summed in the first pass: octaves, and those that will be asked for."""
        octaves = lag_bins("octaves", self._steps)
        return Lags(lag_bins(sorted(self._starts.union(b.start for b in octaves)), self._steps))

    def parts(self, labels: AbstractLabels) -> Mapping[str, Parts]:
        """The parts with these labels, from the pass that sorts by them or one made before."""
        if labels not in self._found:
            rows, octaves = self._lag_rows, self._octaves
            ahead = rows is not self._entries and self._starts and octaves.divides(labels)
            if not ahead:
                rows = telling(rows, labels.lags)
            if rows is self._lag_rows and rows.relative and octaves.divides(labels):
                self._make(octaves, rows)  # whose pass has most bins
            self._make(labels, rows)
        return self._found[labels]

    def _make(self, labels: AbstractLabels, rows: Entries) -> None:
        """Find what is not there yet, from finer bins of the same rows where there are any."""
        if labels in self._found:
            return
        if isinstance(labels, Lags) and rows is self._lag_rows:
            for finer in self._found:
                if isinstance(finer, Lags) and finer.divides(labels):
                    self._found[labels] = finer.joined(self._found[finer], labels)
                    return
        self._found[labels] = labels.parts(self._unrolled, rows)

    def sums(self) -> Mapping[str, Scaled]:
        """The sum of the parts of each parameter, as one row."""
        if not self._entries.relative:
            return self._tables[2]  # the pass for the sizes of all pairs has the sums as well
        parts = self.parts(Lags(lag_bins("octaves", self._steps)))
        return {name: each.scaled.total() for name, each in parts.items()}

    def cancelling(self, sums: Mapping[str, Scaled]) -> dict[str, float]:
        """How much larger the contributions of each parameter are than their sum."""
        found = {}
        for name, whole in sums.items():
            if self._entries.relative:
                size = self.sizes.log2_of_sum(name)
            else:
                size = float(log2_of_sum(self.by_time[name].log2.flatten()))
            found[name] = float(torch.exp2(size - whole.log2_norms()))
        return found

    def log2_by_lag(self, name: str | None = None) -> Float[Tensor, "T"]:
        """log2 of the mean contribution at each lag; root mean squares where rows are merged."""
        if self._entries.relative:
            return self.sizes.log2_by_lag(name or ALL)
        return (self.by_time[name] if name else self.whole_by_time).log2_mean_by_lag

    @property
    def rate(self) -> float:
        """Growth of the adjoint in powers of two per step back."""
        return self.sizes.rate if self._entries.relative else self.adjoints.rate

    def grown(self) -> float:
        """How far the adjoint grows above what it was at lag 0, in powers of two."""
        if self._entries.relative:
            log2 = self.sizes.log2[STATE]
            grows = log2 - log2[0]
        else:
            grows = self.adjoints.log2_growth_by_lag
        return float(grows[grows.isfinite()].max()) if bool(grows.isfinite().any()) else 0.0

    @cached_property
    def lags_that_count(self) -> int:
        """The first lag from which on all parts of all parameters are below rounding."""
        counts = [
            lags_that_count(self.log2_by_lag(name), len(self._entries), gradient)
            for name, gradient in self._whole.gradient.items()
        ]
        return max([1, *counts])

    def truncated(self, kind: str, most: int) -> Mapping[str, Measures]:
        """What is left of the gradient of each parameter for K = 1 .. `most`."""
        key = kind, most
        if key not in self._truncated:
            truncation, count = Truncation(kind, self._whole.gradient), self.lags_that_count
            truncation.take(parts_by_lag(self._unrolled, self._entries.direct, count))
            self._truncated[key] = truncation.result(most)
        return self._truncated[key]
