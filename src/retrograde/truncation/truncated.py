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
from jaxtyping import Float
from torch import Tensor

from retrograde.engine.lags import parts_by_lag
from retrograde.engine.scaling import Scaled
from retrograde.engine.unroll import Unrolled
from retrograde.truncation.measures import Comparison, Measures, Total

KINDS = ("sliding", "chunks")
"""Truncations that follow from a single backward pass."""


@torch.no_grad()
def truncated(
    unrolled: Unrolled,
    direct: Float[Tensor, "T B S"],
    whole: Mapping[str, Scaled],
    lags: int | None = None,
) -> dict[str, dict[str, Measures]]:
    """What is left of a gradient for K = 1 .. T, by kind and parameter.

    Args:
        unrolled: the pass.
        direct: dL/ds_k as the loss alone gives it.
        whole: the whole gradient of each parameter, as one row.
        lags: the largest K; T if None.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    return compared(parts_by_lag(unrolled, direct, lags), whole)


@torch.no_grad()
def compared(
    every_lag: Iterable[Mapping[str, Scaled]], whole: Mapping[str, Scaled]
) -> dict[str, dict[str, Measures]]:
    """The same of parts that are given, lag after lag, each a row for every parameter."""
    sums = {kind: {n: Total(row.values[0]) for n, row in whole.items()} for kind in KINDS}
    comparisons = {kind: Comparison(whole) for kind in KINDS}
    sliding, chunks = (sums[kind] for kind in KINDS)
    for lag, parts in enumerate(every_lag):
        for name, part in parts.items():
            sliding[name].add(part.values[0], int(part.exponent))
            chunks[name].add(sliding[name].values, sliding[name].exponent)
        comparisons["sliding"].add(sliding)
        comparisons["chunks"].add(chunks, 1 / (lag + 1))
    return {kind: comparison.result() for kind, comparison in comparisons.items()}
