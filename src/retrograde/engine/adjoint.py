"""The one backward recursion, for every cell and for all entry rows at once.

    delta_k = dL/ds_k (direct) + J_{k+1}^T delta_{k+1}

Each entry row is pulled back on its own, so that what enters at t can be told apart at every k.
The stream of steps is all that any decomposition sees; each is a fold over it and keeps only its
own result.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellAdjoint, CellStep
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import Scaled
from retrograde.engine.unroll import Unrolled
from retrograde.errors import NonFiniteError


@dataclass(frozen=True)
class AdjointStep:
    """All adjoint rows at one use step.

    Row j belongs to the j-th latest entry. Its adjoint dL_j/ds_k is `delta.values[j] *
    2**delta.exponent[j]`, `norms` are the L2 norms of the values over batch and state, `lags` the
    lags in steps, and `adjoint` is the pull-back of the values through step k.
    """

    k: int
    delta: Scaled
    norms: Float[Tensor, "N"]
    lags: Int[Tensor, "N"]
    adjoint: CellAdjoint
    step: CellStep
    cell: AbstractCell


@runtime_checkable
class Fold(Protocol):
    """A consumer of the stream; what it collects is its own business."""

    def update(self, step: AdjointStep) -> None:
        """Take one step, k = T-1 first."""


def backpropagate(unrolled: Unrolled, entries: Entries) -> Iterator[AdjointStep]:
    """The stream of adjoint steps for k = T-1 .. 0; steps before any entry are left out.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    cell = unrolled.cell
    delta = Scaled.of(entries.final.new_empty(0, *entries.final.shape))
    for k, step in unrolled.backwards():
        delta = _enter(delta, entries, k)
        if not len(delta.exponent):
            continue
        before = delta
        delta, norms = before.normalised()
        if delta is not before and not bool(norms.isfinite().all()):
            raise NonFiniteError(
                f"the adjoint of the state becomes infinite or NaN at step {k}, within one step: "
                "a weight or an activation there is too large for this data type. Look at the "
                "recurrent weights, or decompose in float64"
            )
        adjoint = cell.pull_back(step, delta.values)
        lags = entries.lags(k, len(delta.exponent))
        yield AdjointStep(k, delta, norms, lags, adjoint, step, cell)
        if k:
            delta = Scaled(adjoint.previous(), delta.exponent)


def _enter(delta: Scaled, entries: Entries, k: int) -> Scaled:
    """Add what enters at step k: as a new row, or to the newest row if k belongs to its block."""
    rows = len(delta.exponent)
    if entries.opens(k, rows):
        new = entries.at(k)
        return Scaled(
            torch.cat((delta.values, new.values)), torch.cat((delta.exponent, new.exponent))
        )
    if entries.covers(k, rows):
        newest = Scaled(delta.values[-1:], delta.exponent[-1:])
        joined = newest.plus(entries.at(k))
        return Scaled(
            torch.cat((delta.values[:-1], joined.values)),
            torch.cat((delta.exponent[:-1], joined.exponent)),
        )
    return delta


@torch.no_grad()
def fold(unrolled: Unrolled, entries: Entries, folds: Iterable[Fold]) -> None:
    """Feed one backward pass to any number of folds."""
    folds = tuple(folds)
    for step in backpropagate(unrolled, entries):
        for each in folds:
            each.update(step)
