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
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde.cells.program import Program, new_rows
from retrograde.compiled import crossings as compiled
from retrograde.engine.adjoint import AdjointSpan, AdjointStep, SummedSpan, refuse_non_finite
from retrograde.engine.binning import Binning
from retrograde.engine.entries import Entries
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
from retrograde.engine.scan import Entering, plain_boundaries
from retrograde.engine.unroll import CHUNK, Chunk, Unrolled

HELD = 2**22
"""Adjoints of neighbouring steps are held together up to this many numbers, 16 MiB in float32."""

LEAST, APART = -48, 64
"""A stretch ends where the largest entry of a row falls below 2^LEAST: no squares are taken of
these rows, and their entries are ordinary numbers down to 2^-126. Where a class is more than
2^APART below the one before, what comes from there will soon be all that it holds."""

LOST = -126 - LEAST
"""Multiplied by a power of two below this one, a row in range need not be an ordinary number."""


TURN = 8
"""Rows that are summed on the way are merged at every so many steps."""


@dataclass(frozen=True, eq=False)
class Way:
    """Neighbouring steps that rows are pulled back through, and what becomes of them there.

    Attributes:
        entering: the steps, how many entries there are at each, and what the loss gives, at the
            latest one, too.
        turns: the steps at which neighbouring entries become one, the latest first.
        lags: of each entry at each step, -1 where it has not entered yet, [E, K].
        merging: what the entries stand for at the earliest step.
        merged: how many fewer they are there than if none had become one on the way.
    """

    entering: Entering
    turns: Sequence[compiled.Turn]
    lags: Int[Tensor, "E K"]
    merging: Merging | None
    merged: int = 0


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


