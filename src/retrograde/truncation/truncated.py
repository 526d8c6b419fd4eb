"""The gradient that truncated back-propagation would give, for every truncation in one pass.

    g_l = sum_t C[t, t-l]           the part of lag l
    sliding:  g_K = sum_{l<K} g_l               every loss step looks back over K steps
    chunks:   g_K = sum_{l<K} (1 - l/K) g_l     the state is detached every K steps

A pair of loss step and use step that lie l steps apart is parted by the cut in l of the K phases
that a cut every K steps can have, so that the second line is the mean over the phases; it is
(g_1 + ... + g_K) / K of the first.
"""

from collections.abc import Iterable, Mapping

import torch

from retrograde.engine.scaling import Scaled
from retrograde.truncation.measures import Comparison, Measures, Total

KINDS = ("sliding", "chunks")
"""Truncations that follow from a single backward pass."""


class Truncation:
    """What is left of a gradient under one kind of truncation, parts coming lag by lag.

    Args:
        kind: one of `KINDS`.
        whole: the whole gradient of each parameter, as one row.
    """

    def __init__(self, kind: str, whole: Mapping[str, Scaled]):
        self._chunks, self._lags = kind == "chunks", 0
        self._sums = {name: Total(row.values[0]) for name, row in whole.items()}
        self._sums_of_sums = {name: Total(row.values[0]) for name, row in whole.items()}
        self._comparison = Comparison(whole)

    def update(self, lag: int, parts: Mapping[str, Scaled]) -> None:
        """Take the part of the next lag."""
        self._lags += 1
        for name, part in parts.items():
            self._sums[name].add(part.values[0], int(part.exponent))
        if self._chunks:
            for name, total in self._sums.items():
                self._sums_of_sums[name].add(total.values, total.exponent)
        if self._chunks:
            self._comparison.add(self._sums_of_sums, 1 / (lag + 1))
        else:
            self._comparison.add(self._sums)

    def take(self, parts: Iterable[Mapping[str, Scaled]]) -> None:
        """Take the parts of all lags, one after the other, a row for each parameter.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        with torch.no_grad():
            for lag, some in enumerate(parts):
                self.update(lag, some)

    def result(self, steps: int | None = None) -> dict[str, Measures]:
        """The measures for K = 1, 2, ..., by parameter.

        Args:
            steps: the largest K, where further lags have no part; as many as came if None.
        """
        more = 0 if steps is None else steps - self._lags
        if self._chunks:
            for _ in range(more):
                self.update(self._lags, {})
        found = self._comparison.result()
        return found if self._chunks else {n: each.extended(more) for n, each in found.items()}
