"""A glance at one backward pass: a few numbers of a Flow, at a fraction of its cost.

Only the recursion itself goes step by step. All that is asked of its adjoints is worked out for
CHUNK steps at once, as if they were samples of one step: a cell knows no time, and cannot tell.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.plan import CellAdjoint
from retrograde.decompose.adjoints import Adjoints
from retrograde.decompose.lags import mean_by_lag, reach_of
from retrograde.decompose.parts import joined, shares
from retrograde.decompose.replay import replay
from retrograde.engine import AdjointStep, Entries, ParameterSums, Scaled, Unrolled, fold
from retrograde.engine.scaling import NOTHING, power_of_two
from retrograde.engine.unroll import CHUNK
from retrograde.record import Recorded

NEAR = 11
"""Lags 0-10 are near."""


@dataclass(frozen=True)
class Glance:
    """A few numbers of one backward pass through one layer; each is the `Flow`'s own.

    A number that the pass does not have is NaN: no half-life after a single step, no carousel in a
    plain RNN, no share of a gradient that is zero.

    Attributes:
        reach: `flow.reach`, in steps.
        half_life: `flow.half_life`, in steps.
        near: signed share of lags 0 to 10, `flow.by_lag(bins=(0, 11)).share[0]`.
        carousel: signed share of what arrives at its use step along the carousel, that is
            `flow.by_route().share` of all routes that cross no recurrent weights, over all lags.
        growth: the largest increase, over all entries and steps, of log2 of the norm of the
            adjoint from one step to the step before, in powers of two per step.
    """

    reach: int
    half_life: float
    near: float
    carousel: float
    growth: float


def glance(recorded: Recorded) -> Glance:
    """Work out the few numbers.

    Raises:
        NonFiniteError: if a NaN or an infinity was recorded, with the first place it is seen.
    """
    unrolled, entries = replay(recorded), Entries.of(recorded.direct)
    seen = _Chunks(unrolled, entries)
    fold(unrolled, entries, [seen])
    adjoints = Adjoints(seen.adjoints, entries.lag_table)
    reach = reach_of(mean_by_lag(seen.contributions, entries.lag_table))
    return Glance(reach, adjoints.half_life, *seen.shares(), growth(adjoints))


def growth(adjoints: Adjoints) -> float:
    """Largest increase of log2 of the norm from a step to the step before; NaN if there is none."""
    later, earlier = adjoints.log2[:, 1:], adjoints.log2[:, :-1]
    increase = (earlier - later)[later.isfinite() & earlier.isfinite()]
    return float(increase.max()) if len(increase) else math.nan


class _Chunks:
    """The fold behind `glance`: norms of adjoints and contributions, parts whose shares are asked.

    Attributes:
        adjoints: log2 of the norm of every adjoint, shape [E, T].
        contributions: log2 of the norm of every contribution to the whole gradient, shape [E, T].
    """

    adjoints: Float[Tensor, "E T"]
    contributions: Float[Tensor, "E T"]

    def __init__(self, unrolled: Unrolled, entries: Entries):
        self._unrolled = unrolled
        cell, states, steps = unrolled.cell, unrolled.states, len(unrolled)
        self._carousel = frozenset(cell.routes) - frozenset(cell.recurrent_routes)
        self.adjoints = states.new_full((len(entries), steps), -torch.inf, dtype=torch.float64)
        self.contributions = self.adjoints.clone()
        # Near lags, far lags (the two make up the gradient), and what comes along the carousel.
        self._sums = ParameterSums(cell.parameters, 3)
        # The rows of some steps, the last of them at the end.
        self._delta = states.new_zeros(len(entries), min(CHUNK, steps), *states.shape[1:])
        self._exponent = entries.steps.new_zeros(self._delta.shape[:2])
        self._near = entries.lag_table.flip(0) < NEAR
        self._count = 0
        # What comes along the carousel to the step before the ones that are done.
        self._arriving = Scaled(torch.zeros_like(states[:1]), entries.steps.new_full((1,), NOTHING))

    def update(self, step: AdjointStep) -> None:
        self._count += 1
        rows, i = slice(0, len(step.norms)), -self._count
        self._delta[rows, i] = step.delta.values
        self._exponent[rows, i] = step.delta.exponent
        if step.k == step.chunk.first:
            self._take(step)
            self._count = 0

    def shares(self) -> tuple[float, float]:
        """Those of near lags and of the carousel."""
        sums = joined(list(self._sums.result().values()))
        whole = Scaled(sums.values[:2], sums.exponent[:2]).total()
        near, _, carousel = shares(sums, whole).tolist()
        return near, carousel if self._carousel else math.nan

    def _take(self, step: AdjointStep) -> None:
        """All the steps that were gathered; `step` is the earliest."""
        first, rows, count = step.k, len(step.norms), self._count
        span = slice(first, first + count)
        delta, exponent = self._delta[:rows, -count:], self._exponent[:rows, -count:]
        pulled = step.chunk.pull_back(delta.flatten(1, 2), first, count)
        norms = torch.linalg.vector_norm(delta.flatten(2), dim=2).double()
        table = slice(len(self.adjoints) - rows, None)
        self.adjoints[table, span] = (torch.log2(norms) + exponent).flip(0)
        self.contributions[table, span] = (_log2_norms(pulled, count) + exponent).flip(0)

        near, exponent = self._near[:rows, span], torch.where(norms > 0, exponent, NOTHING)
        top = torch.maximum(exponent.amax(), self._arriving.exponent)
        top = self._sums.units(top.expand(3))[:1]
        weight = power_of_two(exponent - top, delta)
        summed = torch.stack((weight * near, weight * ~near))
        parts = torch.einsum("mnk,nkbs->mkbs", summed, delta)
        leaving = pulled.along(self._carousel).unflatten(1, (count, -1))  # type: ignore[no-untyped-call]
        leaving = torch.einsum("nk,nkbs->kbs", weight, leaving)
        for k, border in self._unrolled.borders.items():
            if first <= k < first + count:
                leaving[k - first] = border.pull_back(leaving[k - first].unsqueeze(0))[0]
        last = self._arriving.values * power_of_two(self._arriving.exponent - top, delta)
        parts = torch.cat((parts, torch.cat((leaving[1:], last)).unsqueeze(0)))
        self._arriving = Scaled(leaving[:1], top)
        self._sums.add(step.chunk.pull_back(parts.flatten(1, 2), first, count))


def _log2_norms(pulled: CellAdjoint, steps: int) -> Float[Tensor, "N K"]:
    """log2 of the norm of every contribution to all parameters together, one for each row and step.

    From Gram matrices as in by_time.py, of all parameters that share an adjoint at once. Where
    samples cancel to less than a thousandth of their sizes, rounding shows; a reach does not ask.
    """
    squares = []
    for uses in pulled.uses:
        da = uses.adjoint.unflatten(1, (steps, -1))  # type: ignore[no-untyped-call]
        gram = da @ da.mT
        of_operands = torch.zeros_like(gram[0])
        for _, _, operand in uses.operands:
            if operand is None:
                of_operands += 1
            else:
                operand = operand.unflatten(0, (steps, -1))  # type: ignore[no-untyped-call]
                of_operands += operand @ operand.mT
        squares.append((gram.double() * of_operands).sum((-1, -2)))
    log2: Tensor = torch.log2(torch.stack(squares).sum(0).clamp(min=0)) / 2
    return log2
