"""One row for each loss step, for every cell: what the decompositions are made of.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
Spans of neighbouring steps are all that a decomposition sees; each is a fold over them and keeps
only its own result.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.reverse_mode import CellAdjoint, FormedGradients
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import Scaled
from retrograde.engine.scan import AbstractRule, scan
from retrograde.engine.unroll import Chunk, Unrolled
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


class PerEntry(AbstractRule):
    """One row for each entry, latest first, each with an exponent of its own.

    Attributes:
        delta: the adjoints at the step.
        norms: their norms.
    """

    delta: Scaled
    norms: Float[Tensor, "N"]

    def __init__(self, entries: Entries):
        self._entries = entries
        self._back: Callable[[], list[Tensor]] | None = None
        self._newest = 0  # the exponent of the newest row
        self._exponent = torch.zeros(0, dtype=torch.int64, device=entries.direct.device)

    def rows(self, k: int) -> Float[Tensor, "N B S"] | None:
        arriving = self._arriving(k)
        if not arriving.exponent.shape[0]:
            return None
        self.delta, self.norms = arriving.normalised()
        if self.delta is not arriving:
            refuse_non_finite(self.norms, k)
            self._newest = int(self.delta.exponent[-1])
        return self.delta.values

    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        spare = int(self._entries.opens(k - 1, rows.shape[0]))
        self._back = partial(chunk.through, chunk.plan.back, k, rows, spare)  # if asked for
        self._exponent = self.delta.exponent

    def _arriving(self, k: int) -> Scaled:
        """delta_k: what comes back through step k+1, and what the loss gives to s_k directly.

        The latter is a new row, or part of the newest row if k belongs to that row's block.
        """
        entries, exponent = self._entries, self._exponent
        rows = exponent.shape[0]  # len() of a tensor is slow
        opens = entries.opens(k, rows)
        if self._back is None:
            values = entries.direct.new_empty(int(opens), *entries.direct.shape[1:])
        else:
            (values,) = self._back()
        if opens:
            exponent = torch.cat((exponent, entries.write(k, values[-1:])))
            self._newest = entries.exponents[k] or 0
        elif entries.covers(k, rows) and not entries.add(k, values[-1], self._newest):
            joined = Scaled(values[-1:], exponent[-1:]).plus(entries.at(k))
            values[-1:] = joined.values
            exponent = torch.cat((exponent[:-1], joined.exponent))
            self._newest = int(joined.exponent)
        return Scaled(values, exponent)


def backpropagate(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointStep]:
    """The stream of adjoint steps for k = T-1 .. 0; steps before any entry are left out.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rule = PerEntry(entries)
    for k, chunk in scan(unrolled, rule):
        yield AdjointStep(k, rule.delta, rule.norms, chunk, entries, rule.norms.shape[0])


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
    for span in spans(backpropagate(unrolled, entries), entries):
        for each in folds:
            each.update(span)


@torch.no_grad()
def input_adjoints(unrolled: Unrolled, entries: Entries) -> Float[Tensor, "T B I"]:
    """dL/dx_k of every step, over all entries together, as plain numbers."""
    by_x = torch.zeros_like(unrolled.x)
    for step in backpropagate(unrolled, entries):
        by_x[step.k] = Scaled(step.adjoint.input(), step.delta.exponent).total().plain()[0]
    return by_x
