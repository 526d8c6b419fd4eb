"""A summary of one backward pass: a few numbers of a Flow, at a fraction of its cost.

Only the recursion itself goes step by step. All that is asked of its adjoints is worked out for a
span of steps at once, as if they were samples of one step: a cell knows no time, and cannot tell.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._words import half_life_in_words
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.decomposition.by_time import FORMED
from retrograde.decomposition.lags import mean_by_lag, reach_of
from retrograde.decomposition.replay import replay
from retrograde.decomposition.rows import joined as joined_rows
from retrograde.decomposition.rows import shares
from retrograde.engine import AdjointSpan, Entries, ParameterSums, Scaled, Unrolled
from retrograde.engine.adjoint import joined, rows_of_entries
from retrograde.engine.scaling import NO_EXPONENT, as_vectors, power_of_two
from retrograde.recording import Recorded

NEAR = 11
"""Lags 0-10 are near."""


@dataclass(frozen=True, eq=False)
class Summary:
    """A few numbers of one backward pass through one layer; each is the `Flow`'s own.

    A number that the pass does not have is NaN: no rate after a single step, no carousel in a
    plain RNN, no share of a gradient that is zero.

    Attributes:
        reach: `flow.reach`, in steps.
        rate: `flow.adjoints.rate`, in powers of two per step back.
        near: signed share of lags 0 to 10, `flow.by_lag(bins=(0, 11)).share[0]`.
        carousel: signed share of what arrives at its use step along the carousel, that is
            `flow.by_route().share` of all routes that cross no recurrent weights, over all lags.
        growth: the largest increase, over all entries and steps, of log2 of the norm of the
            adjoint from one step to the step before, in powers of two per step.
        by_lag: log2 of the mean norm of the contributions at each lag.
    """

    reach: int
    rate: float
    near: float
    carousel: float
    growth: float
    by_lag: Float[Tensor, "T"] = field(repr=False)

    @property
    def half_life(self) -> float:
        """Steps in which the adjoint halves; negative steps in which it doubles, if it grows."""
        return -1 / self.rate if self.rate else math.inf

    def __str__(self) -> str:
        lines = {
            "reach": f"{self.reach} of {len(self.by_lag) - 1} steps",
            "half-life": half_life_in_words(self.half_life),
            "near lags": f"{self.near:.1%} of the gradient at lags 0 to {NEAR - 1}",
            "carousel": f"{self.carousel:.1%} of the gradient by it on the last hop",
            "growth": f"2^{self.growth:.2g} at most, from a step to the one before",
        }
        numbers = (self.reach, self.half_life, self.near, self.carousel, self.growth)
        told = zip(lines.items(), numbers, strict=True)
        return "\n".join(f"{name:10} {words}" for (name, words), value in told if value == value)

    def at(self, lag: int) -> float:
        """log2 of the mean contribution at a lag over that at lag 0; NaN where there is none."""
        if lag >= len(self.by_lag):
            return math.nan
        return float(self.by_lag[lag] - self.by_lag[0])


def summarise(recorded: Recorded, unrolled: Unrolled | None = None) -> Summary:
    """Work out the few numbers.

    Args:
        recorded: the pass.
        unrolled: its forward pass run again, if that is there already.

    Raises:
        NonFiniteError: if a NaN or an infinity was recorded, with the first place it is seen.
    """
    unrolled = replay(recorded) if unrolled is None else unrolled
    entries = Entries.of(recorded.direct)
    norms, seen = AdjointNorms(entries, len(unrolled)), _Sums(unrolled, entries)
    with torch.no_grad():
        for span in joined(rows_of_entries(unrolled, entries), entries):
            norms.update(span)
            seen.update(span)
    adjoints = norms.result()
    by_lag = mean_by_lag(seen.contributions, entries.lag_table)
    return Summary(reach_of(by_lag), adjoints.rate, *seen.shares(), growth(adjoints), by_lag)


def growth(adjoints: Adjoints) -> float:
    """Largest increase of log2 of the norm from a step to the step before; NaN if there is none."""
    later, earlier = adjoints.log2[:, 1:], adjoints.log2[:, :-1]
    increase = (earlier - later)[later.isfinite() & earlier.isfinite()]
    return float(increase.max()) if len(increase) else math.nan


class _Sums:
    """The fold behind `summarise`: norms of contributions, and parts whose shares are asked for.

    Attributes:
        contributions: log2 of the norm of every contribution to the whole gradient, shape [E, T].
    """

    contributions: Float[Tensor, "E T"]

    def __init__(self, unrolled: Unrolled, entries: Entries):
        states, steps = unrolled.states, len(unrolled)
        shape = (len(entries), steps)
        self.contributions = states.new_full(shape, -torch.inf, dtype=torch.float64)
        self._carousel = frozenset[str]()
        # The whole gradient, that of near lags, and what comes along the carousel.
        self._sums = ParameterSums(unrolled.cell.parameters, 3)
        self._near = entries.lag_table.flip(0) < NEAR
        # What comes along the carousel to the step before the ones that are done.
        self._arriving = Scaled(
            torch.zeros_like(states[:1]), entries.steps.new_full((1,), NO_EXPONENT)
        )

    def update(self, span: AdjointSpan) -> None:
        rows, first, count = len(span.norms), span.first, len(span)
        delta, graph = span.values, span.chunk.graph
        self._carousel = frozenset(graph.routes) - frozenset(graph.recurrent_routes)
        near = self._near[:rows, span.steps]
        exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        top = torch.maximum(exponent.amax(), self._arriving.exponent)
        top = self._sums.units(top.expand(3))[:1]
        weight = power_of_two(exponent - top, delta)
        weighted = weight[..., None, None] * delta
        whole, of_near = weighted.sum(0), (weighted * near[..., None, None]).sum(0)
        leaving = span.pull_back(whole.unsqueeze(0)).along(self._carousel).view_as(whole)
        for k, boundary in span.chunk.boundaries.items():
            if first <= k < first + count:
                leaving[k - first] = boundary.pull_back(leaving[k - first].unsqueeze(0))[0]
        last = self._arriving.values * power_of_two(self._arriving.exponent - top, delta)
        parts = torch.stack((whole, of_near, torch.cat((leaving[1:], last))))
        self._arriving = Scaled(leaving[:1], top)
        pulled = span.pull_back(torch.cat((parts, delta)))  # in one walk through the steps
        self._sums.add(pulled.of_rows(slice(0, 3)))
        sizes = _log2_norms(span, pulled.of_rows(slice(3, None)))
        table = slice(len(self.contributions) - rows, None)
        self.contributions[table, span.steps] = (sizes + span.exponent).flip(0)

    def shares(self) -> tuple[float, float]:
        """Those of near lags and of the carousel."""
        sums = joined_rows(list(self._sums.result().values()))
        whole = Scaled(sums.values[:1], sums.exponent[:1])
        _, near, carousel = shares(sums, whole).tolist()
        return near, carousel if self._carousel else math.nan


def _log2_norms(span: AdjointSpan, pulled: CellAdjoint) -> Float[Tensor, "N K"]:
    """log2 of the norm of every contribution to all parameters together, one for each row and step.

    From Gram matrices as in by_time.py, of all parameters that share an adjoint at once. Where
    samples cancel to less than a thousandth of their sizes, rounding shows; a reach does not ask.
    """
    rows, steps = span.exponent.shape
    squares = torch.zeros(rows, steps, dtype=torch.float64, device=span.values.device)
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
        squares += (gram.double() * of_operands).sum((-1, -2))
    for k, formed in enumerate(span.formed if span.chunk.plan.functions else ()):
        for some, gradients in (block for each in formed for block in each.blocks(FORMED)):
            for gradient in gradients.values():
                squares[some, k] += as_vectors(gradient).double().square().sum(1)
    return torch.log2(squares.clamp(min=0)) / 2
