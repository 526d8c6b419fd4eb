"""How large contributions are at each lag, where rows of constant relative resolution are kept.

A table by loss step and use step has T numbers for each row. Where T is too large for it, the mean
square over all pairs whose lag falls in a bin is what is kept. Rows of single loss steps give it
exactly, merged ones by their companions with random signs (`retrograde.engine.merging`), so that it
comes with an interval.

The mean X over a row's c companions varies most where its contributions are all parallel: the sums
with signs are then numbers along one direction, near to normally distributed, and X is S chi^2(c)/c
where S is what it estimates. A sum of rows is taken for a multiple of chi^2(n) of the same mean and
variance (Welch-Satterthwaite), which gives the interval:

    n = c (sum_r S_r)^2 / sum_r S_r^2,        sum_r X_r n / chi^2_{97.5 %}(n) .. / chi^2_{2.5 %}(n)

It is wide where few rows dominate, and wider than it need be where contributions are far from
parallel. Rows whose mean is exact count in the first sum alone.

Reference: Franklin E. Satterthwaite, "An Approximate Distribution of Estimates of Variance
Components", Biometrics Bulletin 2 (1946).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition.by_time import contribution_norms
from retrograde.decomposition.lags import reach_of
from retrograde.decomposition.rows import log2_of_sum
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries
from retrograde.engine.merging import COMPANIONS, DIRECTIONS

TAILS = 0.975, 0.025
"""Probabilities between whose quantiles an interval lies, the lower end first."""

MOST_FREEDOM = 1e8
"""Degrees of freedom from which the interval is a point: 0.03 % of the mean square."""

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
        interval: log2 of the ends of a 95 % interval of the root mean square; both are `log2` where
            it is exact, [2, M].
    """

    lags: tuple[range, ...]
    count: Float[Tensor, "M"]
    log2: Mapping[str, Float[Tensor, "M"]]
    interval: Mapping[str, Float[Tensor, "2 M"]]

    def log2_by_lag(self, name: str = ALL) -> Float[Tensor, "T"]:
        """log2 of the root mean square at each lag 0 .. T-1, the same for all lags of a bin."""
        widths = torch.tensor([len(bin_) for bin_ in self.lags], device=self.count.device)
        return self.log2[name].repeat_interleave(widths)

    def reach(self, name: str = ALL) -> int:
        """The largest lag, in steps, whose root mean square is still 1 % of that at lag 0."""
        return reach_of(self.log2_by_lag(name))

    def log2_of_sum(self, name: str) -> float:
        """log2 of a bound for the sum of the norms of all contributions."""
        return float(log2_of_sum(self.log2[name] + torch.log2(self.count)))

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


def chi_square_quantile(
    probability: Float[Tensor, "*R"], freedom: Float[Tensor, "*R"]
) -> Float[Tensor, "*R"]:
    """The x with P(chi^2(freedom) <= x) = probability, by bisection.

    Example:
        >>> chi_square_quantile(torch.tensor(0.95).double(), torch.tensor(2.0).double())
        tensor(5.9915, dtype=torch.float64)
    """
    shape, low = freedom / 2, torch.zeros_like(freedom)
    high = freedom + 20 * freedom.sqrt() + 20
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle / 2) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high


