"""The backward recursion, its rows told apart by how often their paths crossed recurrent weights.

    v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

R holds the routes that cross recurrent weights, A the others; the last class keeps what crosses
that often or more. The sum over n is the adjoint of adjoint.py. Class 0 is the carousel alone.

Every class has an exponent of its own, which stays what it is for a stretch of steps. What crosses
to the next class is multiplied by the power of two that lies between the two.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde.compiled import crossings as compiled
from retrograde.engine.adjoint import (
    AdjointSpan,
    AdjointStep,
    SummedSpan,
    refuse_non_finite,
    without_graphs,
)
from retrograde.engine.crossing_steps import Way, are_summed, pull_back
from retrograde.engine.entries import Entries
from retrograde.engine.gathered import HELD, Gathered
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.merging import Merging
from retrograde.engine.scaling import (
    CENTRE,
    NO_EXPONENT,
    SLACK,
    Scaled,
    power_of_two,
    times_power_of_two,
)
from retrograde.engine.scan import Entering
from retrograde.engine.unroll import CHUNK, Chunk, Unrolled

LEAST, APART = -48, 64
"""A stretch ends where the largest entry of a row falls below 2^LEAST: no squares are taken of
these rows, and their entries are ordinary numbers down to 2^-126. Where a class is more than
2^APART below the one before, what comes from there will soon be all that it holds."""

LOST = -126 - LEAST
"""Multiplied by a power of two below this one, a row in range need not be an ordinary number."""

TURN = 8
"""Entries are merged at the latest of every so many steps, whoever pulls their rows back."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """What `PerCrossing` gives of neighbouring steps.

    Attributes:
        chunk: what holds the steps.
        first: the earliest one.
        exponent: 2**exponent is what each row is in units of, [N].
        lags: of each entry at each step, -1 where it has not entered yet, [E, K].
        pulled: the rows, or their sums by class and bin where it has `units`.
    """

    chunk: Chunk
    first: int
    exponent: Int[Tensor, "N"]
    lags: Int[Tensor, "E K"]
    pulled: compiled.Crossed

    def span(self) -> AdjointSpan:
        """The rows; their norms are the sizes of their largest entries."""
        classes, steps = len(self.exponent) // len(self.lags), self.lags.shape[1]
        units = self.exponent.unsqueeze(1).expand(-1, steps)
        units = torch.where((self.lags < 0).repeat_interleave(classes, 0), 0, units)
        pulled = self.pulled
        return AdjointSpan(self.first, pulled.values, units, pulled.sizes, self.lags, self.chunk)


class PerCrossing:
    """For each entry, latest first, a row for every number of crossings: `entry * classes + n`.

    Attributes:
        count: the number of entries, or of groups of merged ones, that have rows.
        stopped: the step before those that are done.
    """

    def __init__(self, entries: Entries, classes: int):
        self._entries, self._classes = entries, classes
        self._merging = Merging(entries, None) if entries.relative else None
        self._values = entries.direct.new_zeros(0, *entries.direct.shape[1:])
        self._sizes = entries.direct.new_zeros(0)  # of the largest entry of each row
        self._exponent = torch.zeros(0, dtype=torch.int64, device=entries.direct.device)
        self._more = 0  # groups than entries that have opened one
        self._length = CHUNK
        self.stopped = len(entries.direct) - 1

    @property
    def count(self) -> int:
        return len(self._exponent) // self._classes

    def stretch(self, chunk: Chunk, gathered: Gathered | None = None) -> Stretch | None:
        """The rows at the next step, and at as many earlier ones as they stay in range.

        Args:
            chunk: what holds the step.
            gathered: where the library may write the sums of rows by class and bin, and give these
                in the place of rows.

        Returns:
            The rows; None at a step before any entry.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        k, entries, classes = self.stopped, self._entries, self._classes
        opened = self.count - self._more
        opens = entries.opens(k, opened)
        if not self.count and not opens:
            self.stopped -= 1
            return None
        covers = entries.covers(k, opened) and k in entries.exponents
        given = entries.at(k) if opens or covers else None
        numbers, weights, unit = self._arrive(k, given, opens)
        length = min(self._length, k - chunk.first + 1)
        sums = gathered if gathered and are_summed(chunk, k - length + 1, length) else None
        at_once = HELD  # entries times steps that there may be
        if sums:
            length = min(length, sums.left)
        else:
            at_once = HELD // (classes * entries.direct[0].numel())
            length = min(length, k - self._until(k) + 1, max(1, at_once // len(unit)))
        self._length = min(2 * self._length, CHUNK)
        while True:
            entering, units = self._coming(k, length, unit, given, at_once)
            way = self._way(entering, numbers, weights, units)
            pulled = pull_back(chunk, self._values, way, sums)
            refuse_non_finite(pulled.sizes[:, -1], k)
            stop = self._first_out(pulled.sizes, way)
            if stop is None:
                break
            self._length = length = len(entering) - 1 - stop  # the later ones alone
        units = way.turns[-1].units
        self.stopped, self._exponent = entering.first - 1, units
        self._merging, self._more = way.merging, self._more - way.merged
        if pulled.back is not None and pulled.back_sizes is not None:
            self._values, self._sizes = pulled.back, pulled.back_sizes
        return Stretch(chunk, entering.first, units, way.lags, pulled)

    def _arrive(
        self, k: int, given: Scaled | None, opens: bool
    ) -> tuple[list[int], Float[Tensor, "N"], Int[Tensor, "E C"]]:
        """How the rows at step k are brought into range, neighbouring entries merged.

        Returns:
            The number that each entry which arrives has from now on, what its rows are multiplied
            by, and the exponents of all rows, an empty class on the scale of the one before it.
        """
        sizes, old, classes = self._sizes, self._exponent, self._classes
        refuse_non_finite(sizes, k)
        numbers = list(range(self.count + opens))
        if self._merging is not None and k == self._until(k) + TURN - 1:
            numbers = self._merging.numbers(k, len(numbers))
            self._more -= len(numbers) - numbers[-1] - 1
        limit = 1022 if sizes.dtype == torch.float64 else 126  # what a weight can be
        shift = (torch.frexp(sizes).exponent.to(torch.int64) - CENTRE).clamp(min=-limit)
        scale = torch.where(sizes > 0, old + shift, NO_EXPONENT).view(-1, classes)
        target = torch.tensor(numbers[: self.count], dtype=torch.int64, device=old.device)
        own = _largest_of_each(scale, target, numbers[-1] + 1)
        if given is not None:
            own[-1, 0] = torch.maximum(own[-1, 0], given.exponent[0])
        apart = APART * torch.arange(classes, device=own.device)
        least = (own + apart).cummax(1).values - apart
        unit = torch.where(own == NO_EXPONENT, _last_known(own), torch.maximum(own, least))
        unit = torch.where(unit == NO_EXPONENT, 0, unit)
        moved = torch.where(sizes > 0, old - unit[target].flatten(), 0)
        return numbers[: self.count], power_of_two(moved, self._values), unit

    def _until(self, k: int) -> int:
        """The earliest step that the entries at step k come to before they are merged again."""
        return 0 if self._merging is None else k - k % TURN

    def _coming(
        self, k: int, length: int, unit: Int[Tensor, "E C"], given: Scaled | None, at_once: int
    ) -> tuple[Entering, Int[Tensor, "M C"]]:
        """Up to so many steps that end with k, what the loss gives there, and all exponents.

        Entries are numbered as if none were merged on the way.
        """
        entries, newest = self._entries, int(unit[-1, 0])
        coming = entries.coming(k, length, len(unit), self._more, newest, at_once)
        first, values = coming.first, coming.values
        if given is not None:
            if values is None:
                values = torch.zeros_like(entries.direct[first : k + 1])
            values[-1:] = times_power_of_two(given.values, given.exponent - newest)
        if coming.opened:
            more = unit.new_tensor(coming.opened).unsqueeze(1).expand(-1, unit.shape[1])
            unit = torch.cat((unit, more))
        return Entering(first, coming.rows, values, back=first > 0), unit

    def _way(
        self,
        entering: Entering,
        numbers: Sequence[int],
        weights: Float[Tensor, "N"],
        unit: Int[Tensor, "E C"],
    ) -> Way:
        """What becomes of the rows at neighbouring steps.

        Args:
            entering: the steps.
            numbers, weights: what becomes of the entries that arrive at the latest one.
            unit: the exponents of all rows, entries numbered as if none were merged on the way.
        """
        first, rows, merging = entering.first, entering.rows, copy(self._merging)
        own, turns, lags, merged = unit[: rows[-1]], list[compiled.Turn](), list[Tensor](), 0
        left, earliest = list(rows), len(rows)  # entries at each step
        while earliest:
            latest = earliest - 1
            earliest = max(0, self._until(first + latest) - first)
            if turns:
                assert merging is not None
                arriving, own = len(own), torch.cat((own, unit[rows[latest + 1] : rows[latest]]))
                numbers = merging.numbers(first + latest, len(own))
                target = torch.tensor(numbers, device=own.device)
                before, own = own, _largest_of_each(own, target, numbers[-1] + 1)
                moved = (before - own[target])[:arriving]
                numbers, weights = numbers[:arriving], power_of_two(moved.flatten(), self._values)
                merged += len(before) - len(own)
            own = torch.cat((own, unit[rows[latest] : rows[earliest]]))
            begins = [n for n, to in enumerate(numbers) if n == 0 or to != numbers[n - 1]]
            moves = power_of_two(own[:, :-1] - own[:, 1:], self._values)
            sources = [*begins, len(numbers)]
            turns.append(compiled.Turn(latest, sources, weights, own.flatten(), moves))
            lags.append(self._lags(merging, first + earliest, latest - earliest + 1, len(own)))
            left[earliest : latest + 1] = [n - merged for n in rows[earliest : latest + 1]]
        most = max(left)
        table = [torch.nn.functional.pad(one, (0, 0, 0, most - len(one)), value=-1) for one in lags]
        return Way(replace(entering, rows=left), turns, torch.cat(table[::-1], 1), merging, merged)

    def _lags(
        self, merging: Merging | None, first: int, count: int, rows: int
    ) -> Int[Tensor, "E K"]:
        if merging is None:
            return self._entries.lags_between(first, count, rows)
        merging.opened(rows)
        return merging.lags(first, count)

    def _first_out(self, sizes: Float[Tensor, "M K"], way: Way) -> int | None:
        """The latest step, before the last, at which a row is out of range."""
        low, high = 2.0**LEAST, 2.0 ** (CENTRE + SLACK)
        small = (sizes > 0) & (sizes < low)
        out = ~(sizes <= high) | small
        if bool(small[:, -1].any()):
            out &= ~(small & self._small_before(small[:, -1], way))
        for turn in way.turns[1:]:  # entries on quite another scale may have empty classes
            out[:, turn.step] |= bool(turn.weights.min() < 2.0**LOST)
        some = torch.nonzero(out[:, :-1].any(0))
        return int(some[-1]) if len(some) else None

    def _small_before(self, small: Bool[Tensor, "M"], way: Way) -> Bool[Tensor, "M K"]:
        """Rows that are made of such alone as were small at the latest step, at all steps."""
        small = small.view(-1, self._classes)
        found = small.new_zeros(*small.shape, len(way.entering))
        for number, turn in enumerate(way.turns):
            if number:
                small = torch.stack(
                    [small[a:b].all(0) for a, b in pairwise(turn.sources)]
                    + [small.new_zeros(self._classes)] * (len(small) - len(turn.sources) + 1)
                )
            found[..., : turn.step + 1] = small.unsqueeze(2)
        return found.flatten(0, 1)


def _largest_of_each(
    exponents: Int[Tensor, "A C"], target: Int[Tensor, "A"], count: int
) -> Int[Tensor, "E C"]:
    """The largest exponents, class by class, of the entries that get each number."""
    largest = exponents.new_full((count, exponents.shape[1]), NO_EXPONENT)
    return largest.scatter_reduce_(0, target.unsqueeze(1).expand_as(exponents), exponents, "amax")


def _last_known(exponents: Int[Tensor, "E C"]) -> Int[Tensor, "E C"]:
    """For each class the exponent of the last one up to it that has any, NO_EXPONENT for none."""
    place = torch.arange(exponents.shape[1], device=exponents.device).expand_as(exponents)
    last = torch.where(exponents == NO_EXPONENT, 0, place).cummax(1).values
    return exponents.gather(1, last)


def _stretches(
    rows: PerCrossing, chunk: Chunk, gathered: Gathered | None = None
) -> Iterator[Stretch]:
    """The rows at the steps of a chunk, the latest first."""
    while rows.stopped >= chunk.first:
        found = rows.stretch(chunk, gathered)
        if found is not None:
            yield found


@without_graphs
def rows_by_crossing(unrolled: Unrolled, entries: Entries, classes: int) -> Iterator[AdjointSpan]:
    """The rows at all steps in spans, for k = T-1 .. 0, with `classes` rows for each entry.

    The norms are the sizes of the largest entries. With `entries.relative` entries are merged as
    their lags grow.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows = PerCrossing(entries, classes)
    for chunk in unrolled.chunks():
        for stretch in _stretches(rows, chunk):
            yield stretch.span()


@torch.no_grad()
def gradients_by_crossing(
    unrolled: Unrolled, entries: Entries, classes: int, starts: Sequence[int]
) -> dict[str, Scaled]:
    """The gradient of each parameter by class and bin of lags: row `n * bins + bin`, nearest first.

    Args:
        unrolled: the pass.
        entries: where the loss enters, and in which rows.
        classes: how many there are; the last one holds all that crossed that often or more.
        starts: the first lag of each bin.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows, gathered = PerCrossing(entries, classes), Gathered(starts, classes, entries.direct)
    bins = len(gathered.bins)
    sums = AdjointSums(unrolled.cell, classes * bins)
    of_class = bins * torch.arange(classes, device=entries.direct.device).view(-1, 1)
    for chunk in unrolled.chunks():
        for stretch in _stretches(rows, chunk, gathered):
            if stretch.pulled.units is None:
                _add(sums, gathered.give(chunk))  # what is held lies at neighbouring steps
                places = gathered.bins.numbers(stretch.lags).unsqueeze(1) + of_class
                sums.add_rows(stretch.span(), places.flatten(0, 1))
                continue
            gathered.take(stretch.first, stretch.pulled.units)
            if not gathered.left:
                _add(sums, gathered.give(chunk))
        _add(sums, gathered.give(chunk))
    return sums.result()


def _add(sums: AdjointSums, span: SummedSpan | None) -> None:
    if span is not None:
        sums.add(span, span.values, span.exponent)


def backpropagate_by_crossing(
    unrolled: Unrolled, entries: Entries, classes: int
) -> Iterator[AdjointStep]:
    """The stream of steps for k = T-1 .. 0, with `classes` rows for each entry.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    for span in rows_by_crossing(unrolled, entries, classes):
        entered = (span.lags >= 0).sum(0).tolist()
        for step in reversed(range(len(span))):
            some = slice(0, entered[step] * classes)
            delta = Scaled(span.values[some, step].contiguous(), span.exponent[some, step])
            norms = span.norms[some, step]
            yield AdjointStep(span.first + step, delta, norms, span.chunk, entries, entered[step])
