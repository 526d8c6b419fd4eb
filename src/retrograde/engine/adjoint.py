"""One row for each loss step, for every cell: what the decompositions are made of.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
Steps are handed on in spans of neighbours. They are all that a decomposition sees; each is a fold
over them and keeps only its own result.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.plan import CellAdjoint, FormedGradients
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import NOTHING, Scaled
from retrograde.engine.scan import AbstractRule, scan
from retrograde.engine.unroll import Chunk, Unrolled
from retrograde.errors import NonFiniteError

GATHERED = 2**21
"""Adjoints of neighbouring steps are handed on together up to this many numbers (8 MiB in float32)."""


@dataclass(frozen=True)
class AdjointStep:
    """All adjoint rows at one use step.

    Row j belongs to the j-th latest entry. Its adjoint dL_j/ds_k is `delta.values[j] *
    2**delta.exponent[j]`, `norms` are the L2 norms of the values over batch and state, `lags` the
    lags in steps. `chunk` holds step k and its neighbours.
    """

    k: int
    delta: Scaled
    norms: Float[Tensor, "N"]
    lags: Int[Tensor, "N"]
    chunk: Chunk

    @property
    def adjoint(self) -> CellAdjoint:
        """The pull-back of the values through step k."""
        return self.chunk.pull_back(self.delta.values, self.k)


@dataclass(frozen=True, eq=False)
class AdjointSpan:
    """All adjoint rows at some neighbouring use steps.

    The rows are those of the earliest step; at a later one those that have not entered yet are 0.

    Attributes:
        first: the earliest step.
        values: the adjoints of s_first, s_first+1, ..., [N, K, B, S].
        exponent: each row's at each step, 2**exponent is what its values are multiplied by, [N, K].
        norms: L2 norms of the values over batch and state; where rows are told apart further, the
            sizes of their largest entries; [N, K].
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
    def of(steps: "Sequence[AdjointStep]", lags: Int[Tensor, "E K"]) -> "AdjointSpan":
        """Steps as one, the latest first."""
        rows, last = len(steps[-1].norms), steps[-1]
        alike = len(steps[0].norms) == rows
        values, exponents, norms = zip(*((s.delta.values, s.delta.exponent, s.norms) for s in reversed(steps)), strict=True)

        def together(each: Sequence[Tensor]) -> Tensor:
            if alike:
                return each[0].unsqueeze(1) if len(each) == 1 else torch.stack(each, 1)
            whole = each[0].new_zeros(rows, len(each), *each[0].shape[1:])
            for number, one in enumerate(each):
                whole[: len(one), number] = one
            return whole

        return AdjointSpan(last.k, together(values), together(exponents), together(norms), lags, last.chunk)

    def __len__(self) -> int:
        return self.values.shape[1]

    @property
    def steps(self) -> range:
        """The numbers of the steps."""
        return range(self.first, self.first + len(self))

    @cached_property
    def adjoint(self) -> CellAdjoint:
        """The pull-back of the values, the steps as samples of one step: [N, K*B, ...]."""
        return self.chunk.pull_back(self.values.flatten(1, 2), self.first, len(self))

    @cached_property
    def formed(self) -> tuple[tuple[FormedGradients, ...], ...]:
        """The gradients that only a function gives, step by step."""
        if not self.chunk.plan.functions:
            return ((),) * len(self)
        each = zip(self.steps, self.values.unbind(1), strict=True)
        return tuple(self.chunk.pull_back(values, k).formed for k, values in each)


@runtime_checkable
class Fold(Protocol):
    """A consumer of the stream; what it collects is its own business."""

    def update(self, span: AdjointSpan) -> None:
        """Take some steps, the last ones first."""


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
        self._back: Tensor | None = None
        self._exponent = torch.zeros(0, dtype=torch.int64, device=entries.direct.device)

    def rows(self, k: int) -> Float[Tensor, "N B S"] | None:
        arriving = self._arriving(k)
        if not len(arriving.exponent):
            return None
        self.delta, self.norms = arriving.normalised()
        if self.delta is not arriving:
            refuse_non_finite(self.norms, k)
        return self.delta.values

    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        spare = int(self._entries.opens(k - 1, len(rows)))
        (self._back,) = chunk.through(chunk.plan.back, k, rows, spare)
        self._exponent = self.delta.exponent

    def _arriving(self, k: int) -> Scaled:
        """delta_k: what comes back through step k+1, and what the loss gives to s_k directly.

        The latter is a new row, or part of the newest row if k belongs to that row's block.
        """
        entries, exponent, values = self._entries, self._exponent, self._back
        rows = len(exponent)
        opens = entries.opens(k, rows)
        if values is None:
            values = entries.direct.new_empty(int(opens), *entries.direct.shape[1:])
        if opens:
            exponent = torch.cat((exponent, entries.write(k, values[-1:])))
        elif entries.covers(k, rows):
            joined = Scaled(values[-1:], exponent[-1:]).plus(entries.at(k))
            values[-1:] = joined.values
            exponent = torch.cat((exponent[:-1], joined.exponent))
        return Scaled(values, exponent)


def backpropagate(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointStep]:
    """The stream of adjoint steps for k = T-1 .. 0; steps before any entry are left out.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rule = PerEntry(entries)
    for k, chunk in scan(unrolled, rule):
        lags = entries.lags(k, len(rule.norms))
        yield AdjointStep(k, rule.delta, rule.norms, lags, chunk)


def spans(steps: Iterable[AdjointStep], entries: Entries) -> Iterator[AdjointSpan]:
    """The same steps in spans of neighbours."""
    gathered: list[AdjointStep] = []
    for step in steps:
        gathered.append(step)
        full = (len(gathered) + 1) * step.delta.values.numel() > GATHERED
        if full or step.k == step.chunk.first:
            yield AdjointSpan.of(gathered, entries.lags_between(step.k, len(gathered), len(step.lags)))
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
