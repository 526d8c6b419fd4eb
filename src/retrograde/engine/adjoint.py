"""One row for each loss step, for every cell: what the decompositions are made of.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
Spans of neighbouring steps are all that a decomposition sees; each is a fold over them and keeps
only its own result.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import ParamSpec, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde.cells.reverse_mode import CellAdjoint, FormedGradients
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import (
    CENTRE,
    NO_EXPONENT,
    ORDINARY,
    SLACK,
    Scaled,
    all_finite,
    factors_to_centre,
    in_range,
    power_of_two,
    row_norms,
    times_power_of_two,
)
from retrograde.engine.scan import Entering, Pulled, backend
from retrograde.engine.unroll import CHUNK, Chunk, Unrolled
from retrograde.errors import NonFiniteError

AHEAD = SLACK - 4
"""Rows start so many powers of two above the centre of the range, since most shrink, and those that
left it at that end so many below."""

LIFT = AHEAD - 8
"""Those that enter on the way have their largest number so far above it; the norm is larger."""

GATHERED = 2**22
"""Adjoints of neighbouring steps are held together up to this many numbers, 16 MiB in float32."""

STRETCHED = 3 * 2**21
"""Rows are pulled back through so many steps at once that they are no more numbers than this,
24 MiB in float32."""

Asked = ParamSpec("Asked")
"""What a function that yields spans is asked for."""


@dataclass(frozen=True)
class AdjointStep:
    """All adjoint rows at one use step.

    Row j belongs to the j-th latest entry. Its adjoint dL_j/ds_k is `delta.values[j] *
    2**delta.exponent[j]`, `norms` are the L2 norms of the values over batch and state. `chunk`
    holds step k and its neighbours, `entered` is the number of entries at or after it. Where each
    entry has a row for every number of crossings, row `entry * classes + n`, `norms` are the sizes
    of the largest entries.
    """

    k: int
    delta: Scaled
    norms: Float[Tensor, "N"]
    chunk: Chunk
    entries: Entries
    entered: int

    @property
    def lags(self) -> Int[Tensor, "E"]:
        """Of the entries that have entered, latest first, in steps."""
        return self.entries.lags(self.k, self.entered)

    @cached_property
    def adjoint(self) -> CellAdjoint:
        """The pull-back of the values through step k."""
        return self.pull_back(self.delta.values)

    def pull_back(self, values: Float[Tensor, "N B S"]) -> CellAdjoint:
        """The pull-back of other values."""
        return self.chunk.pull_back(values, self.k)


@dataclass(frozen=True, eq=False)
class AdjointSpan:
    """All adjoint rows at some neighbouring use steps, which decompositions take at once.

    The rows are those of the earliest step; at a later one those that have not entered yet are 0.

    Attributes:
        first: the earliest step.
        values: the adjoints of s_first, s_first+1, ..., [N, K, B, S].
        exponent: of each row at each step; 2**exponent is what its values are in units of, [N, K].
        norms: the norms of the values, [N, K].
        lags: of each entry at each step, -1 where it has not entered yet, [E, K].
        chunk: what holds these steps.
        signed: where rows were merged, what tells the sizes of their terms (merging.py).
    """

    first: int
    values: Float[Tensor, "N K B S"]
    exponent: Int[Tensor, "N K"]
    norms: Float[Tensor, "N K"]
    lags: Int[Tensor, "E K"]
    chunk: Chunk
    signed: "Signed | None" = None

    @staticmethod
    def of(steps: Sequence[AdjointStep], lags: Int[Tensor, "E K"]) -> "AdjointSpan":
        """Neighbouring steps at once, given as they come: the latest first."""
        rows, early = len(steps[-1].norms), steps[-1]

        def together(each: list[Tensor]) -> Tensor:
            if len(each) == 1:
                return each[0].unsqueeze(1)
            if len(steps[0].norms) == rows:
                return torch.stack(each[::-1], 1)
            whole = each[0].new_zeros(rows, len(each), *each[0].shape[1:])
            for number, one in enumerate(reversed(each)):
                whole[: len(one), number] = one
            return whole

        return AdjointSpan(
            early.k,
            together([step.delta.values for step in steps]),
            together([step.delta.exponent for step in steps]),
            together([step.norms for step in steps]),
            lags,
            early.chunk,
        )

    def __len__(self) -> int:
        return self.values.shape[1]

    @property
    def steps(self) -> slice:
        """The steps, as a slice of all."""
        return slice(self.first, self.first + len(self))

    @property
    def here(self) -> slice:
        """The same steps as a slice of those of the chunk."""
        return slice(self.first - self.chunk.first, self.first - self.chunk.first + len(self))

    @cached_property
    def adjoint(self) -> CellAdjoint:
        """The pull-back of the values, the steps as samples of one step: [N, K*B, ...]."""
        return self.pull_back(self.values)

    def pull_back(self, values: Float[Tensor, "M K B S"]) -> CellAdjoint:
        """The same of other values."""
        return self.chunk.pull_back(values.flatten(1, 2), self.first, len(self))

    @cached_property
    def formed(self) -> tuple[tuple[FormedGradients, ...], ...]:
        """The gradients that only a function gives, of each step."""
        if not self.chunk.plan.functions:
            return ((),) * len(self)
        each = enumerate(self.values.unbind(1), self.first)
        return tuple(self.chunk.pull_back(values, k).formed for k, values in each)

    def rows(self, which: slice, lags: Int[Tensor, "M K"]) -> "AdjointSpan":
        """Some of the rows, whose lags these are; what has not entered yet has an exponent of 0."""
        exponent = torch.where(lags < 0, 0, self.exponent[which])
        return AdjointSpan(
            self.first, self.values[which], exponent, self.norms[which], lags, self.chunk
        )

    def pieces(self, rows: int) -> "Iterator[AdjointSpan]":
        """The same in spans short enough to hold this many rows of each step, the last first."""
        for part in _pieces(self.values, rows):
            yield AdjointSpan(
                self.first + part.start,
                self.values[:, part],
                self.exponent[:, part],
                self.norms[:, part],
                self.lags[:, part],
                self.chunk,
            )


@dataclass(frozen=True, eq=False)
class Signed:
    """What tells the sizes of the entries of merged rows, which come before all others.

    Attributes:
        companions: rows whose squared norms are those of single entries, on the mean over random
            signs; the first ones of all merged rows, then all second ones and so on.
        exact: whether the mean of these is exact, as few entries were merged, [M].
        entries: how many entries each row stands for, merged ones and then single ones, [N].
        parents: for each row at the steps after these, its number now; None for the same.
    """

    companions: AdjointSpan
    exact: Bool[Tensor, "M"]
    entries: Int[Tensor, "N"]
    parents: Int[Tensor, "P"] | None

    @property
    def merged(self) -> int:
        """How many rows were merged."""
        return len(self.exact)


@runtime_checkable
class Fold(Protocol):
    """A consumer of the stream; what it collects is its own business."""

    def update(self, span: AdjointSpan) -> None:
        """Take some neighbouring steps, the last ones first."""


@dataclass(frozen=True, eq=False)
class SummedSpan:
    """Sums of adjoint rows at some neighbouring use steps.

    Attributes:
        first: the earliest step.
        values: the sums, [M, K, B, S].
        exponent: of each sum at each step, NO_EXPONENT where it has no row, [M, K].
        chunk: what holds these steps.
    """

    first: int
    values: Float[Tensor, "M K B S"]
    exponent: Int[Tensor, "M K"]
    chunk: Chunk

    def __len__(self) -> int:
        return self.values.shape[1]

    @property
    def here(self) -> slice:
        """The steps as a slice of those of the chunk."""
        start = self.first - self.chunk.first
        return slice(start, start + len(self))

    def pieces(self, rows: int) -> "Iterator[SummedSpan]":
        """The same in spans short enough to hold this many rows of each step, the last first."""
        for part in _pieces(self.values, rows):
            first, exponent = self.first + part.start, self.exponent[:, part]
            yield SummedSpan(first, self.values[:, part], exponent, self.chunk)


def _pieces(values: Float[Tensor, "N K B S"], rows: int) -> Iterator[slice]:
    """Steps in parts of much the same length, so that this many rows can be held, last first."""
    _, count, batch, size = values.shape
    most = max(1, GATHERED // (rows * batch * size))
    length = -(-count // -(-count // most))
    for stop in range(count, 0, -length):
        yield slice(max(0, stop - length), stop)


@runtime_checkable
class Summing(Protocol):
    """What takes sums of rows where all rows are those of single loss steps.

    Attributes:
        sums: how many there are at each step.
    """

    sums: int

    def places(self, lags: Int[Tensor, "E K"]) -> Int[Tensor, "E K"]:
        """The number of the sum that rows with these lags belong to."""

    def add(self, span: SummedSpan) -> None:
        """Take some neighbouring steps, the last ones first."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Rows at neighbouring steps, whatever they stand for; the newest is the last.

    Attributes:
        first: the earliest step.
        values: the adjoints of the states after the steps, [N, K, B, S].
        exponent: 2**exponent is what the values of a row at a step are in units of, [N, K].
        norms: the norms of the values, [N, K].
        rows: the number of rows that have entered at each step; the others are 0.
    """

    first: int
    values: Float[Tensor, "N K B S"]
    exponent: Int[Tensor, "N K"]
    norms: Float[Tensor, "N K"]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def at_steps(self, lags: Int[Tensor, "M K"]) -> Int[Tensor, "M K"]:
        """The exponents of the last M rows at each step; 0 where one has not entered yet."""
        return torch.where(lags < 0, 0, self.exponent[-len(lags) :])


class PerEntry:
    """One row for each entry, latest first, each with an exponent of its own.

    Rows are brought into range before a stretch of steps. One that leaves it within the stretch
    ends the stretch there, and the step at which it did so is the first of the next one, which
    starts near the other end of the range: rows that shrank will shrink on. Most shrink, and so the
    first stretch starts near the upper end. A step from there to what is not finite is done again,
    from near the lower end.

    Attributes:
        count: the number of rows that have entered.
        stopped: the step before those that are done.
    """

    def __init__(self, entries: Entries):
        self._entries, self.count = entries, 0
        self._more = 0  # rows than entries that have opened one
        self._newest = 0  # the exponent of the newest row
        direct = entries.direct
        self._values = direct.new_empty(1, *direct.shape[1:])  # the last row is spare
        self._norms: Tensor | None = direct.new_empty(0)  # of the others, where they are known
        self._exponent = torch.zeros(0, dtype=torch.int64, device=direct.device)
        self._complete = False  # whether what the loss gives to the step is there already
        self._length = CHUNK // 2
        self._centre = CENTRE + AHEAD  # the power of two near which a stretch starts
        self.stopped = len(direct) - 1

    @property
    def rows(self) -> Scaled:
        """The rows as they are, not brought into range."""
        return Scaled(self._values[: self.count], self._exponent)

    def become(self, rows: Scaled) -> None:
        """Go on with other rows; the newest must be what it was."""
        values, self._norms = rows.values, None
        self._values = torch.cat((values, torch.empty_like(values[:1])))
        self._exponent = rows.exponent
        self._more += len(rows.exponent) - self.count
        self.count = len(rows.exponent)
        if self.count:
            self._newest = int(rows.exponent[-1])

    def enter(self, k: int) -> None:
        """Add what the loss gives to s_k: a new row, or part of the newest if that goes on."""
        if self._complete:
            return
        self._complete = True
        entries, count, values = self._entries, self.count, self._values
        if entries.opens(k, count - self._more):
            self._exponent = torch.cat(
                (self._exponent, entries.write(k, values[count : count + 1]))
            )
            self._newest, self.count = entries.exponents.get(k, 0), count + 1
        elif entries.covers(k, count - self._more) and not entries.add(
            k, values[count - 1], self._newest
        ):
            newest = slice(count - 1, count)
            joined = Scaled(values[newest], self._exponent[newest]).plus(entries.at(k))
            values[newest] = joined.values
            self._exponent = torch.cat((self._exponent[:-1], joined.exponent))
            self._newest = int(joined.exponent)
        if self._norms is not None and self.count:
            own = row_norms(values[self.count - 1 : self.count])
            self._norms = torch.cat((self._norms[: self.count - 1], own))

    def skip(self) -> None:
        """Pass a step before any entry."""
        self.stopped, self._complete = self.stopped - 1, False

    def stretch(self, chunk: Chunk, k: int, first: int = 0) -> Stretch:
        """The rows at step k, complete, and at as many earlier ones as they stay in range.

        Args:
            chunk: what holds the step.
            k: the step.
            first: the earliest step to go to.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        size = self._values[0].numel()
        steps = k - max(first, chunk.first) + 1
        length = min(steps, max(1, STRETCHED // (self.count * size)))
        most = min(len(self._entries) + self._more, self.count + steps)
        ranged = backend().ranges(chunk, most)
        slack = SLACK
        if not ranged:  # room for a factor of two at each step; one that moves faster ends it
            length = min(self._length, length)
            slack = max(1, SLACK - length)
        delta, norms, scales = self._into_range(k, slack)
        lift = min(self._centre - CENTRE, LIFT) if self._entries.single and not ranged else 0
        coming = self._entries.coming(
            k, length, self.count, self._more, self._newest, STRETCHED // size, lift
        )
        back = coming.first > 0
        entering = Entering(coming.first, coming.rows, coming.values, back, ranged)
        opened = coming.opened
        pulled = backend().pull_back(chunk, delta.values, entering, scales)
        exponent, rows = delta.exponent, entering.rows
        if opened:
            exponent = torch.cat((exponent, exponent.new_tensor(opened)))
        exponent = exponent.unsqueeze(1).expand_as(pulled.norms)
        if pulled.exponents is not None:
            exponent = exponent + pulled.exponents
        out = _first_out(pulled.norms, norms, entering) if len(rows) > 1 else None
        if self._too_high(pulled, rows, out):
            out = 0 if out is None else out + 1  # the step from there again, with lower rows
            if out == len(rows) - 1:
                self._centre, self._newest = CENTRE - AHEAD, int(self._exponent[-1])
                return self.stretch(chunk, k, first)
        self.count = rows[0 if out is None else out]
        self._exponent = exponent[: self.count, out or 0].contiguous()
        self._newest = int(self._exponent[-1])
        if out is None:
            self.stopped, self._complete = entering.first - 1, False
            longer = 2 * len(rows) if len(rows) >= CHUNK else min(2 * len(rows), CHUNK)
            self._length = max(self._length, longer)
            if pulled.back is not None:
                self._values, self._norms = pulled.back, pulled.back_norms
            return Stretch(entering.first, pulled.values, exponent, pulled.norms, rows)
        shrank = bool((pulled.norms[: rows[out], out] < 2.0 ** (CENTRE - SLACK)).any())
        self._centre = CENTRE + AHEAD if shrank else CENTRE - AHEAD
        self.stopped, self._complete = entering.first + out, True
        self._length = max(1, len(rows) - 1 - out)
        self._values = pulled.values[: self.count, out].contiguous()
        self._norms = pulled.norms[: self.count, out]
        kept = rows[out + 1 :]
        some = slice(kept[0]), slice(out + 1, None)
        return Stretch(
            self.stopped + 1, pulled.values[some], exponent[some], pulled.norms[some], kept
        )

    def _too_high(self, pulled: Pulled, rows: Sequence[int], out: int | None) -> bool:
        """Whether rows were too high up for the step to where they left the range, or to `back`."""
        if self._centre == CENTRE - AHEAD:
            return False
        if out is not None:
            norms, values = pulled.norms[: rows[out], out], pulled.values[: rows[out], out]
        elif pulled.back is not None and pulled.back_norms is not None:
            norms, values = pulled.back_norms, pulled.back[:-1]
        else:
            return False
        return not (all_finite(norms) or all_finite(values))

    def sum_into(
        self,
        summing: Summing,
        chunk: Chunk,
        k: int,
        lags: Callable[[int, int, int], Int[Tensor, "E K"]],
        first: int = 0,
    ) -> bool:
        """Pull the rows at step k, complete, back through earlier ones, and hand over sums alone.

        Args:
            summing: what takes them.
            chunk: what holds the step.
            k: the step.
            lags: of so many rows at so many neighbouring steps from the first on.
            first: the earliest step to go to.

        Returns:
            Whether this was done; if not, nothing was.
        """
        if not self._entries.single or chunk.compiled is None:
            return False
        numbers = max(self.count, summing.sums * self._values[0].numel())
        length = min(k - max(first, chunk.first) + 1, max(1, GATHERED // numbers))
        coming = self._entries.coming(k, length, self.count, self._more, self._newest, GATHERED)
        rows, steps = coming.rows[0], len(coming.rows)
        if rows < 2 * summing.sums:
            return False  # no fewer numbers than those of the rows
        exponent = torch.cat((self._exponent, self._exponent.new_tensor(coming.opened)))
        entering = Entering(coming.first, coming.rows, coming.values, back=coming.first > 0)
        places = summing.places(lags(coming.first, steps, rows))
        start = self._values[: self.count]
        summed = backend().sum_back(chunk, start, entering, exponent, places, summing.sums)
        if summed is None:
            return False
        self.count, self.stopped, self._complete = rows, coming.first - 1, False
        if summed.back is not None:
            assert summed.back_exponents is not None
            self._values, self._norms = summed.back, summed.back_norms
            self._exponent = exponent + summed.back_exponents
            self._newest = int(self._exponent[-1])
        summing.add(SummedSpan(coming.first, summed.values, summed.exponents, chunk))
        return True

    def _into_range(
        self, k: int, slack: int
    ) -> tuple[Scaled, Float[Tensor, "N"], Float[Tensor, "N"] | None]:
        """The rows at step k, their norms in range, and what is still to be multiplied with them.

        Raises:
            NonFiniteError: if one is infinite or NaN.
        """
        arrived, norms = self.rows, self._norms
        if norms is None:
            norms = row_norms(arrived.values)
        if in_range(norms, slack, self._centre):
            return arrived, norms, None
        if in_range(norms, ORDINARY):
            scales, units = factors_to_centre(norms, self._centre)
            delta, norms = Scaled(arrived.values, arrived.exponent + units), norms * scales
        else:
            scales, (delta, norms) = None, arrived.normalised(slack, self._centre)
            if delta is not arrived:  # what the loss gives as NaN stays NaN, as in autograd
                refuse_non_finite(norms, k)
        self._newest = int(delta.exponent[-1])
        return delta, norms, scales


def _first_out(
    norms: Float[Tensor, "N K"], start: Float[Tensor, "M"], entering: Entering
) -> int | None:
    """The latest step at which a row is out of range; rows of zeros stay what they are."""
    inside = (norms >= 2.0 ** (CENTRE - SLACK)) & (norms <= 2.0 ** (CENTRE + SLACK))
    if int(inside.sum()) == sum(entering.rows):  # all that have entered
        return None
    nothing = torch.zeros_like(inside)
    nothing[: len(start)] = (start == 0).unsqueeze(1)
    if entering.values is not None:
        nothing[len(start) - 1] = False  # what enters is added to it
    entered = torch.tensor(entering.rows, device=norms.device)
    nothing |= torch.arange(len(norms), device=norms.device).unsqueeze(1) >= entered
    inside[:, -1] = True  # as they were started
    inside |= nothing & (norms == 0)
    out = torch.nonzero(~inside.all(0))
    return int(out[-1]) if len(out) else None


def without_graphs(
    iterate: Callable[Asked, Iterator[AdjointSpan]],
) -> Callable[Asked, Iterator[AdjointSpan]]:
    """Make each span that a function yields without a graph, and hold none while it makes the next.

    torch.no_grad holds the last one, so that there would be memory of two at every moment.
    """

    @wraps(iterate)
    def spans(*args: Asked.args, **kwargs: Asked.kwargs) -> Iterator[AdjointSpan]:
        every = iterate(*args, **kwargs)
        while True:
            with torch.no_grad():
                span = next(every, None)
            if span is None:
                return
            yield span
            del span

    return spans


@without_graphs
def rows_of_entries(
    unrolled: Unrolled, entries: Entries, summing: Summing | None = None
) -> Iterator[AdjointSpan]:
    """The rows at all steps in spans, for k = T-1 .. 0; steps before any entry are left out.

    Steps of which `summing` could be given the sums are left out as well.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows = PerEntry(entries)
    for chunk in unrolled.chunks(unrolled.together):
        while rows.stopped >= chunk.first:
            rows.enter(rows.stopped)
            if not rows.count:
                rows.skip()
                continue
            if summing and rows.sum_into(summing, chunk, rows.stopped, entries.lags_between):
                continue
            part = rows.stretch(chunk, rows.stopped)
            lags = entries.lags_between(part.first, len(part), part.rows[0])
            units = part.at_steps(lags)
            span = AdjointSpan(part.first, part.values, units, part.norms, lags, chunk)
            del part
            yield span
            del span  # the next one finds room where it was, if nobody kept it


def backpropagate(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointStep]:
    """The stream of adjoint steps for k = T-1 .. 0; steps before any entry are left out.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    for span in rows_of_entries(unrolled, entries):
        entered = (span.lags >= 0).sum(0).tolist()
        for step in reversed(range(len(span))):
            rows = entered[step]
            delta = Scaled(span.values[:rows, step], span.exponent[:rows, step])
            norms = span.norms[:rows, step]
            yield AdjointStep(span.first + step, delta, norms, span.chunk, entries, rows)


def spans(steps: Iterable[AdjointStep], entries: Entries) -> Iterator[AdjointSpan]:
    """A stream of steps in spans of neighbours, as long as all their adjoints can be held."""
    gathered: list[AdjointStep] = []
    for step in steps:
        gathered.append(step)
        full = (len(gathered) + 1) * step.delta.values.numel() > GATHERED
        if full or step.k == step.chunk.first:
            lags = entries.lags_between(step.k, len(gathered), step.entered)
            yield AdjointSpan.of(gathered, lags)
            gathered = []


def joined(every: Iterable[AdjointSpan], entries: Entries) -> Iterator[AdjointSpan]:
    """Spans of one chunk as longer ones, as long as all their adjoints can be held."""
    some: list[AdjointSpan] = []
    for span in every:
        steps = len(span) + sum(map(len, some))
        if some and (
            span.chunk is not some[0].chunk or steps * span.values[:, 0].numel() > GATHERED
        ):
            yield _one(some, entries)
            some = []
        some.append(span)
    if some:
        yield _one(some, entries)


def _one(some: Sequence[AdjointSpan], entries: Entries) -> AdjointSpan:
    """Spans that follow each other, the latest first, as one."""
    if len(some) == 1:
        return some[0]
    early, steps = some[-1], sum(map(len, some))
    rows, *shape = early.values.shape
    values = early.values.new_zeros(rows, steps, *shape[1:])
    exponent, norms = early.exponent.new_zeros(rows, steps), early.norms.new_zeros(rows, steps)
    for span in some:
        start = span.first - early.first
        at = slice(0, len(span.norms)), slice(start, start + len(span))
        values[at], exponent[at], norms[at] = span.values, span.exponent, span.norms
    lags = entries.lags_between(early.first, steps, rows)
    return AdjointSpan(early.first, values, exponent, norms, lags, early.chunk)


def refuse_non_finite(sizes: Float[Tensor, "N"], k: int) -> None:
    """Refuse rows that left the range within a single step, where no exponent can help.

    Raises:
        NonFiniteError: with the step.
    """
    if not bool(sizes.isfinite().all()):
        raise NonFiniteError(
            f"the adjoint of the state becomes infinite or NaN at step {k}, within one step: "
            "a weight or an activation there is too large for this data type. Look at the "
            "recurrent weights, or decompose in float64"
        )


@torch.no_grad()
def input_adjoints(unrolled: Unrolled, entries: Entries) -> Float[Tensor, "T B I"]:
    """dL/dx_k of every step, over all entries together, as plain numbers."""
    by_x = torch.zeros_like(unrolled.x)
    for span in rows_of_entries(unrolled, entries):
        rows = span.adjoint.input().unflatten(1, (len(span), -1))  # type: ignore[no-untyped-call]
        own = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        top = own.amax(0)
        weights = power_of_two(own - top, rows)
        sums = rows[0] if len(rows) == 1 else (rows * weights[..., None, None]).sum(0)
        by_x[span.steps] = times_power_of_two(sums, torch.where(top == NO_EXPONENT, 0, top))
    return by_x
