"""A summary of one backward pass: a few numbers of a Flow, at a fraction of its cost.

Only the recursion itself goes step by step. All that is asked of its adjoints is worked out for a
span of steps at once, as if they were samples of one step: a cell knows no time, and cannot tell.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde._words import half_life_in_words
from retrograde.compiled.sizes import sizes_of
from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import Lags
from retrograde.decomposition.by_time import CANCELS, FORMED
from retrograde.decomposition.lags import mean_by_lag, reach_of
from retrograde.decomposition.parts import together
from retrograde.decomposition.replay import replay
from retrograde.decomposition.resolution import telling
from retrograde.decomposition.rows import shares_in_first
from retrograde.engine import AdjointSpan, Entries, Scaled, Unrolled
from retrograde.engine.adjoint import joined, rows_of_entries
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import NO_EXPONENT, as_vectors, power_of_two
from retrograde.recording import Recorded

NEAR = 11
"""Lags 0-10 are near."""

BELOW = 24
"""What is so many powers of two below the rounding of the largest contribution is left out of sums:
all of it together is nothing beside what rounding leaves."""

MANY = 2**14
"""With fewer weights adding up costs less than to know what need not be added."""


@dataclass(frozen=True, eq=False)
class Summary:
    """A few numbers of one backward pass through one layer; each is the `Flow`'s own.

    A stack of torch.nn is one layer here: its layers share one state, and the numbers are
    those of all of them together.

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
    near, carousel = seen.shares()
    if not entries.single:  # near lags are finer than blocks
        lags = lag_bins((0, NEAR), len(unrolled))
        parts = Lags(lags).parts(unrolled, telling(entries, lags))
        near = float(together(tuple(parts.values())).share[0])
    return Summary(reach_of(by_lag), adjoints.rate, near, carousel, growth(adjoints), by_lag)


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
        cell, shape = unrolled.cell, (len(entries), len(unrolled))
        self.contributions = unrolled.x.new_full(shape, -torch.inf, dtype=torch.float64)
        self._carousel: frozenset[str] | None = None  # its routes, read off the first span
        self._by_lag = AdjointSums(cell, 2)  # near lags, and all others
        self._along = AdjointSums(cell, 1)  # what comes along the carousel
        self._arriving: Scaled | None = None  # the same, to the step before the ones that are done
        self._largest = unrolled.x.new_full((), -torch.inf, dtype=torch.float64)
        self._rounding = math.log2(torch.finfo(unrolled.x.dtype).eps)
        self._many = sum(weight.numel() for weight in cell.parameters.values()) > MANY

    def update(self, span: AdjointSpan) -> None:
        sizes, known = _log2_norms(span)
        table = slice(len(self.contributions) - len(sizes), None)
        self.contributions[table, span.steps] = sizes.flip(0)
        self._largest = torch.maximum(self._largest, sizes.amax())
        places = torch.where(self._lost(sizes, known), -1, (span.lags >= NEAR).long())
        self._by_lag.add_rows(span, places)
        if self._carousel is None:
            graph = span.chunk.graph
            self._carousel = frozenset(graph.routes) - frozenset(graph.recurrent_routes)
        if self._carousel:
            arriving = self._along_the_carousel(span, self._carousel)
            units = arriving.exponent
            if self._many:
                lost = self._lost(*_log2_norms(arriving))
                units = torch.where(lost, NO_EXPONENT, units)
            self._along.add(span, arriving.values, units)

    def _lost(self, sizes: Float[Tensor, "N K"], known: Bool[Tensor, "N K"]) -> Tensor:
        """What is nothing beside the rounding of the sums."""
        return known & (sizes < self._largest + self._rounding - BELOW)

    def _along_the_carousel(self, span: AdjointSpan, carousel: frozenset[str]) -> AdjointSpan:
        """What comes to each step along the carousel, of all rows together as one."""
        exponent = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
        top = exponent.amax(0)
        whole = (power_of_two(exponent - top, span.values)[..., None, None] * span.values).sum(0)
        leaving = span.pull_back(whole.unsqueeze(0)).along(carousel).view_as(whole)
        for k, boundary in span.chunk.boundaries.items():
            if span.first <= k < span.first + len(span):
                passed = leaving[k - span.first]
                passed.copy_(boundary.pull_back(passed.unsqueeze(0))[0])
        last = self._arriving or Scaled(
            torch.zeros_like(leaving[:1]), torch.full_like(top[:1], NO_EXPONENT)
        )
        self._arriving = Scaled(leaving[:1], top[:1])
        values = torch.cat((leaving[1:], last.values)).unsqueeze(0)
        units = torch.cat((top[1:], last.exponent)).unsqueeze(0)
        norms: Tensor = torch.linalg.vector_norm(values.flatten(2), dim=2)
        return AdjointSpan(span.first, values, units, norms, span.lags, span.chunk)

    def shares(self) -> tuple[float, float]:
        """Those of near lags and of the carousel."""
        of_rows = [self._by_lag, self._along] if self._carousel else [self._by_lag]
        together = [one for rows in of_rows if (one := rows.side_by_side()) is not None]
        sums = [together]
        if len(together) < len(of_rows):
            by_parameter = [rows.result().values() for rows in of_rows]
            sums = [list(some) for some in zip(*by_parameter, strict=True)]
        near, _, carousel = [*shares_in_first(sums, 2).tolist(), math.nan][:3]
        return near, carousel


def _log2_norms(span: AdjointSpan) -> tuple[Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
    """log2 of the norm of what each row makes of all parameters together at each step of a span.

    From Gram matrices as in by_time.py, of all parameters that share an adjoint at once. Where
    samples cancel to less than a thousandth of their sizes, rounding shows; a reach does not ask.

    Returns:
        Also where they do not cancel as far.
    """
    compiled = span.chunk.compiled_uses
    if compiled is not None and compiled.by_products:
        found = sizes_of(compiled, span.here.start, span.values)
        assert found.squares is not None and found.cancels is not None
        return _halved(found.squares.sum(0)) + span.exponent, ~found.cancels.any(0)
    (rows, steps), batch = span.exponent.shape, span.values.shape[2]
    total = torch.zeros(rows, steps, dtype=torch.float64, device=span.values.device)
    bound = torch.zeros_like(total)
    for uses in span.adjoint.uses:
        da = uses.adjoint.unflatten(1, (steps, -1))  # type: ignore[no-untyped-call]
        gram = da @ da.mT
        of_operands = torch.zeros_like(gram[0])
        for _, _, operand in uses.operands:
            if operand is None:
                of_operands += 1
            else:
                operand = operand.unflatten(0, (steps, -1))  # type: ignore[no-untyped-call]
                of_operands += operand @ operand.mT
        both = gram.double() * of_operands
        total += both.sum((-1, -2))
        bound += batch * torch.diagonal(both, dim1=-2, dim2=-1).sum(-1)
    known = total >= CANCELS * torch.finfo(span.values.dtype).eps * bound
    for k, formed in enumerate(span.formed):
        for some, gradients in (block for each in formed for block in each.blocks(FORMED)):
            for gradient in gradients.values():
                total[some, k] += as_vectors(gradient).double().square().sum(1)
    return _halved(total) + span.exponent, known


def _halved(squares: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """log2 of square roots."""
    return torch.log2(squares.clamp(min=0)) / 2
