"""The size of the adjoint itself along time, and the half-life that follows from it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition.lags import mean_by_lag
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries


@dataclass(frozen=True, eq=False)
class Adjoints:
    """log2 of the L2 norm of dL_t/ds_k over batch and state, for every entry t and use step k.

    Attributes:
        log2: shape [E, T], float64, -inf where k > t.
        lags: lag of each pair in steps, shape [E, T], -1 where k > t.
    """

    log2: Float[Tensor, "E T"]
    lags: Int[Tensor, "E T"]

    @cached_property
    def log2_mean_by_lag(self) -> Float[Tensor, "T"]:
        """log2 of the mean norm of the adjoint at each lag 0 .. T-1; -inf where there is none."""
        return mean_by_lag(self.log2, self.lags)

    @cached_property
    def log2_growth_by_lag(self) -> Float[Tensor, "T"]:
        """log2 of the mean norm at each lag over that of the same entries at lag 0.

        Few entries are seen at long lags; if those are the large ones, the plain mean rises there
        although nothing has grown.
        """
        start = torch.where(self.lags == 0, self.log2, -torch.inf).amax(1, keepdim=True)
        return self.log2_mean_by_lag - mean_by_lag(start.expand_as(self.log2), self.lags)

    @property
    def half_life(self) -> float:
        """Steps in which the adjoint halves; negative steps in which it doubles, if it grows.

        -1 / rate. NaN if no entry can be seen at two lags, inf if the rate is 0.
        """
        return -1 / self.rate if self.rate else float("inf")

    @cached_property
    def rate(self) -> float:
        """Growth of the adjoint in powers of two per step back; negative if it shrinks.

        The slope of log2 norm against lag: least squares with one slope for all entries and an
        intercept for each. NaN if no entry can be seen at two lags.
        """
        inside = (self.lags >= 0) & self.log2.isfinite()
        count = inside.sum(1, keepdim=True).clamp(min=1)
        lags = torch.where(inside, self.lags.double(), 0)
        log2 = torch.where(inside, self.log2, 0)
        lags = torch.where(inside, lags - lags.sum(1, keepdim=True) / count, 0)
        log2 = torch.where(inside, log2 - log2.sum(1, keepdim=True) / count, 0)
        spread = float(lags.square().sum())
        if spread == 0:
            return float("nan")
        return float((lags * log2).sum()) / spread


class AdjointNorms:
    """The fold behind `Adjoints`."""

    def __init__(self, entries: Entries, steps: int):
        self._entries = entries
        shape = (len(entries), steps)
        self._log2 = entries.direct.new_full(shape, -torch.inf, dtype=torch.float64)

    def update(self, span: AdjointSpan) -> None:
        log2 = torch.log2(span.norms.double()) + span.exponent
        self._log2[len(self._entries) - len(log2) :, span.steps] = log2.flip(0)

    def result(self) -> Adjoints:
        return Adjoints(self._log2, self._entries.lag_table)
