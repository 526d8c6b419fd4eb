"""Lyapunov exponents: how fast a gradient grows or shrinks in the long run, in each direction.

    J_k^T Q_k = Q_{k-1} R_k      lambda_i = mean over k of ln |R_ii(k)|

References: Benettin, Galgani, Giorgilli and Strelcyn, "Lyapunov Characteristic Exponents for Smooth
Dynamical Systems", Meccanica 15 (1980), for the method; Vogt, Puelma Touzel, Shlizerman and Lajoie,
"On Lyapunov Exponents for RNNs", Frontiers in Applied Mathematics and Statistics 8 (2022), for its
use here. This goes backwards with J^T, as a gradient does, in nats, and the Jacobian of an LSTM
holds its cell state, which their released code leaves out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde import charts, plots
from retrograde.spectra.factors import factors
from retrograde.spectra.jacobians import Chain

POINTS = 200
"""The largest number of points in a convergence curve, however long the sequence."""

UNSETTLED = (0.01, 0.1)
"""The leading exponent is called unsettled if it still moves, over the second half of the curve, by
more nats per step than the first and by more than the second of its own size. Below a hundredth of
a nat a gradient changes by less than a factor of 3 in a hundred steps."""


@dataclass(frozen=True, eq=False)
class Exponents:
    """Lyapunov exponents in nats per step: a gradient grows as exp(lambda * steps) in the long run.

    Attributes:
        each: of every sample, descending, shape [B, n]; -inf for directions that are lost entirely.
        steps: after how many steps each point of the curve was taken, shape [K].
        curve: the mean so far, at those points, shape [K, B, n], in the order of `each`.
        participation: the part of the leading directions that lies in each slot of the state (h, c,
            of each layer), by name of the slot, shape [B, n]; over the slots it sums to 1.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import Elman
        >>> weight = torch.diag(torch.tensor([2.0, 0.5]))
        >>> cell = Elman(torch.ones(2, 1), weight, activation="identity")
        >>> pass_ = retrograde.record_cell(cell, torch.ones(60, 1, 1), lambda h, s: s.sum())
        >>> retrograde.spectrum(pass_).exponents.mean  # ln 2 and ln 1/2
        tensor([ 0.6931, -0.6931], dtype=torch.float64)

    A direction counts as lost where J_k^T Q_k has no such rank: a singular value below n eps of its
    largest, all that float64 resolves.
    """

    each: Float[Tensor, "B n"]
    steps: Int[Tensor, "K"]
    curve: Float[Tensor, "K B n"]
    participation: Mapping[str, Float[Tensor, "B n"]]

    @property
    def mean(self) -> Float[Tensor, "n"]:
        """Over the batch."""
        return self.each.mean(0)

    @property
    def spread(self) -> Float[Tensor, "n"]:
        """Largest less smallest over the batch; 0 where a direction is lost in every sample."""
        most, least = self.each.amax(0), self.each.amin(0)
        return torch.where(most == least, 0, most - least)

    @property
    def leading(self) -> float:
        """The largest: above 0 gradients explode, below 0 they vanish.

        The mean over the samples that have not lost it, -inf if all have: a sample in which every
        unit is off adds nothing to a gradient, and changes nothing about that of the others.
        """
        left = self._left
        return float(self.each[left, 0].mean()) if bool(left.any()) else -math.inf

    @property
    def unsettled(self) -> float:
        """How far the leading exponent still moved over the second half of the curve."""
        left = self._left
        if not bool(left.any()):
            return 0.0
        last = self.curve[len(self.curve) // 2 :, left, 0].mean(1)
        return float((last - last[-1]).abs().max())

    @property
    def _left(self) -> Bool[Tensor, "B"]:
        """The samples that have not lost every direction."""
        return self.each[:, 0].isfinite()

    @property
    def settled(self) -> bool:
        """Whether that is little: the sequence is long enough for the leading exponent."""
        absolute, relative = UNSETTLED
        return self.unsettled <= max(absolute, relative * abs(self.leading))

    def chart(self) -> Any:
        """The convergence curve, mean over the batch, as an Altair chart."""
        return charts.exponents(*self._drawn)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The same with Matplotlib, as (figure, axes).

        Args:
            ax: the axes to draw on; new ones if None.

        Raises:
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        return plots.exponents(*self._drawn, ax)

    @property
    def _drawn(self) -> tuple[list[int], list[int], int, list[list[float]]]:
        curve, size = self.curve.mean(1), self.curve.shape[-1]
        shown = charts.directions(size)
        return self.steps.tolist(), shown, size, curve[:, shown].tolist()


@torch.no_grad()
def exponents(chain: Chain, n: int, transient: int) -> Exponents:
    """The n leading exponents; `transient` steps at each end of the chain are left out.

    Backwards, the last steps only turn the directions into line; in the first ones the state itself
    has not settled.
    """
    slots, start = _slots(chain), None
    for factor in factors(chain.between(len(chain) - transient, len(chain)), n):
        start = factor.q
    middle = chain.between(transient, len(chain) - transient)
    counted = len(middle)
    wanted = torch.linspace(1, counted, min(POINTS, counted)).round().long()
    points = {int(step): number for number, step in enumerate(wanted)}
    total = chain.unrolled.x.new_zeros(chain.batch, n)
    curve = total.new_zeros(len(points), chain.batch, n)
    parts = {name: torch.zeros_like(total) for name in slots}
    for factor in factors(middle, n, start):
        if factor.moved is not None:
            total, curve = _moved(total, factor.moved), _moved(curve, factor.moved)
            parts = {name: _moved(part, factor.moved) for name, part in parts.items()}
        total = total + factor.logs
        for name, slot in slots.items():
            parts[name] += factor.q[:, slot].square().sum(1)
        done = counted - factor.k
        if done in points:
            curve[points[done]] = total / done
    each, order = (total / counted).sort(1, descending=True)
    return Exponents(
        each,
        wanted,
        _moved(curve, order),
        {name: _moved(part / counted, order) for name, part in parts.items()},
    )


def _moved(values: Float[Tensor, "*K B n"], order: Int[Tensor, "B n"]) -> Float[Tensor, "*K B n"]:
    """The values of the directions in another order."""
    return values.gather(-1, order.expand_as(values))


def _slots(chain: Chain) -> dict[str, slice]:
    """The slots of the part of the state that is looked at, counted within it."""
    part = chain.part or slice(0, chain.cell.state_size)
    return {
        name: slice(slot.start - part.start, slot.stop - part.start)
        for name, slot in chain.cell.slots.items()
        if part.start <= slot.start and slot.stop <= part.stop
    }
