"""Rows of constant relative resolution: neighbours are merged as their lag grows.

    width of a row <= lag / R      so that T steps need about R log2(T / R) rows

Adjoints are linear in the loss, so a merged row is the exact adjoint of the sum of its entries, and
every sum over entries stays exact. The size of a sum says nothing of the sizes of its terms. Where
these are asked for, each merged row has two companions, in which the entries have random signs s_t:

    E ||sum_t s_t C_t||^2 = sum_t ||C_t||^2      for signs of mean 0, no two of them dependent

A sign is drawn whenever two rows become one. Each companion gives the sum of squares without bias.
At the first merge of a row, and at its second, the signs of the four companions are orthogonal, so
that in their mean the products of near entries cancel, which are the largest ones, and rows of up
to four entries are exact. From the third on each companion draws its own.

A pair (t, k) counts at the lag of the middle of its row. At every step one entry passes the edge of
a bin, so that an exact edge at lag L takes a row for each of the last L entries: edges up to R are
exact, and up to `Entries.exact` where that is larger; those beyond are as exact as the lags are.

Reference for the estimator: Michael F. Hutchinson, "A Stochastic Estimator of the Trace of the
Influence Matrix for Laplacian Smoothing Splines", Communications in Statistics (1989).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.engine.adjoint import AdjointSpan, PerEntry, Signed, Summing, without_graphs
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two
from retrograde.engine.unroll import CHUNK, Unrolled

DIRECTIONS = 2
"""Merges of a row, from the first one on, whose signs are orthogonal."""

COMPANIONS = 2**DIRECTIONS
"""Rows with random signs beside each merged one."""


@dataclass
class Row:
    """What a row stands for.

    Attributes:
        first, last: the earliest and the latest of its entry steps.
        entries: how many there are.
        merges: how often it was merged, those of the one of its parts that was merged more often.
    """

    first: int
    last: int
    entries: int
    merges: int = 0

    def __add__(self, earlier: "Row") -> "Row":
        merges = 1 + max(self.merges, earlier.merges)
        return Row(earlier.first, self.last, self.entries + earlier.entries, merges)


class Merging:
    """Rows that are merged as their lags grow.

    In the order of the recursion they are: the companions of the merged rows, all first ones and
    then all second ones; the merged rows, latest first; rows of one entry each, the newest last.
    Rows of one entry that lie between merged ones have companions as well, which are copies.

    Args:
        entries: where the loss enters, with its `relative`.
        generator: draws the signs; without one there are no companions.
    """

    def __init__(self, entries: Entries, generator: torch.Generator | None):
        self._entries, self._generator = entries, generator
        self._rows: list[Row] = []
        self._merged = 0  # rows that have companions
        self._opened = 0  # entries that have opened a row
        self._copies = COMPANIONS if generator is not None else 0

    def opened(self, count: int) -> None:
        """Note which entries have opened rows, given the number of all rows."""
        more = self._coming(count)
        self._rows = self._rows + more
        self._opened += len(more)

    def _coming(self, count: int) -> list[Row]:
        """What the rows will stand for that have not been opened yet, given the number of all."""
        new = count - self._copies * self._merged - len(self._rows)
        stop = len(self._entries) - self._opened
        return [Row(*block, 1) for block in reversed(self._entries.blocks[stop - new : stop])]

    def numbers(self, k: int, count: int) -> list[int]:
        """Merge what the rows stand for at step k as far as may be, and no numbers.

        There are no companions.

        Args:
            k: the step.
            count: how many rows there are.

        Returns:
            For each row before the number of that now.
        """
        self.opened(count)
        found = list(range(count))
        while True:
            numbers, merged = self._pairs(k)
            if len(merged) == len(self._rows):
                return found
            self._rows = merged
            found = [numbers[number] for number in found]

    def lags(self, first: int, count: int, rows: int | None = None) -> Int[Tensor, "E K"]:
        """Of the rows at neighbouring steps; -1 where one has not entered yet.

        Args:
            first, count: the steps.
            rows: the number of all rows by then, if some will have been opened that are not yet.
        """
        device = self._entries.direct.device
        every = self._rows if rows is None else self._rows + self._coming(rows)
        ends = torch.tensor([(row.first, row.last) for row in every], device=device)
        steps = torch.arange(first, first + count, device=device)
        begin, last = ends.T.unsqueeze(-1)
        return torch.where(last >= steps, (torch.maximum(begin, steps) + last) // 2 - steps, -1)

    def merge(self, rows: Scaled, k: int) -> tuple[Scaled, Int[Tensor, "N"]] | None:
        """Merge neighbours that are narrow beside their lag at step k.

        Returns:
            The rows, and for each row (without companions) before the number of that now; None if
            nothing was merged.
        """
        numbers, merged = self._pairs(k)
        if len(merged) == len(self._rows):
            return None
        before, old, copies = len(self._rows), self._merged, self._copies
        new = 0
        if copies:
            ends = (number for number, row in enumerate(merged) if row.entries > 1)
            new = max(max(ends, default=-1) + 1, numbers[old - 1] + 1 if old else 0)
        inside = sum(number < new for number in numbers)  # rows that have companions from now on
        places = range(copies * old, copies * old + before)
        source, sign = [*places], [1.0] * before
        target = [copies * new + number for number in numbers]
        again = [False, *(one == other for one, other in pairwise(numbers[:inside]))]
        for copy, flips in enumerate(self._signs([merged[n].merges for n in numbers[:inside]])):
            source += [*range(old * copy, old * (copy + 1)), *places[old:inside]]
            target += [new * copy + number for number in numbers[:inside]]
            sign += [
                -1.0 if flip and second else 1.0 for flip, second in zip(flips, again, strict=True)
            ]
        self._rows, self._merged = merged, new
        found = _summed(rows, source, target, sign, len(merged) + copies * new)
        return found, torch.tensor(numbers, device=rows.exponent.device)

    def _pairs(self, k: int) -> tuple[list[int], list[Row]]:
        """The number that each row has from now on, and what the rows stand for then."""
        relative, exact = self._entries.relative or 1, self._entries.exact
        numbers, merged, later = list[int](), list[Row](), None
        for row in self._rows:
            lag = row.first - k
            if later and lag >= exact and lag >= relative * (later.last - row.first + 1):
                merged[-1], later = later + row, None
            else:
                merged.append(row)
                later = row
            numbers.append(len(merged) - 1)
        return numbers, merged

    def _signs(self, merges: list[int]) -> list[list[bool]]:
        """Whether each companion turns a row round as it is added, one merged so often by then."""
        if self._generator is None:
            return []
        shape = COMPANIONS, len(merges)
        drawn = torch.randint(0, 2, shape, generator=self._generator).bool().tolist()
        return [
            [
                own[n] if count > DIRECTIONS else drawn[0][n] != bool(copy >> max(count - 1, 0) & 1)
                for n, count in enumerate(merges)
            ]
            for copy, own in enumerate(drawn)
        ]

    def span(self, whole: AdjointSpan, parents: Int[Tensor, "N"] | None) -> AdjointSpan:
        """Rows at neighbouring steps without companions, and with them beside.

        Args:
            whole: all rows; their lags are not known yet.
            parents: what `merge` gave before these steps.
        """
        merged, device = self._merged, whole.norms.device
        lags = self.lags(whole.first, len(whole))
        own = whole.rows(slice(self._copies * merged, None), lags)
        if not self._copies:
            return own
        beside = whole.rows(slice(self._copies * merged), lags[:merged].repeat(self._copies, 1))
        entries = torch.tensor([row.entries for row in self._rows], device=device)
        levels = torch.tensor([row.merges for row in self._rows[:merged]], device=device)
        return replace(own, signed=Signed(beside, levels <= DIRECTIONS, entries, parents))


def _summed(
    rows: Scaled, source: list[int], target: list[int], sign: list[float], count: int
) -> Scaled:
    """Sums of rows, each with a sign, on the largest exponent among those that are not 0."""
    values, device = rows.values, rows.exponent.device
    source_, target_ = torch.tensor([source, target], device=device)
    scale = rows.log2_scale()[source_]
    top = scale.new_full((count,), NO_EXPONENT).scatter_reduce_(0, target_, scale, "amax")
    top = torch.where(top == NO_EXPONENT, 0, top)
    weight = power_of_two((rows.exponent[source_] - top[target_]).clamp(max=0), values)
    weight = (weight * weight.new_tensor(sign)).view(-1, 1, 1)
    total = values.new_zeros(count, *values.shape[1:])
    return Scaled(total.index_add_(0, target_, values[source_] * weight), top)


@without_graphs
def merged_rows(
    unrolled: Unrolled,
    entries: Entries,
    generator: torch.Generator | None = None,
    summing: Summing | None = None,
) -> Iterator[AdjointSpan]:
    """The rows at all steps in spans, for k = T-1 .. 0; steps before any entry are left out.

    Steps of which `summing` could be given the sums are left out as well.

    Args:
        unrolled: the pass.
        entries: where the loss enters, from `Entries.merging`.
        generator: draws the signs of companion rows; without one there are none.
        summing: takes sums of rows; there must be no companions.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows, merging = PerEntry(entries), Merging(entries, generator)
    until = len(unrolled) - 1  # where rows are merged next
    for chunk in unrolled.chunks(unrolled.together):
        while rows.stopped >= chunk.first:
            k, parents = rows.stopped, None
            rows.enter(k)
            if not rows.count:
                rows.skip()
                continue
            merging.opened(rows.count)
            if k <= until:
                until = (k - len(unrolled)) // CHUNK * CHUNK + len(unrolled) - 1
                merged = merging.merge(rows.rows, k)
                if merged is not None:
                    rows.become(merged[0])
                    parents = merged[1]
            if summing and rows.sum_into(summing, chunk, k, merging.lags, until + 1):
                merging.opened(rows.count)
                continue
            part = rows.stretch(chunk, k, until + 1)
            merging.opened(part.rows[0])
            lags = torch.zeros_like(part.norms, dtype=torch.int64)
            whole = AdjointSpan(part.first, part.values, part.exponent, part.norms, lags, chunk)
            span = merging.span(whole, parents)
            del part, whole
            yield span
            del span  # the next one finds room where it was, if nobody kept it
