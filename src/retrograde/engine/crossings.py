"""The backward recursion, its rows told apart by how often their paths crossed recurrent weights.

    v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

R holds the routes that cross recurrent weights, A the others; the last class keeps what crosses
that often or more. The sum over n is the adjoint of adjoint.py. Class 0 is the carousel alone.

Every class has an exponent of its own, which stays what it is for a stretch of steps. What crosses
to the next class is multiplied by the power of two that lies between the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.program import Program, new_rows
from retrograde.compiled import crossings as compiled
from retrograde.engine.adjoint import AdjointSpan, AdjointStep, SummedSpan, refuse_non_finite
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


@dataclass(frozen=True, eq=False)
class Arriving:
    """What comes back to a step, and the rows that become of it there.

    Attributes:
        values: what comes back, all classes of an entry one after the other, [A * C, B, S].
        weights: what each of these rows is multiplied by, [A * C].
        sources: those that each entry at the step is the sum of: where they begin, and the end.
    """

    values: Float[Tensor, "N B S"]
    weights: Float[Tensor, "N"]
    sources: Sequence[int]

    def rows(self, classes: int) -> Float[Tensor, "M B S"]:
        """The rows at the step, without what the loss gives there."""
        count = torch.tensor(self.sources, device=self.values.device).diff()
        target = torch.arange(len(count), device=count.device).repeat_interleave(count)
        target = target.unsqueeze(1) * classes + torch.arange(classes, device=count.device)
        total = self.values.new_zeros(len(count) * classes, *self.values.shape[1:])
        return total.index_add_(0, target.flatten(), self.values * self.weights.view(-1, 1, 1))


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
        starts: where all bins of lags but the nearest begin.
        classes: rows of an entry.
        direct: what the loss gives at each step.

    Attributes:
        bins: how many there are.
        left: how many more steps there is room for.
    """

    def __init__(self, starts: Int[Tensor, "M1"], classes: int, direct: Float[Tensor, "T B S"]):
        self.bins, self._starts, self._sums = len(starts) + 1, starts, (len(starts) + 1) * classes
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

    def bins_of(self, lags: Int[Tensor, "*R"]) -> Int[Tensor, "*R"]:
        """The bin of each lag, the nearest first."""
        return torch.bucketize(lags.contiguous(), self._starts.to(lags.device), right=True)

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
        arriving, exponent = self._arrive(k, given, opens)
        count = len(exponent) // classes
        numbers = max(count, gathered.bins if gathered else 0) * classes
        numbers *= entries.direct[0].numel()  # at a step
        length = min(self._length, k - chunk.first + 1, max(1, HELD // numbers))
        length = min(length, gathered.left) if gathered else length
        self._length = min(2 * self._length, CHUNK)
        while True:
            entering, units = self._coming(k, length, exponent, given)
            lags = self._lags(entering)
            pulled = _pull_back(chunk, arriving, entering, units, classes, lags, gathered)
            refuse_non_finite(pulled.sizes[:, -1], k)
            stop = self._first_out(pulled.sizes)
            if stop is None:
                break
            self._length = length = len(entering) - 1 - stop  # the later ones alone
        self.stopped, self._exponent = entering.first - 1, units
        if pulled.back is not None and pulled.back_sizes is not None:
            self._values, self._sizes = pulled.back, pulled.back_sizes
        return Stretch(chunk, entering.first, units, lags, pulled)

    def _arrive(
        self, k: int, given: Scaled | None, opens: bool
    ) -> tuple[Arriving, Int[Tensor, "M"]]:
        """The rows at step k brought into range, neighbouring entries merged, and their exponents.

        An empty class is on the scale of the one before it.
        """
        sizes, old, classes = self._sizes, self._exponent, self._classes
        refuse_non_finite(sizes, k)
        numbers = self._merge(k, self.count + opens)
        limit = 1022 if sizes.dtype == torch.float64 else 126  # what a weight can be
        shift = (torch.frexp(sizes).exponent.to(torch.int64) - CENTRE).clamp(min=-limit)
        scale = torch.where(sizes > 0, old + shift, NO_EXPONENT).view(-1, classes)
        target = torch.tensor(numbers[: self.count], dtype=torch.int64, device=old.device)
        own = scale.new_full((numbers[-1] + 1, classes), NO_EXPONENT)
        own.scatter_reduce_(0, target.unsqueeze(1).expand_as(scale), scale, "amax")
        if given is not None:
            own[-1, 0] = torch.maximum(own[-1, 0], given.exponent[0])
        apart = APART * torch.arange(classes, device=own.device)
        least = (own + apart).cummax(1).values - apart
        unit = torch.where(own == NO_EXPONENT, _last_known(own), torch.maximum(own, least))
        unit = torch.where(unit == NO_EXPONENT, 0, unit)
        moved = torch.where(sizes > 0, old - unit[target].flatten(), 0)
        begin = [n for n in range(self.count) if n == 0 or numbers[n] != numbers[n - 1]]
        weights = power_of_two(moved, self._values)
        return Arriving(self._values, weights, [*begin, self.count]), unit.flatten()

    def _merge(self, k: int, count: int) -> list[int]:
        """The number that each of the entries has once those near beside their lag are merged."""
        numbers = list(range(count))
        if self._merging is None:
            return numbers
        self._merging.opened(count)
        while pairs := self._merging.pairs(k):
            numbers = [pairs[number] for number in numbers]
        self._more -= count - numbers[-1] - 1
        return numbers

    def _coming(
        self, k: int, length: int, exponent: Int[Tensor, "N"], given: Scaled | None
    ) -> tuple[Entering, Int[Tensor, "M"]]:
        """Up to so many steps that end with k, what the loss gives there, and all exponents."""
        entries, classes = self._entries, self._classes
        count, newest = len(exponent) // classes, int(exponent[-classes])
        most = HELD // entries.direct[0].numel() // classes
        coming = entries.coming(k, length, count, self._more, newest, most)
        first, values, units = coming.first, coming.values, exponent
        if given is not None:
            if values is None:
                values = torch.zeros_like(entries.direct[first : k + 1])
            values[-1:] = times_power_of_two(given.values, given.exponent - newest)
        if coming.opened:
            more = exponent.new_tensor(coming.opened).repeat_interleave(classes)
            units = torch.cat((exponent, more))
        return Entering(first, coming.rows, values, back=first > 0), units

    def _first_out(self, sizes: Float[Tensor, "M K"]) -> int | None:
        """The latest step, before the last, at which a row is out of range."""
        low, high = 2.0**LEAST, 2.0 ** (CENTRE + SLACK)
        start = sizes[:, -1:]
        out = ~(sizes <= high) | ((sizes > 0) & (sizes < low) & ~((start > 0) & (start < low)))
        some = torch.nonzero(out[:, :-1].any(0))
        return int(some[-1]) if len(some) else None

    def _lags(self, entering: Entering) -> Int[Tensor, "E K"]:
        first, count, rows = entering.first, len(entering), entering.rows[0]
        if self._merging is None:
            return self._entries.lags_between(first, count, rows)
        self._merging.opened(rows)
        return self._merging.lags(first, count)[:rows]  # a longer stretch has opened more


def _pull_back(
    chunk: Chunk,
    arriving: Arriving,
    entering: Entering,
    exponent: Int[Tensor, "M"],
    classes: int,
    lags: Int[Tensor, "E K"],
    gathered: Gathered | None,
) -> compiled.Crossed:
    """Rows of all classes pulled back from step to step, on exponents that stay.

    Args:
        chunk: what holds the steps.
        arriving: what comes back to the latest of the steps.
        entering: the steps, how many entries there are at each, and what the loss gives, at the
            latest one, too.
        exponent: of the rows, also those that come.
        classes: rows of an entry.
        lags: of the entries.
        gathered: where the rows may be summed to.
    """
    unit = exponent.view(-1, classes)
    moves = power_of_two(unit[:, :-1] - unit[:, 1:], arriving.values)
    first, count = entering.first, len(entering)
    steps, passed = chunk.compiled_by_crossing, plain_boundaries(chunk, first, count)
    if steps is None or passed is None:
        return _eagerly(chunk, arriving, entering, moves)
    binned = None
    if gathered and chunk.compiled_uses is not None and compiled.sums_pay(steps):
        places, room = gathered.bins_of(lags), gathered.room(count)
        binned = compiled.Binned(gathered.bins, places, exponent, room)
    return compiled.pull_back(
        steps,
        first - chunk.first,
        arriving.values,
        arriving.weights,
        arriving.sources,
        entering.rows,
        entering.values,
        moves,
        passed,
        entering.back,
        binned,
    )


def _eagerly(
    chunk: Chunk, arriving: Arriving, entering: Entering, moves: Float[Tensor, "E C1"]
) -> compiled.Crossed:
    """The same by operations of torch."""
    rows, count, classes = entering.rows, len(entering), moves.shape[1] + 1
    most, like, first = rows[0] * classes, arriving.values, entering.first
    values = new_rows(like, count * most, *like.shape[1:]).view(count, most, *like.shape[1:])
    started = arriving.rows(classes)
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
    unrolled: Unrolled, entries: Entries, classes: int, starts: Int[Tensor, "M1"]
) -> dict[str, Scaled]:
    """The gradient of each parameter by class and bin of lags: row `n * bins + bin`, nearest first.

    Args:
        unrolled: the pass.
        entries: where the loss enters, and in which rows.
        classes: how many there are; the last one holds all that crossed that often or more.
        starts: the first lag of each bin but the nearest.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows, gathered = PerCrossing(entries, classes), Gathered(starts, classes, entries.direct)
    sums = AdjointSums(unrolled.cell, classes * gathered.bins)
    of_class = gathered.bins * torch.arange(classes, device=entries.direct.device).view(-1, 1)
    for chunk in unrolled.chunks():
        for stretch in _stretches(rows, chunk, gathered):
            if stretch.pulled.units is None:
                _add(sums, gathered.give(chunk))  # what is held lies at neighbouring steps
                places = gathered.bins_of(stretch.lags).unsqueeze(1) + of_class
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
