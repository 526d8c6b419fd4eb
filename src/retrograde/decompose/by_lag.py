"""By lag: the exact sum of all C[t,k] whose lag t - k falls into a bin, as a matrix.

The pull-back is linear, so rows of a bin are summed before they are pulled back, and the outer
products of many steps are one matrix product. A bin costs about as much as one entry row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import charts
from retrograde.cells.base import Use
from retrograde.engine.adjoint import AdjointStep
from retrograde.engine.scaling import NOTHING, Scaled, aligned, power_of_two
from retrograde.errors import ArgumentError

STEPS_AT_ONCE = 64
"""Outer products of so many steps are gathered into one matrix product."""

GATHERED = 2**22
"""... or of fewer, so that no more numbers than this are gathered (16 MiB in float32)."""

Bins = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class ByLag:
    """The gradient of one parameter (or, as one vector, of all) in parts by lag.

    Attributes:
        parameter: the parameter's name, None for the whole gradient.
        lags: the lags of each part, as ranges: `range(3, 5)` holds lags 3 and 4.
        scaled: the parts as values and exponents of two.
    """

    parameter: str | None
    lags: tuple[range, ...]
    scaled: Scaled

    @property
    def log2(self) -> Float[Tensor, "M"]:
        """log2 of the Frobenius norm of each part, float64."""
        return self.scaled.log2_norms()

    @property
    def norm(self) -> Float[Tensor, "M"]:
        """The norms as plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    @property
    def share(self) -> Float[Tensor, "M"]:
        """Signed share <part, G> / <G, G> of each part in the whole gradient G; they sum to 1.

        NaN if the whole gradient is zero.
        """
        whole = self.scaled.total().normalised()[0]
        parts = self.scaled
        direction = whole.values.flatten().double()
        inner = parts.values.flatten(1).double() @ direction / direction.square().sum()
        return inner * torch.exp2((parts.exponent - whole.exponent).double())

    def parts(self) -> Float[Tensor, "M *R"]:
        """The parts as plain tensors of the parameter's shape; they sum to the gradient."""
        return self.scaled.plain()

    def chart(self) -> Any:
        """Norm and share over lag as an Altair chart; `.save("lag.png")` needs no browser."""
        return charts.shares_by_lag(self.lags, self.log2, self.share)


class LagSums:
    """The fold behind `by_lag`; with a single bin it is the whole gradient."""

    def __init__(self, lags: tuple[range, ...], parameters: Mapping[str, Tensor]):
        self._lags = lags
        self._gathered: list[tuple[dict[str, Use], Tensor]] = []
        # Bins are kept with the farthest lag first, the order in which rows come.
        self._starts = torch.tensor([bin.start for bin in lags[1:]], dtype=torch.int64)
        self._sums = {
            name: Scaled.of(value.new_zeros(len(lags), *value.shape))
            for name, value in parameters.items()
        }

    def update(self, step: AdjointStep) -> None:
        sums, top = self._sum_rows(step)
        uses = dict(step.cell.pull_back(step.step, sums).uses)
        self._gathered.append((uses, top))
        adjoints = {id(use.adjoint): use.adjoint.dense.numel() for use in uses.values()}
        numbers = sum(adjoints.values()) * len(self._gathered)
        if len(self._gathered) == STEPS_AT_ONCE or numbers >= GATHERED:
            self._multiply()

    def result(self) -> dict[str, ByLag]:
        self._multiply()
        return {
            name: ByLag(name, self._lags, Scaled(total.values.flip(0), total.exponent.flip(0)))
            for name, total in self._sums.items()
        }

    def _sum_rows(self, step: AdjointStep) -> tuple[Float[Tensor, "M B S"], Tensor]:
        """Sum the adjoint rows of each bin, on the largest exponent in the bin."""
        bins = len(self._lags)
        starts = self._starts.to(step.lags.device)
        bin_of_row = bins - 1 - torch.bucketize(step.lags, starts, right=True)
        exponent = torch.where(step.norms > 0, step.delta.exponent, NOTHING)
        top = exponent.new_full((bins,), NOTHING).scatter_reduce(0, bin_of_row, exponent, "amax")
        values = step.delta.values
        sums = torch.nn.functional.embedding_bag(
            torch.arange(len(values), device=values.device),
            values.flatten(1),
            torch.searchsorted(bin_of_row, torch.arange(bins, device=values.device)),
            mode="sum",
            per_sample_weights=power_of_two(exponent - top[bin_of_row], values),
        )
        return sums.view(bins, *values.shape[1:]), top

    def _multiply(self) -> None:
        """Add the outer products of all gathered steps to the sums."""
        if not self._gathered:
            return
        tops = torch.stack([top for _, top in self._gathered])
        top = tops.amax(0)
        weights = power_of_two(tops - top, next(iter(self._gathered[0][0].values())).adjoint.dense)
        top = torch.where(top == NOTHING, 0, top)
        aligned: dict[int, Tensor] = {}
        for name, first in self._gathered[0][0].items():
            uses = [gathered[name] for gathered, _ in self._gathered]
            if id(first.adjoint) not in aligned:
                stacked = torch.stack([use.adjoint.dense for use in uses], 1)  # [M, K, B, P]
                stacked *= weights.T[..., None, None]
                aligned[id(first.adjoint)] = stacked.flatten(1, 2)
            adjoint = aligned[id(first.adjoint)]
            if first.operand is None:
                part = adjoint.sum(1)
            else:
                operand = torch.cat([use.operand for use in uses if use.operand is not None])
                part = torch.matmul(adjoint.mT, operand)
            self._sums[name] = self._sums[name].plus(Scaled(part, top).normalised()[0])
        self._gathered = []


def combined(parts: Sequence[ByLag]) -> ByLag:
    """All parameters together, the gradient as one vector in the order of the parameters."""
    sums = aligned([part.scaled for part in parts])
    rows = torch.cat([one.values.flatten(1) for one in sums], 1)
    return ByLag(None, parts[0].lags, Scaled(rows, sums[0].exponent))


def lag_bins(bins: Bins, steps: int) -> tuple[range, ...]:
    """The lags of each bin, for a sequence of `steps` steps.

    Args:
        bins: "octaves" (0, 1, 2, 3-4, 5-8, ...), "every" (each lag on its own), or the first lag
            of each bin, ascending from 0: (0, 13, 52) is 0-12, 13-51, 52 and more.

    Raises:
        ArgumentError: for anything else.
    """
    if isinstance(bins, str):
        if bins not in ("octaves", "every"):
            raise ArgumentError(
                f'bins must be "octaves", "every" or the first lag of each bin; got {bins!r}'
            )
        if bins == "every":
            starts = list(range(steps))
        else:
            starts = [0, 1, *(2**i + 1 for i in range(max(1, steps).bit_length()))]
    else:
        starts = list(bins)
        ascending = all(a < b for a, b in zip(starts, starts[1:], strict=False))
        if not starts or not all(isinstance(s, int) for s in starts) or starts[0] or not ascending:
            raise ArgumentError(
                f"bins must start with 0 and ascend, as in (0, 13, 52); got {tuple(bins)}"
            )
    starts = [start for start in starts if start < max(1, steps)]
    return tuple(
        range(start, stop) for start, stop in zip(starts, [*starts[1:], max(1, steps)], strict=True)
    )
