"""Arithmetic of parts: sums of rows, and the share of each in a whole."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.engine.scaling import (
    NO_EXPONENT,
    Scaled,
    aligned,
    as_vectors,
    largest_of,
    times_power_of_two,
)

AGREEMENT = -12
"""Two rows agree if they differ by 2^AGREEMENT of their norm. Where samples and steps cancel, the
same gradient found in two ways differs by many roundings."""

WIDTH = 2**14
"""Numbers of several rows that are taken at once in float64, which a cache holds."""

COMPARABLE = 256
"""Squares of rows in units as far apart as 2^COMPARABLE are normal numbers of float64, also those
of denormal numbers of float32; beyond that a row of zeros must not say what the others are
multiplied by."""


def shares(parts: Scaled, whole: Scaled | None = None) -> Float[Tensor, "N"]:
    """Signed share <part, G> / <G, G> of each row in G, the sum of all unless given; NaN if 0."""
    whole = (parts.total() if whole is None else whole).normalised()[0]
    direction = whole.values.flatten().double()
    inner = as_vectors(parts.values).double() @ direction / direction.square().sum()
    return inner * torch.exp2((parts.exponent - whole.exponent).double())


def shares_in_first(parts: Sequence[Sequence[Scaled]], count: int) -> Float[Tensor, "N"]:
    """Signed share <row, G> / <G, G> of each row in G, the sum of the first `count`; NaN if 0.

    Args:
        parts: of each parameter the rows, some in one tensor and others behind them in the next.
        count: how many of the rows make up the whole.
    """
    every = [[as_vectors(one.values) for one in some] for some in parts]
    exponent = torch.stack([torch.cat([one.exponent for one in some]) for some in parts])
    least, most = torch.aminmax(exponent)
    if int(most - least) > COMPARABLE:
        largest = torch.stack([torch.cat([largest_of(rows) for rows in some]) for some in every])
        exponent = torch.where(largest > 0, exponent, NO_EXPONENT)
    weights = torch.exp2((exponent - exponent.amax()).double())
    found, square = torch.zeros_like(weights[0]), weights.new_zeros(())
    for some, weight in zip(every, weights, strict=True):
        for columns in zip(*(torch.split(rows, WIDTH, 1) for rows in some), strict=True):
            rows = torch.cat(columns).double()
            whole = weight[:count] @ rows[:count]
            found += weight * (rows @ whole)
            square += whole @ whole
    return found / square


def near(one: Scaled, other: Scaled) -> bool:
    """Whether two rows differ by less than 2^AGREEMENT of the second."""
    difference = one.plus(Scaled(-other.values, other.exponent)).log2_norms()
    return bool((difference <= other.log2_norms() + AGREEMENT).all())


def joined(parts: Sequence[Scaled]) -> Scaled:
    """The parts of several parameters side by side, each row one vector."""
    sums = aligned(parts)
    return Scaled(torch.cat([as_vectors(one.values) for one in sums], 1), sums[0].exponent)


def summed(rows: Scaled, groups: Int[Tensor, "N"], count: int) -> Scaled:
    """Sums of the rows that share a number, on the largest exponent among them."""
    kept = torch.nonzero(groups >= 0).squeeze(1)
    groups, kept = groups[kept].to(rows.exponent.device), kept.to(rows.exponent.device)
    some = Scaled(rows.values[kept], rows.exponent[kept])
    scale = some.log2_scale()
    top = scale.new_full((count,), NO_EXPONENT).scatter_reduce_(0, groups, scale, "amax")
    top = torch.where(top == NO_EXPONENT, 0, top)
    values = times_power_of_two(some.values, (some.exponent - top[groups]).clamp(max=0))
    totals = values.new_zeros(count, *values.shape[1:])
    return Scaled(totals.index_add_(0, groups, values), top)


def log2_of_sum(log2: Float[Tensor, "K *R"]) -> Float[Tensor, "*R"]:
    """log2 of the sum of 2^log2 over the leading axis; -inf of nothing."""
    if not len(log2):
        return log2.new_full(log2.shape[1:], -torch.inf)
    top = log2.amax(0)
    base = torch.where(top.isinf(), 0, top)
    return torch.exp2(log2 - base).sum(0).log2() + base
