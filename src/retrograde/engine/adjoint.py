"""One row for each loss step, for every cell: what the decompositions are made of.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
The stream of steps is all that a decomposition sees; each is a fold over it and keeps only its own
result.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.plan import CellAdjoint
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import Scaled
from retrograde.engine.scan import AbstractRule, scan
from retrograde.engine.unroll import Chunk, Unrolled
from retrograde.errors import NonFiniteError


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

    @cached_property
    def adjoint(self) -> CellAdjoint:
        """The pull-back of the values through step k."""
        return self.pull_back(self.delta.values)

    def pull_back(self, values: Float[Tensor, "N B S"]) -> CellAdjoint:
        """The pull-back of other values."""
        return self.chunk.pull_back(values, self.k)


@runtime_checkable
class Fold(Protocol):
    """A consumer of the stream; what it collects is its own business."""

    def update(self, step: AdjointStep) -> None:
        """Take one step, k = T-1 first."""


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
        self._back = partial(chunk.through, chunk.plan.back, k, rows, spare)  # if asked for
        self._exponent = self.delta.exponent

    def _arriving(self, k: int) -> Scaled:
        """delta_k: what comes back through step k+1, and what the loss gives to s_k directly.

        The latter is a new row, or part of the newest row if k belongs to that row's block.
        """
        entries, exponent = self._entries, self._exponent
        rows = len(exponent)
        opens = entries.opens(k, rows)
        if self._back is None:
            values = entries.direct.new_empty(int(opens), *entries.direct.shape[1:])
        else:
            (values,) = self._back()
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
    for step in backpropagate(unrolled, entries):
        for each in folds:
            each.update(step)


@torch.no_grad()
def input_adjoints(unrolled: Unrolled, entries: Entries) -> Float[Tensor, "T B I"]:
    """dL/dx_k of every step, over all entries together, as plain numbers."""
    by_x = torch.zeros_like(unrolled.x)
    for step in backpropagate(unrolled, entries):
        by_x[step.k] = Scaled(step.adjoint.input(), step.delta.exponent).total().plain()[0]
    return by_x
