"""The same recursion, followed along lags instead of steps: the part of each lag, one at a time.

    delta^(0)_t = dL/ds_t (direct)      delta^(l+1)_{k-1} = J_k^T delta^(l)_k      for all k at once

At lag l the adjoint of what entered at t stands at step t - l. All rows move back by one step
together, each through its own linearised step: a cell knows no time, and the steps are samples of
one. What they make of the parameters there is the part of that lag, and nothing but the part is
kept, so that the parts of all T lags take the memory of one. The step-by-step recursion
(adjoint.py) would have to hold all of them until its end.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde.engine.adjoint import refuse_non_finite
from retrograde.engine.entries import Entries
from retrograde.engine.gradients import ParameterSums, far_apart
from retrograde.engine.scaling import (
    NO_EXPONENT,
    SLACK,
    Scaled,
    in_range,
    power_of_two,
    row_norms,
    times_power_of_two,
)
from retrograde.engine.unroll import Unrolled

TOGETHER = 2**19
"""Steps are pulled back together while their adjoints are no more numbers than this, a quarter MiB
in float32: what is computed of them stays in a processor's cache until it is used."""


class PerLag:
    """The rows at one lag: row k is the adjoint of what entered at step k + lag, seen at step k.

    Rows of steps before the first loss step and after the last one are left out.

    Attributes:
        lag: their lag.
        first: the step of the first row.
        values: the adjoints, 0 where nothing entered, [K, B, S].
        exponent: of each row; 2**exponent is what its values are in units of, [K].
        there: the rows that are not 0, [K].
    """

    there: Bool[Tensor, "K"]
    _alike: bool  # whether all rows are on one exponent

    def __init__(self, unrolled: Unrolled, direct: Float[Tensor, "T B S"]):
        self._chunk = unrolled.chunk(0, len(unrolled))
        self._parameters = unrolled.cell.parameters
        boundaries = unrolled.boundaries
        plain = {
            k: boundary.reads[0].factor
            for k, boundary in boundaries.items()
            if len(boundary.reads) == 1 and boundary.reads[0].source is None
        }
        self._factors = torch.stack(list(plain.values())) if plain else direct[:0]
        self._plain = torch.tensor(list(plain), dtype=torch.int64, device=direct.device)
        self._mixed = {k: each for k, each in boundaries.items() if k not in plain}
        self._steps = max(1, TOGETHER // direct[0].numel())
        self.lag = 0
        entries = Entries.of(direct)
        self.first, stop = (
            (entries.blocks[0][0], entries.blocks[-1][1] + 1) if len(entries) else (0, 0)
        )
        self.values, self.exponent = entries.between(self.first, stop - self.first)
        self.there = torch.ones_like(self.exponent, dtype=torch.bool)
        self._centre(self._norms())

    def advance(self) -> dict[str, Scaled]:
        """The part of this lag, a row for each parameter; then all rows move back by a step.

        Raises:
            NonFiniteError: if a row becomes infinite or NaN within a single step.
        """
        sums, back, first = (
            ParameterSums(self._parameters, 1),
            torch.empty_like(self.values),
            self.first,
        )
        exponent = torch.where(self.there, self.exponent, NO_EXPONENT)
        for start in range(0, len(back), self._steps):
            stop = min(start + self._steps, len(back))
            self._through(sums, exponent, back, start, stop)
        for k, boundary in self._mixed.items():
            if first <= k < first + len(back):
                row = back[k - first : k - first + 1]
                row.copy_(boundary.pull_back(row))
        if len(self._plain):
            here = (self._plain >= first) & (self._plain < first + len(back))
            back[self._plain[here] - first] *= self._factors[here]
        gone = 1 if first == 0 else 0  # what comes back to the initial state
        self.lag, self.first = self.lag + 1, max(0, first - 1)
        self.values, self.exponent, self.there = (
            back[gone:],
            self.exponent[gone:],
            self.there[gone:],
        )
        norms = self._norms()
        known = norms[self.there]
        if len(known) and not in_range(known):
            self._centre(norms)
        return sums.result()

    def _through(
        self,
        sums: ParameterSums,
        exponent: Int[Tensor, "K"],
        back: Float[Tensor, "K B S"],
        start: int,
        stop: int,
    ) -> None:
        """Some rows through their steps: what they say of the parameters, and `back`."""
        some, units, first = self.values[start:stop], exponent[start:stop], self.first + start
        adjoint = self._chunk.pull_back(some.flatten(0, 1).unsqueeze(0), first, stop - start)
        adjoint.previous_into(back[start:stop].flatten(0, 1).unsqueeze(0))
        if self._alike:
            sums.units(self.exponent[:1])
            sums.add(adjoint)
            return
        top = units.amax(0, keepdim=True)
        if int(top) == NO_EXPONENT:
            return
        alike = bool(((units == top) | (units == NO_EXPONENT)).all())
        if alike and torch.equal(sums.units(top), top):
            sums.add(adjoint)
        else:
            self._weighed(sums, exponent, start, stop)

    def _weighed(
        self, sums: ParameterSums, exponent: Int[Tensor, "K"], start: int, stop: int
    ) -> None:
        """What rows on several scales say of the parameters, those that are near at a time."""
        units, count = exponent[start:stop], stop - start
        if count > 1 and far_apart(units.unsqueeze(0)):
            self._weighed(sums, exponent, start + count // 2, stop)
            self._weighed(sums, exponent, start, start + count // 2)
            return
        top = units.amax(0, keepdim=True)
        if int(top) == NO_EXPONENT:
            return
        weights = power_of_two(units - sums.units(top), self.values)
        rows = (self.values[start:stop] * weights[:, None, None]).flatten(0, 1).unsqueeze(0)
        sums.add(self._chunk.pull_back(rows, self.first + start, count))

    def _norms(self) -> Float[Tensor, "K"]:
        """The norms of the rows, those that are gone left out from now on."""
        norms = row_norms(self.values)
        small = self.there & (norms == 0)
        if bool(small.any()):  # gone, or so small that the squares are 0
            small[small.clone()] = self.values[small].flatten(1).any(1)
            self.there = self.there & ((norms != 0) | small)
        return norms

    def _centre(self, norms: Float[Tensor, "K"]) -> None:
        """Bring all rows to the centre, on one exponent where they are near enough.

        Rows on one exponent make one product with the inputs as they are; others have to be weighed
        and pulled back once more.
        """
        rows = Scaled(self.values, self.exponent).centred(norms)
        norms = row_norms(rows.values)
        if not bool(norms.isfinite().all()):
            refuse_non_finite(norms, self.first + int(torch.nonzero(~norms.isfinite())[-1]))
        own = rows.exponent[self.there]
        low, high = (int(own.min()), int(own.max())) if len(own) else (0, 0)
        self._alike = high - low < SLACK
        if self._alike:
            unit = torch.full_like(rows.exponent, (low + high) // 2)
            shift = torch.where(self.there, rows.exponent - unit, 0)
            rows = Scaled(times_power_of_two(rows.values, shift), unit)
        self.values, self.exponent = rows.values, rows.exponent


@torch.no_grad()
def parts_by_lag(
    unrolled: Unrolled, direct: Float[Tensor, "T B S"], lags: int | None = None
) -> Iterator[dict[str, Scaled]]:
    """The part of every lag, 0, 1, ..., a row for each parameter; they sum to the gradient.

    Args:
        unrolled: the pass.
        direct: dL/ds_k as the loss alone gives it.
        lags: how many lags; all T of them if None.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rows = PerLag(unrolled, direct)
    for _ in range(len(unrolled) if lags is None else lags):
        yield rows.advance()
