"""Sizes over lag: their mean, how far back it reaches, and from where on nothing counts."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.engine.scaling import Scaled

POOLED = 104
"""Largest number of rows or columns in the picture of a map."""

REACH = 0.01
"""A lag is within reach while its mean contribution is this share of that at lag 0."""


def mean_by_lag(log2: Float[Tensor, "E T"], lags: Int[Tensor, "E T"]) -> Float[Tensor, "T"]:
    """log2 of the mean of 2^log2 over the pairs at each lag; -inf where there is none."""
    inside = lags >= 0
    lag, size = lags[inside], log2[inside]
    count = torch.zeros(lags.shape[1], dtype=size.dtype, device=size.device)
    count.index_add_(0, lag, torch.ones_like(size))
    top = torch.full_like(count, -torch.inf).scatter_reduce_(0, lag, size, "amax")
    base = torch.where(top.isinf(), 0, top)
    total = torch.zeros_like(count).index_add_(0, lag, torch.exp2(size - base[lag]))
    return torch.where(count > 0, base + torch.log2(total / count), -torch.inf)


def reach_of(log2_mean: Float[Tensor, "T"]) -> int:
    """The largest lag at which the mean norm is still 1 % of that at lag 0."""
    floor = log2_mean[0] + torch.log2(torch.tensor(REACH, dtype=log2_mean.dtype))
    within = torch.nonzero((log2_mean >= floor) & log2_mean.isfinite())
    return int(within.max()) if len(within) else 0


def lags_that_count(log2_mean: Float[Tensor, "T"], rows: int, gradient: Scaled) -> int:
    """The first lag from which on all contributions together are below a gradient's rounding.

    Args:
        log2_mean: log2 of the mean norm of the contributions at each lag, or of a bound for it.
        rows: how many there are at a lag, at most.
        gradient: their sum, as one row.
    """
    sums = log2_mean + math.log2(max(1, rows))
    beyond = torch.logcumsumexp(sums.flip(0) * math.log(2), 0).flip(0) / math.log(2)
    eps = math.log2(torch.finfo(gradient.values.dtype).eps)
    return int((beyond > float(gradient.log2_norms()) + eps).sum())
