"""By unit: through which units of the state the gradient comes back to the step that uses W.

The adjoint that enters step k is a vector over the units of s_k; the pull-back through the step is
linear, so that it may be taken unit by unit:

    C[t,k;j] = what step k makes of e_j e_j^T delta_k      sum over j = C[t,k]

Every unit and bin of lags is a row. Rows that hold too many numbers to be kept are measured some
units at a time, in a pass for each such block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.decomposition.axes import Axis
from retrograde.decomposition.bins import LagBins
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.parts import Parts
from retrograde.decomposition.rows import shares
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries
from retrograde.engine.fold import fold
from retrograde.engine.gradients import AdjointSums
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two
from retrograde.engine.unroll import Unrolled

KEPT = 2**24
"""Most numbers that all parts together may have to be kept, 64 MiB in float32."""


@dataclass(frozen=True)
class Units(AbstractLabels):
    """The question: through which units of the state, and over which lags, parts come."""

    lags: tuple[range, ...]

    def parts(self, unrolled: Unrolled, entries: Entries) -> Mapping[str, Parts]:
        """One pass, or several where a large layer has too many parts to be kept."""
        cell = unrolled.cell
        axes = (_units(cell), {"lag": self.lags})
        former = partial(sums_by_unit, unrolled, entries, self.lags)
        places = cell.state_size * len(self.lags)
        numbers = sum(weight.numel() for weight in cell.parameters.values())
        if places * numbers <= KEPT:
            rows = former(torch.arange(places), places)
            return {name: Parts.of(axes, name, found) for name, found in rows.items()}
        whole = former(torch.zeros(places, dtype=torch.int64), 1)
        log2: dict[str, list[Tensor]] = {name: [] for name in whole}
        share: dict[str, list[Tensor]] = {name: [] for name in whole}
        for some in torch.split(torch.arange(places), max(1, KEPT // numbers)):
            groups = torch.full((places,), -1)
            groups[some] = torch.arange(len(some))
            for name, rows_of_some in former(groups, len(some)).items():
                log2[name].append(rows_of_some.log2_norms())
                share[name].append(shares(rows_of_some, whole[name]))
        return {
            name: Parts.measured(
                axes, name, torch.cat(log2[name]), torch.cat(share[name]), row, former
            )
            for name, row in whole.items()
        }


def sums_by_unit(
    unrolled: Unrolled,
    entries: Entries,
    lags: tuple[range, ...],
    groups: Int[Tensor, "N"],
    count: int,
) -> dict[str, Scaled]:
    """Sums of parts by unit and bin of lags, for every parameter.

    Args:
        unrolled, entries: the pass.
        lags: the lags of each bin.
        groups: the sum that each unit and bin belongs to, unit by unit; -1 for none.
        count: how many sums there are.
    """
    sums = _UnitSums(unrolled.cell, lags, groups, count)
    fold(unrolled, entries, [sums])
    return sums.result()


class _UnitSums:
    """The fold behind `by_unit`."""

    def __init__(
        self, cell: AbstractCell, lags: tuple[range, ...], groups: Int[Tensor, "N"], count: int
    ):
        self._bins = LagBins(lags)
        self._sums = AdjointSums(cell, count)
        device = next(iter(cell.parameters.values())).device
        groups = groups.view(-1, len(lags)).flip(1).to(device)  # farthest bin first, as they come
        numbers = torch.arange(count, device=device).view(-1, 1, 1)
        self._members: Bool[Tensor, "G M S"] = groups.T == numbers

    def update(self, span: AdjointSpan) -> None:
        for piece in span.pieces(max(len(self._members), self._bins.rows)):
            values, exponent = self._bins.sum(piece)
            exponent = torch.where(values.flatten(2).any(2), exponent, NO_EXPONENT)
            inside = self._members.any(2).unsqueeze(2)  # [G, M, 1]
            scale = torch.where(inside, exponent, NO_EXPONENT)
            top = scale.amax(1)
            weight = power_of_two(scale - top.unsqueeze(1), values)
            members = self._members.to(values.dtype)
            rows = torch.einsum("gmk,gms,mkbs->gkbs", weight, members, values)
            self._sums.add(piece, rows, top)

    def result(self) -> dict[str, Scaled]:
        return self._sums.result()


def _units(cell: AbstractCell) -> Axis:
    """The units of the state: the part of it that they belong to, and their number in it."""
    states: list[str] = []
    units: list[int] = []
    for name, slot in cell.slots.items():
        states += [name] * (slot.stop - slot.start)
        units += range(slot.stop - slot.start)
    return {"state": tuple(states), "unit": tuple(units)}
