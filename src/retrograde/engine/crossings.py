"""The backward recursion, its rows told apart by how often their paths crossed recurrent weights.

    v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

R holds the routes that cross recurrent weights, A the others; the last class keeps what crosses
that often or more. The sum over n is the adjoint of adjoint.py. Class 0 is the carousel alone.

Every class has an exponent of its own, which stays what it is for a stretch of steps. What crosses
to the next class is multiplied by the power of two that lies between the two.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.program import Program, new_rows
from retrograde.compiled import crossings as compiled
from retrograde.engine.adjoint import AdjointSpan, AdjointStep, refuse_non_finite
from retrograde.engine.entries import Entries
from retrograde.engine.merging import Merging
from retrograde.engine.scaling import (
    CENTRE,
    NO_EXPONENT,
    SLACK,
    Scaled,
    power_of_two,
    times_power_of_two,
)
from retrograde.engine.scan import Entering, Pulled, plain_boundaries
from retrograde.engine.unroll import CHUNK, Chunk, Unrolled

HELD = 2**22
"""Adjoints of neighbouring steps are held together up to this many numbers, 16 MiB in float32."""

LEAST, APART = -48, 64
"""A stretch ends where the largest entry of a row falls below 2^LEAST: no squares are taken of
these rows, and their entries are ordinary numbers down to 2^-126. Where a class is more than
2^APART below the one before, what comes from there will soon be all that it holds."""


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
        self._exponent = torch.zeros(0, dtype=torch.int64, device=entries.direct.device)
        self._more = 0  # groups than entries that have opened one
        self._complete = False  # whether what the loss gives to the step is there already
        self._length = CHUNK
        self.stopped = len(entries.direct) - 1

    @property
    def count(self) -> int:
        return len(self._exponent) // self._classes

    def enter(self, k: int) -> None:
        """Add what the loss gives to s_k, which has crossed nothing yet."""
        if self._complete:
            return
        self._complete = True
        entries, classes, opened = self._entries, self._classes, self.count - self._more
        if entries.opens(k, opened):
            entering = entries.at(k)
            rows = entering.values.new_zeros(classes, *entering.values.shape[1:])
            rows[0] = entering.values[0]
            self._values = torch.cat((self._values, rows))
            self._exponent = torch.cat((self._exponent, entering.exponent.expand(classes)))
        elif entries.covers(k, opened):
            newest = slice(len(self._values) - classes, len(self._values) - classes + 1)
            joined = Scaled(self._values[newest], self._exponent[newest]).plus(entries.at(k))
            self._values[newest], self._exponent[newest] = joined.values, joined.exponent

    def skip(self) -> None:
        """Pass a step before any entry."""
        self.stopped, self._complete = self.stopped - 1, False

    def merge(self, k: int) -> None:
        """Add up the rows of neighbouring entries that are near to each other beside their lag."""
        if self._merging is None:
            return
        self._merging.opened(self.count)
        numbers = list(range(self.count))
        while pairs := self._merging.pairs(k):
            numbers = [pairs[number] for number in numbers]
        if numbers[-1] + 1 == self.count:
            return
        target = torch.tensor(numbers, device=self._exponent.device).unsqueeze(1) * self._classes
        target = (target + torch.arange(self._classes, device=target.device)).flatten()
        scale = Scaled(self._values, self._exponent).log2_scale()
        count = (numbers[-1] + 1) * self._classes
        top = scale.new_full((count,), NO_EXPONENT).scatter_reduce_(0, target, scale, "amax")
        top = torch.where(top == NO_EXPONENT, 0, top)
        shift = (self._exponent - top[target]).clamp(max=0)
        total = self._values.new_zeros(count, *self._values.shape[1:])
        total.index_add_(0, target, times_power_of_two(self._values, shift))
        self._more -= self.count - numbers[-1] - 1
        self._values, self._exponent = total, top

    def stretch(self, chunk: Chunk, k: int) -> AdjointSpan:
        """The rows at step k, complete, and at as many earlier ones as they stay in range.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        classes, start = self._classes, self._centred(k)
        size = start.values[0].numel()
        length = min(self._length, k - chunk.first + 1, max(1, HELD // (len(start.values) * size)))
        coming = self._entries.coming(
            k,
            length,
            self.count,
            self._more,
            int(start.exponent[-classes]),
            HELD // size // classes,
        )
        first, rows, opened = coming.first, coming.rows, coming.opened
        most, exponent = rows[0] * classes, start.exponent
        if opened:
            more = exponent.new_tensor(opened).repeat_interleave(classes)
            exponent = torch.cat((exponent, more))
        entering = Entering(first, rows, coming.values, back=first > 0)
        pulled = _pull_back(chunk, start.values, entering, exponent, classes)
        values, sizes = pulled.values, pulled.norms
        stop = self._first_out(sizes) if len(rows) > 1 else None
        if stop is None:
            self.stopped, self._complete = first - 1, False
            self._length = min(2 * self._length, CHUNK)
            self._exponent = exponent
            if pulled.back is not None:
                self._values = pulled.back
        else:
            self.stopped, self._complete = first + stop, True
            self._length = max(1, len(rows) - 1 - stop)
            here = rows[stop] * classes
            self._values, self._exponent = values[:here, stop].contiguous(), exponent[:here]
            first, rows = first + stop + 1, rows[stop + 1 :]
            most = rows[0] * classes
            values, sizes = values[:most, stop + 1 :], sizes[:most, stop + 1 :]
        lags = self._lags(first, len(rows), rows[0])
        units = exponent[:most].unsqueeze(1).expand(-1, len(rows))
        units = torch.where((lags < 0).repeat_interleave(classes, 0), 0, units)
        return AdjointSpan(first, values, units, sizes, lags, chunk)

    def _centred(self, k: int) -> Scaled:
        """The rows brought into range; an empty class is on the scale of the one before it."""
        values = self._values
        flat = values.flatten(1)
        sizes = torch.maximum(flat.amax(1), -flat.amin(1))
        refuse_non_finite(sizes, k)
        inside = (sizes >= 2.0 ** (CENTRE - SLACK)) & (sizes <= 2.0 ** (CENTRE + SLACK))
        shift = torch.where(
            inside | (sizes == 0), 0, torch.frexp(sizes).exponent.to(torch.int64) - CENTRE
        )
        own = torch.where(sizes > 0, self._exponent + shift, NO_EXPONENT).view(-1, self._classes)
        apart = APART * torch.arange(self._classes, device=own.device)
        least = (own + apart).cummax(1).values - apart
        unit = torch.where(own == NO_EXPONENT, _last_known(own), torch.maximum(own, least))
        unit = torch.where(unit == NO_EXPONENT, 0, unit).flatten()
        shift = torch.where(sizes > 0, self._exponent - unit, 0)
        return Scaled(times_power_of_two(values, shift), unit)

    def _first_out(self, sizes: Float[Tensor, "M K"]) -> int | None:
        """The latest step, before the last, at which a row is out of range."""
        low, high = 2.0**LEAST, 2.0 ** (CENTRE + SLACK)
        start = sizes[:, -1:]
        out = ~(sizes <= high) | ((sizes > 0) & (sizes < low) & ~((start > 0) & (start < low)))
        some = torch.nonzero(out[:, :-1].any(0))
        return int(some[-1]) if len(some) else None

    def _lags(self, first: int, count: int, rows: int) -> Int[Tensor, "E K"]:
        if self._merging is None:
            return self._entries.lags_between(first, count, rows)
        self._merging.opened(rows)
        return self._merging.lags(first, count)


def _pull_back(
    chunk: Chunk,
    start: Float[Tensor, "N B S"],
    entering: Entering,
    exponent: Int[Tensor, "M"],
    classes: int,
) -> Pulled:
    """Rows of all classes pulled back from step to step, on exponents that stay.

    Args:
        chunk: what holds the steps.
        start: the rows at the latest of the steps, complete.
        entering: the steps, how many entries there are at each, and what the loss gives.
        exponent: of the rows, also those that come.
        classes: rows of an entry.
    """
    unit = exponent.view(-1, classes)
    moves = power_of_two(unit[:, :-1] - unit[:, 1:], start)
    first, count = entering.first, len(entering)
    steps, passed = chunk.compiled_by_crossing, plain_boundaries(chunk, first, count)
    if steps is None or passed is None:
        return _eagerly(chunk, start, entering, moves)
    given, at = entering.values, first - chunk.first
    found = compiled.pull_back(steps, at, start, entering.rows, given, moves, passed, entering.back)
    return Pulled(found.values, found.norms, found.back)


def _eagerly(
    chunk: Chunk, start: Float[Tensor, "N B S"], entering: Entering, moves: Float[Tensor, "E C1"]
) -> Pulled:
    """The same by operations of torch."""
    rows, count, classes = entering.rows, len(entering), moves.shape[1] + 1
    most, shape, first = rows[0] * classes, start.shape[1:], entering.first
    values = new_rows(start, count * most, *shape).view(count, most, *shape)
    for number, after in enumerate(rows[1:]):
        values[number, after * classes :] = 0
    values[-1] = 0
    values[-1, : len(start)] = start
    step = _Step(chunk, moves, new_rows(start, most, *shape))
    for number in range(count - 1, 0, -1):
        some = rows[number] * classes
        step.pull_back(first + number, values[number, :some], values[number - 1, :some])
        if entering.values is not None:
            values[number - 1, (rows[number - 1] - 1) * classes] += entering.values[number - 1]
    back = new_rows(start, most, *shape) if entering.back else None
    if back is not None:
        step.pull_back(first, values[0], back)
    flat = values.flatten(2)
    sizes = torch.maximum(flat.amax(2), -flat.amin(2))
    return Pulled(values.transpose(0, 1), sizes.T, back)


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
        while rows.stopped >= chunk.first:
            k = rows.stopped
            rows.enter(k)
            if not rows.count:
                rows.skip()
                continue
            rows.merge(k)
            yield rows.stretch(chunk, k)


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
