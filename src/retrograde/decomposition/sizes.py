"""How large contributions are at each lag, where rows of constant relative resolution are kept.

A table by loss step and use step has T numbers for each row. Where T is too large for it, the mean
square over all pairs whose lag falls in a bin is what is kept. Rows of single loss steps give it
exactly, merged ones by their companions with random signs (`retrograde.engine.merging`), so that it
comes with an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition.by_time import contribution_norms
from retrograde.decomposition.lags import reach_of
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries

LN2 = math.log(2)

STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 7: 2.36, 10: 2.23, 20: 2.09, 60: 2.00}
"""Half of a 95 % interval in standard errors, by the number of independent differences that these
were found from: quantiles of Student's distribution."""

STATE, ALL = "", "*"
"""Stand for the adjoint of the state, and for all parameters together, among their names."""


def relative_bins(relative: int, steps: int) -> tuple[range, ...]:
    """Each lag below `relative` on its own, then bins that are 1/relative of their lag wide.

    Example:
        >>> relative_bins(4, 12)
        (range(0, 1), range(1, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 6), \
range(6, 7), range(7, 8), range(8, 10), range(10, 12))
    """
    starts, at = list[int](), 0
    while at < max(1, steps):
        starts.append(at)
        octave = (at // relative).bit_length() - 1
        at += 1 << max(0, octave)
    stops = [*starts[1:], max(1, steps)]
    return tuple(range(start, stop) for start, stop in zip(starts, stops, strict=True))


@dataclass(frozen=True, eq=False)
class Sizes:
    """Root mean squares of the contributions at each lag.

    Attributes:
        lags: the bins.
        count: the number of pairs (t, k) in each, [M].
        log2: log2 of the root mean square over these pairs, by parameter, -inf where there is
            nothing, [M].
        error: half of a 95 % interval of the mean square, relative to it; 0 where every loss step
            had a row of its own. Where few rows dominate a bin it is too narrow.
    """

    lags: tuple[range, ...]
    count: Float[Tensor, "M"]
    log2: Mapping[str, Float[Tensor, "M"]]
    error: Mapping[str, Float[Tensor, "M"]]

    def log2_by_lag(self, name: str = ALL) -> Float[Tensor, "T"]:
        """log2 of the root mean square at each lag 0 .. T-1, the same for all lags of a bin."""
        widths = torch.tensor([len(bin_) for bin_ in self.lags], device=self.count.device)
        return self.log2[name].repeat_interleave(widths)

    def reach(self, name: str = ALL) -> int:
        """The largest lag, in steps, whose root mean square is still 1 % of that at lag 0."""
        return reach_of(self.log2_by_lag(name))

    def log2_of_sum(self, name: str) -> float:
        """log2 of a bound for the sum of the norms of all contributions."""
        total = torch.logsumexp((self.log2[name] + torch.log2(self.count)) * LN2, 0)
        return float(total) / LN2

    @property
    def rate(self) -> float:
        """Growth of the adjoint in powers of two per step back; NaN if it has only one lag.

        The slope of the log2 root mean square against lag, each bin weighted by its pairs.
        """
        log2, at = self.log2[STATE], self.count.new_tensor([(b[0] + b[-1]) / 2 for b in self.lags])
        weight = torch.where(log2.isfinite(), self.count, 0)
        log2, whole = torch.where(weight > 0, log2, 0), weight.sum()
        at = at - (weight * at).sum() / whole
        spread = float((weight * at.square()).sum())
        return float((weight * at * log2).sum()) / spread if spread else float("nan")


class LagSizes:
    """The fold behind `Sizes`.

    Squares are kept in units of 2^unit of their bin. `_apart` holds, for each row that was merged
    and each bin, by how much its two companions differ; rows that become one share it from then on,
    as far as their bins go on.
    """

    def __init__(self, entries: Entries, steps: int, parameters: Sequence[str]):
        assert entries.relative is not None
        self._names = (STATE, ALL, *parameters)
        self._lags = relative_bins(entries.relative, steps)
        like = entries.direct
        self._starts = torch.tensor([b.start for b in self._lags[1:]], device=like.device)
        shape = len(self._names), len(self._lags)
        self._unit = like.new_full(shape, -torch.inf, dtype=torch.float64)
        self._sum = torch.zeros_like(self._unit)
        self._variance = torch.zeros_like(self._unit)  # and sums of fourth powers, for its own
        self._fourth = torch.zeros_like(self._unit)
        self._count = torch.zeros_like(self._unit[0])
        self._apart = self._unit.new_zeros(shape[0], 0, shape[1])
        self._slots: list[int] = []  # of each row that was merged
        self._free: list[int] = []

    def update(self, span: AdjointSpan) -> None:
        signed = span.signed
        assert signed is not None
        rows, merged = signed.span, signed.merged
        bins = torch.bucketize(rows.lags.clamp(min=0).contiguous(), self._starts, right=True)
        there = rows.lags >= 0
        self._inherit(signed.parents, merged, span)
        own = torch.cat(
            (signed.entries[:merged] / 2, signed.entries[:merged] / 2, signed.entries[merged:])
        )
        self._count.index_add_(0, bins.flatten(), (own.double().unsqueeze(1) * there).flatten())

        squares = torch.where(there, self._squares(rows), -torch.inf)
        squares[:, : 2 * merged] -= 1
        flat = bins.flatten().expand(len(squares), -1)
        top = self._unit.scatter_reduce(1, flat, squares.flatten(1), "amax")
        old = torch.where(self._sum > 0, self._unit - top, 0).exp2()
        self._sum *= old
        self._variance *= old.square()
        self._fourth *= old**4
        self._apart *= old.unsqueeze(1)
        self._unit = top
        unit = torch.where(top.isfinite(), top, 0)
        values = torch.exp2(squares - unit.gather(1, flat).view_as(squares))
        self._sum.scatter_add_(1, flat, values.flatten(1))
        if merged:
            differ = values[:, :merged] - values[:, merged : 2 * merged]
            slots = torch.tensor(self._slots, device=bins.device).unsqueeze(1)
            place = (slots * len(self._lags) + bins[:merged]).flatten()
            self._apart.flatten(1).index_add_(1, place, differ.flatten(1))

    def _squares(self, rows: AdjointSpan) -> Float[Tensor, "P N K"]:
        """log2 of the squared norms of what the rows make of the state and of the parameters."""
        found = {
            name: torch.full_like(rows.norms, -torch.inf, dtype=torch.float64)
            for name in self._names
        }
        found[STATE] = torch.log2(rows.norms.double()) + rows.exponent
        for name, further, log2 in contribution_norms(rows):
            more = torch.logaddexp2(2 * found[name], 2 * log2) / 2 if further else log2
            found[name] = more
        every = torch.stack([found[name] for name in self._names[2:]])
        found[ALL] = torch.logsumexp(2 * LN2 * every, 0) / LN2 / 2
        return 2 * torch.stack([found[name] for name in self._names])

    def _inherit(self, parents: Int[Tensor, "M"] | None, merged: int, span: AdjointSpan) -> None:
        """Hand what rows have gathered to those that they became."""
        before, slots = self._slots, [-1] * merged
        numbers = range(len(before)) if parents is None else parents[: len(before)].tolist()
        first, second = list[int](), list[int]()
        ends = list[int]()
        for slot, number in zip(before, numbers, strict=True):
            if slots[number] < 0:
                slots[number] = slot
            else:
                first.append(slots[number])
                second.append(slot)
                ends.append(number)
        if second:
            self._join(first, second, span.lags[ends, -1])
            self._free += second
        new = slots.count(-1)
        if new > len(self._free):
            size, more = self._apart.shape[1], max(new, 64)
            wide = self._apart.new_zeros(len(self._names), size + more, len(self._lags))
            wide[:, :size] = self._apart
            self._apart = wide
            self._free += range(size, size + more)
        self._slots = [self._free.pop() if slot < 0 else slot for slot in slots]

    def _join(self, first: list[int], second: list[int], lags: Int[Tensor, "R"]) -> None:
        """Make one of two rows each; bins that are done with are told apart as they were."""
        one, other = self._apart[:, first], self._apart[:, second]
        now = torch.bucketize(lags, self._starts, right=True).unsqueeze(1)
        done = torch.arange(len(self._lags), device=lags.device) < now
        self._variance += ((one**2 + other**2) * done).sum(1)
        self._fourth += ((one**4 + other**4) * done).sum(1)
        self._apart[:, first] = (one + other) * ~done
        self._apart[:, second] = 0

    def result(self) -> Sizes:
        variance = self._variance + (self._apart**2).sum(1)
        fourth = self._fourth + (self._apart**4).sum(1)
        known = torch.tensor(list(STUDENT), device=fourth.device)
        independent = torch.where(fourth > 0, variance**2 / fourth, 1).nan_to_num(1).round()
        place = torch.searchsorted(known, independent.long(), right=True) - 1
        quantile = variance.new_tensor(list(STUDENT.values()))[place.clamp(min=0)]
        log2 = (torch.log2(self._sum) + self._unit - torch.log2(self._count)) / 2
        log2 = torch.where(self._sum > 0, log2, -torch.inf)
        error = torch.where(self._sum > 0, quantile * variance.sqrt() / self._sum, 0)
        return Sizes(
            self._lags,
            self._count,
            dict(zip(self._names, log2, strict=True)),
            dict(zip(self._names, error, strict=True)),
        )