class LagSizes:
    """The fold behind `Sizes`.

    Squares are kept in units of 2^unit of their bin. `_of_rows` holds what each merged row has
    given to each bin; rows that become one share it from then on, as far as their bins go on.
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
        self._squares = torch.zeros_like(self._unit)  # of what rows have given that are done with
        self._count = torch.zeros_like(self._unit[0])
        self._of_rows = self._unit.new_zeros(shape[0], 0, shape[1])
        self._slots: list[int] = []  # of each row that was merged
        self._free: list[int] = []

    def update(self, span: AdjointSpan) -> None:
        signed = span.signed
        assert signed is not None
        merged, there = signed.merged, span.lags >= 0
        bins = torch.bucketize(span.lags.clamp(min=0).contiguous(), self._starts, right=True)
        self._inherit(signed.parents, merged, span)
        count = signed.entries.double().unsqueeze(1) * there
        self._count.index_add_(0, bins.flatten(), count.flatten())

        squares = torch.where(there, self._log2_squares(span), -torch.inf)
        flat = bins.flatten().expand(len(squares), -1)
        top = self._unit.scatter_reduce(1, flat, squares.flatten(1), "amax")
        old = torch.where(self._sum > 0, self._unit - top, 0).exp2()
        self._sum *= old
        self._squares *= old.square()
        self._of_rows *= old.unsqueeze(1)
        self._unit = top
        unit = torch.where(top.isfinite(), top, 0)
        values = torch.exp2(squares - unit.gather(1, flat).view_as(squares))
        self._sum.scatter_add_(1, flat, values.flatten(1))
        if merged:
            given = torch.where(signed.exact.unsqueeze(1), 0, values[:, :merged])
            slots = torch.tensor(self._slots, device=bins.device).unsqueeze(1)
            place = (slots * len(self._lags) + bins[:merged]).flatten()
            self._of_rows.flatten(1).index_add_(1, place, given.flatten(1))

    def _log2_squares(self, span: AdjointSpan) -> Float[Tensor, "P N K"]:
        """log2 of what entries make of the state and of the parameters, squared and summed by row.

        Of a merged row it is the mean over its companions.
        """
        assert span.signed is not None
        merged, found = span.signed.merged, list[Tensor]()
        if merged:
            each = self._log2_squares_of_rows(span.signed.companions)
            each = each.view(len(each), COMPANIONS, merged, -1).transpose(0, 1)
            found.append(log2_of_sum(each) - DIRECTIONS)
        if merged < len(span.lags):
            alone = span.rows(slice(merged, None), span.lags[merged:])
            found.append(self._log2_squares_of_rows(alone))
        state, *every = torch.cat(found, 1)
        return torch.stack((state, log2_of_sum(torch.stack(every)), *every))

    def _log2_squares_of_rows(self, rows: AdjointSpan) -> Float[Tensor, "P N K"]:
        """The same of rows on their own, the parameters one by one."""
        found = {STATE: torch.log2(rows.norms.double()) + rows.exponent}
        for name, further, log2 in contribution_norms(rows):
            found[name] = torch.logaddexp2(2 * found[name], 2 * log2) / 2 if further else log2
        nothing = torch.full_like(found[STATE], -torch.inf)
        return 2 * torch.stack([found.get(name, nothing) for name in (STATE, *self._names[2:])])

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
            size, more = self._of_rows.shape[1], max(new, 64)
            wide = self._of_rows.new_zeros(len(self._names), size + more, len(self._lags))
            wide[:, :size] = self._of_rows
            self._of_rows = wide
            self._free += range(size, size + more)
        self._slots = [self._free.pop() if slot < 0 else slot for slot in slots]

    def _join(self, first: list[int], second: list[int], lags: Int[Tensor, "R"]) -> None:
        """Make one of two rows each; bins that are done with are told apart as they were."""
        one, other = self._of_rows[:, first], self._of_rows[:, second]
        now = torch.bucketize(lags, self._starts, right=True).unsqueeze(1)
        done = torch.arange(len(self._lags), device=lags.device) < now
        self._squares += ((one.square() + other.square()) * done).sum(1)
        self._of_rows[:, first] = (one + other) * ~done
        self._of_rows[:, second] = 0

    def result(self) -> Sizes:
        squares = self._squares + self._of_rows.square().sum(1)
        some = self._sum > 0
        log2 = (torch.log2(self._sum) + self._unit - torch.log2(self._count)) / 2
        log2 = torch.where(some, log2, -torch.inf)
        freedom = torch.where(squares > 0, COMPANIONS * self._sum.square() / squares, MOST_FREEDOM)
        freedom = freedom.clamp(max=MOST_FREEDOM).expand(2, *log2.shape)
        probability = freedom.new_tensor(TAILS).view(2, 1, 1)
        ends = (
            torch.log2(freedom / chi_square_quantile(probability.expand_as(freedom), freedom)) / 2
        )
        ends = torch.where(freedom < MOST_FREEDOM, ends, 0)
        interval = torch.where(some, log2 + ends, -torch.inf)
        return Sizes(
            self._lags,
            self._count,
            dict(zip(self._names, log2, strict=True)),
            dict(zip(self._names, interval.unbind(1), strict=True)),
        )