class Gathered:
    """Sums of rows by class and bin at neighbouring steps, as many of them as may be held.

    Gradients are formed of all these steps at once: each time goes through all gradients in memory.

    Args:
        starts: where the bins of lags begin.
        classes: rows of an entry.
        direct: what the loss gives at each step.

    Attributes:
        bins: these bins.
        left: how many more steps there is room for.
    """

    def __init__(self, starts: Sequence[int], classes: int, direct: Float[Tensor, "T B S"]):
        self.bins, self._sums = Binning(starts), len(starts) * classes
        numbers = self._sums * direct[0].numel()
        self.left = self._most = max(1, min(CHUNK, HELD // max(1, numbers)))
        self._direct, self._first = direct, 0

    @cached_property
    def _values(self) -> Float[Tensor, "N K B S"]:
        # The place of one more step keeps sums apart in the sets of a cache.
        room = self._direct.new_empty(self._sums, self._most + 1, *self._direct.shape[1:])
        return room[:, : self._most]

    @cached_property
    def _units(self) -> Int[Tensor, "N K"]:
        return self._direct.new_empty(self._sums, self._most, dtype=torch.int64)

    def room(self, steps: int) -> Float[Tensor, "N K B S"]:
        """For the sums of so many steps before those that are held."""
        return self._values[:, self.left - steps : self.left]

    def take(self, first: int, units: Int[Tensor, "N K"]) -> None:
        """Hold the sums that were written to the room for them, and their exponents."""
        self._units[:, self.left - units.shape[1] : self.left] = units
        self.left, self._first = self.left - units.shape[1], first

    def give(self, chunk: Chunk) -> SummedSpan | None:
        """All that is held, and hold nothing; it is there until more is written."""
        here, self.left = slice(self.left, self._most), self._most
        if here.start == here.stop:
            return None
        return SummedSpan(self._first, self._values[:, here], self._units[:, here], chunk)


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
        sums = gathered if gathered and _are_summed(chunk, k - length + 1, length) else None
        at_once = HELD  # entries times steps that there may be
        if sums:
            length = min(length, sums.left)
        else:
            at_once = HELD // (classes * entries.direct[0].numel())
            length = min(length, max(1, at_once // len(unit)))
        self._length = min(2 * self._length, CHUNK)
        while True:
            entering, units = self._coming(k, length, unit, given, at_once)
            way = self._way(entering, numbers, weights, units, bool(sums))
            pulled = _pull_back(chunk, self._values, way, sums)
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
        if self._merging is not None:
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
        summed: bool,
    ) -> Way:
        """What becomes of the rows at neighbouring steps.

        Args:
            entering: the steps.
            numbers, weights: what becomes of the entries that arrive at the latest one.
            unit: the exponents of all rows, entries numbered as if none were merged on the way.
            summed: whether rows are summed, so that they may be merged on the way.
        """
        first, rows, merging = entering.first, entering.rows, copy(self._merging)
        length = TURN if summed and merging is not None else len(rows)
        own, turns, lags, merged = unit[: rows[-1]], list[compiled.Turn](), list[Tensor](), 0
        left = list(rows)  # entries at each step
        for latest in range(len(rows) - 1, -1, -length):
            earliest = max(0, latest - length + 1)
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


def _are_summed(chunk: Chunk, first: int, count: int) -> bool:
    """Whether the library sums the rows at neighbouring steps, if they are asked for in sums."""
    steps = chunk.compiled_by_crossing
    if steps is None or chunk.compiled_uses is None:
        return False
    return compiled.sums_pay(steps) and plain_boundaries(chunk, first, count) is not None


def _pull_back(
    chunk: Chunk, start: Float[Tensor, "N B S"], way: Way, gathered: Gathered | None
) -> compiled.Crossed:
    """Rows of all classes pulled back from step to step, on exponents that stay between turns.

    Args:
        chunk: what holds the steps.
        start: what comes back to the latest of the steps, all classes of an entry one after the
            other.
        way: the steps.
        gathered: where the rows are summed to, if they are.
    """
    entering, binned = way.entering, None
    first, count = entering.first, len(entering)
    steps, passed = chunk.compiled_by_crossing, plain_boundaries(chunk, first, count)
    if steps is None or passed is None:
        return _eagerly(chunk, start, way)
    if gathered is not None:
        places = gathered.bins.numbers(way.lags)
        binned = compiled.Binned(len(gathered.bins), places, gathered.room(count))
    return compiled.pull_back(
        steps,
        first - chunk.first,
        start,
        way.turns,
        entering.rows,
        entering.values,
        passed,
        entering.back,
        binned,
    )


def _eagerly(chunk: Chunk, like: Float[Tensor, "N B S"], way: Way) -> compiled.Crossed:
    """The same by operations of torch, with a single turn."""
    entering, (turn,) = way.entering, way.turns
    rows, count, moves, first = entering.rows, len(entering), turn.moves, entering.first
    classes = moves.shape[1] + 1
    most = rows[0] * classes
    values = new_rows(like, count * most, *like.shape[1:]).view(count, most, *like.shape[1:])
    started = _started(like, turn, classes)
    for number, after in enumerate((*rows[1:], len(started) // classes)):
        values[number, after * classes :] = 0
    values[-1, : len(started)] = started
    step = _Step(chunk, moves, new_rows(like, most, *like.shape[1:]))
    back = new_rows(like, most, *like.shape[1:]) if entering.back else None
    for number in range(count - 1, -1, -1):
        some = rows[number] * classes
        if entering.values is not None:
            values[number, some - classes] += entering.values[number]
        before = values[number - 1, :some] if number else back
        if before is not None:
            step.pull_back(first + number, values[number, :some], before)
    sizes = _largest(values).T
    return compiled.Crossed(
        sizes, back, None if back is None else _largest(back), values.transpose(0, 1), None
    )


def _started(
    arriving: Float[Tensor, "N B S"], turn: compiled.Turn, classes: int
) -> Float[Tensor, "M B S"]:
    """The rows that become of those which arrive, without what the loss gives there."""
    count = torch.tensor(turn.sources, device=arriving.device).diff()
    target = torch.arange(len(count), device=count.device).repeat_interleave(count)
    target = target.unsqueeze(1) * classes + torch.arange(classes, device=count.device)
    total = arriving.new_zeros(len(count) * classes, *arriving.shape[1:])
    return total.index_add_(0, target.flatten(), arriving * turn.weights.view(-1, 1, 1))


def _largest(rows: Float[Tensor, "*N B S"]) -> Float[Tensor, "*N"]:
    """The size of the largest entry of each."""
    flat = rows.flatten(-2)
    return torch.maximum(flat.amax(-1), -flat.amin(-1))


class _Step:
    """Rows of all classes, pulled back through one step of a chunk.

    Args:
        chunk: what holds the steps.
        moves: what crosses from each class to the next is multiplied by.
        room: for what crossed.
    """

    def __init__(self, chunk: Chunk, moves: Float[Tensor, "E C1"], room: Float[Tensor, "N B S"]):
        self._chunk, self._classes, self._crossed = chunk, moves.shape[1] + 1, room
        self._program: Program = chunk.plan.by_crossing(frozenset(chunk.cell.recurrent_routes))
        self._moves = moves[..., None, None]
        self._width = room.shape[-1]

    def pull_back(self, k: int, rows: Float[Tensor, "N B S"], out: Float[Tensor, "N B S"]) -> None:
        """Write what comes back to the state before: what stays, and what crossed once more."""
        chunk, program, classes = self._chunk, self._program, self._classes
        crossed, boundary = self._crossed[: len(rows)], chunk.boundaries.get(k)
        staying, crossing = program.slots
        if boundary is not None:
            whole = [slice(0, self._width)]
            staying, crossing = (whole if slots else [] for slots in program.slots)
        covered = {(slot.start, slot.stop) for slot in (*staying, *crossing)}
        if sum(stop - start for start, stop in covered) < self._width:
            out.zero_()
        frame = program.at(k - chunk.first)
        program.run_to(frame, rows, [out, crossed], fill=boundary is not None)
        if boundary is not None:
            out.copy_(boundary.pull_back(out))
            crossed = boundary.pull_back(crossed)
        moves = self._moves[: len(rows) // classes]
        for slot in crossing:
            moving = crossed[..., slot].unflatten(0, (-1, classes))  # type: ignore[no-untyped-call]
            here = out[..., slot].unflatten(0, (-1, classes))  # type: ignore[no-untyped-call]
            if slot in staying:
                here[:, 1:].addcmul_(moving[:, :-1], moves)
            else:
                here[:, 0] = 0
                torch.mul(moving[:, :-1], moves, out=here[:, 1:])
            here[:, -1].add_(moving[:, -1])


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


@torch.no_grad()
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
