"""One row for each loss step, for every cell: what the decompositions are made of.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
Spans of neighbouring steps are all that a decomposition sees; each is a fold over them and keeps
only its own result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.reverse_mode import CellAdjoint, FormedGradients
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import CENTRE, SLACK, Scaled
from retrograde.engine.scan import BACKEND, Entering
from retrograde.engine.unroll import CHUNK, Chunk, Unrolled
from retrograde.errors import NonFiniteError

GATHERED = 2**20
"""Adjoints of neighbouring steps are held together up to this many numbers, 4 MiB in float32."""


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
    """

    first: int
    values: Float[Tensor, "N K B S"]
    exponent: Int[Tensor, "N K"]
    norms: Float[Tensor, "N K"]
    lags: Int[Tensor, "E K"]
    chunk: Chunk

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

    def pieces(self, rows: int) -> "Iterator[AdjointSpan]":
        """The same in spans short enough to hold this many rows of each step, the last first."""
        _, count, batch, size = self.values.shape
        most = max(1, GATHERED // (rows * batch * size))
        for stop in range(count, 0, -most):
            part = slice(max(0, stop - most), stop)
            yield AdjointSpan(
                self.first + part.start,
                self.values[:, part],
                self.exponent[:, part],
                self.norms[:, part],
                self.lags[:, part],
                self.chunk,
            )


@runtime_checkable
class Fold(Protocol):
    """A consumer of the stream; what it collects is its own business."""

    def update(self, span: AdjointSpan) -> None:
        """Take some neighbouring steps, the last ones first."""


class PerEntry:
    """One row for each entry, latest first, each with an exponent of its own.

    Rows are brought into range before a stretch of steps. One that leaves it within the stretch
    ends the stretch there, and the step at which it did so is the first of the next one.
    """

    def __init__(self, entries: Entries):
        self._entries, self._count = entries, 0
        self._newest = 0  # the exponent of the newest row
        direct = entries.direct
        self._values = direct.new_empty(1, *direct.shape[1:])  # the last row is spare
        self._exponent = torch.zeros(0, dtype=torch.int64, device=direct.device)
        self._complete = False  # whether what the loss gives to the step is there already
        self._length = CHUNK

    def through(self, chunk: Chunk) -> Iterator[AdjointSpan]:
        """The rows at the steps of a chunk, the latest first; none at those before any entry.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        k = chunk.first + len(chunk) - 1
        while k >= chunk.first:
            if not self._complete:
                self._enter(k)
            if not self._count:
                k -= 1
                continue
            yield self._stretch(chunk, k)
            k = self._stopped

    def _enter(self, k: int) -> None:
        """Add what the loss gives to s_k: a new row, or part of the newest if that goes on."""
        entries, count, values = self._entries, self._count, self._values
        if entries.opens(k, count):
            self._exponent = torch.cat((self._exponent, entries.write(k, values[-1:])))
            self._newest, self._count = entries.exponents[k] or 0, count + 1
        elif entries.covers(k, count) and not entries.add(k, values[count - 1], self._newest):
            newest = slice(count - 1, count)
            joined = Scaled(values[newest], self._exponent[newest]).plus(entries.at(k))
            values[newest] = joined.values
            self._exponent = torch.cat((self._exponent[:-1], joined.exponent))
            self._newest = int(joined.exponent)

    def _stretch(self, chunk: Chunk, k: int) -> AdjointSpan:
        """The rows at step k and as many earlier ones as they stay in range."""
        size = self._values[0].numel()
        length = min(self._length, k - chunk.first + 1, max(1, GATHERED // (self._count * size)))
        arrived = Scaled(self._values[: self._count], self._exponent)
        # A bit for each step: what moves faster ends the stretch.
        delta, norms = arrived.normalised(max(1, SLACK - length))
        if delta is not arrived:
            refuse_non_finite(norms, k)
            self._newest = int(delta.exponent[-1])
        entering, opened = self._entering(k, length)
        pulled = BACKEND.pull_back(chunk, delta.values, entering)
        exponent = delta.exponent
        if opened:
            exponent = torch.cat((exponent, exponent.new_tensor(opened)))
        out = self._first_out(pulled.norms, norms, entering) if len(entering) > 1 else None
        rows, values, sizes = entering.rows, pulled.values, pulled.norms
        if out is None:
            self._stopped, self._complete = entering.first - 1, False
            self._count = rows[0]
            if pulled.back is not None:
                self._values = pulled.back
            self._length = min(2 * self._length, CHUNK)
        else:
            self._stopped, self._complete = entering.first + out, True
            self._count = rows[out]
            self._values = values[: rows[out], out].contiguous()
            self._length = max(1, len(rows) - 1 - out)
            rows, values, sizes = rows[out + 1 :], values[:, out + 1 :], sizes[:, out + 1 :]
            values, sizes = values[: rows[0]], sizes[: rows[0]]
        self._exponent = exponent[: self._count]
        self._newest = (
            opened[self._count - len(norms) - 1] if self._count > len(norms) else self._newest
        )
        first, count = self._stopped + 1, len(rows)
        lags = self._entries.lags_between(first, count, rows[0])
        units = torch.where(lags < 0, 0, exponent[: rows[0]].unsqueeze(1))
        return AdjointSpan(first, values, units, sizes, lags, chunk)

    def _entering(self, k: int, length: int) -> tuple[Entering, list[int]]:
        """What the loss gives at the steps before k, and the exponents of the rows that it opens.

        A step that adds to a row on quite another scale is left to the next stretch.
        """
        entries, newest, opened = self._entries, self._newest, list[int]()
        rows, factors = [self._count], [0.0]
        size = entries.direct[0].numel()
        for step in range(k - 1, k - length, -1):
            count, factor = rows[-1], 0.0
            if entries.opens(step, count):
                if (count + 1) * (len(rows) + 1) * size > GATHERED:
                    break
                newest = entries.exponents[step] or 0
                opened.append(newest)
                count, factor = count + 1, 2.0**-newest
            elif entries.covers(step, count):
                if not entries.near(step, newest):
                    break
                factor = 2.0**-newest if entries.exponents[step] is not None else 0.0
            rows.append(count)
            factors.append(factor)
        first, values = k - len(rows) + 1, None
        if any(factors):
            given = entries.direct[first : k + 1]
            values = given * given.new_tensor(factors[::-1]).view(-1, 1, 1)
        return Entering(first, rows[::-1], values, back=first > 0), opened

    def _first_out(
        self, norms: Float[Tensor, "N K"], start: Float[Tensor, "M"], entering: Entering
    ) -> int | None:
        """The latest step at which a row is out of range; rows of zeros stay what they are."""
        inside = (norms >= 2.0 ** (CENTRE - SLACK)) & (norms <= 2.0 ** (CENTRE + SLACK))
        if bool(inside.all()):
            return None
        rows = entering.rows
        nothing = torch.zeros_like(inside)
        nothing[: len(start)] = (start == 0).unsqueeze(1)
        if entering.values is not None:
            nothing[len(start) - 1] = False  # what enters is added to it
        for step, count in enumerate(rows):
            nothing[count:, step] = True
        inside[:, -1] = True  # as they were started
        inside |= nothing & (norms == 0)
        out = torch.nonzero(~inside.all(0))
        return int(out[-1]) if len(out) else None


@torch.no_grad()
def rows_of_entries(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointSpan]:
    """The rows at all steps in spans, for k = T-1 .. 0; steps before any entry are left out.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows = PerEntry(entries)
    for chunk in unrolled.chunks():
        yield from rows.through(chunk)


def backpropagate(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointStep]:
    """The same step by step.

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
def fold(unrolled: Unrolled, entries: Entries, folds: Iterable[Fold]) -> None:
    """Feed one backward pass to any number of folds."""
    folds = tuple(folds)
    for span in rows_of_entries(unrolled, entries):
        for each in folds:
            each.update(span)


@torch.no_grad()
def input_adjoints(unrolled: Unrolled, entries: Entries) -> Float[Tensor, "T B I"]:
    """dL/dx_k of every step, over all entries together, as plain numbers."""
    by_x = torch.zeros_like(unrolled.x)
    for step in backpropagate(unrolled, entries):
        by_x[step.k] = Scaled(step.adjoint.input(), step.delta.exponent).total().plain()[0]
    return by_x
