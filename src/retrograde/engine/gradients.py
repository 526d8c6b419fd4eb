"""From adjoint rows to the gradients of the parameters, row by row, summed over steps.

The outer products of many steps are one matrix product, so rows are gathered first and pulled back
together, as if the steps were samples of one step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.plan import CellAdjoint
from retrograde.engine.adjoint import AdjointStep
from retrograde.engine.crossings import CrossingStep
from retrograde.engine.scaling import NOTHING, Scaled, power_of_two
from retrograde.engine.unroll import Chunk

GATHERED = 2**21
"""No more numbers than this are gathered, unless it be of a single step (8 MiB in float32)."""

BAND = 64
"""Numbers further apart than 2^BAND are added only when all are there: what is nothing beside the
gradient of one parameter at another step may be all that there is of another parameter's."""


class ParameterSums:
    """For each of some rows the gradient of every parameter, summed over steps."""

    def __init__(self, parameters: Mapping[str, Tensor], rows: int):
        self._sums = {
            name: value.new_zeros(rows, *value.shape) for name, value in parameters.items()
        }
        like = next(iter(parameters.values()))
        self._exponent = like.new_full((rows,), NOTHING, dtype=torch.int64)
        self._least = self._exponent  # of all that was added
        self._apart: dict[str, Scaled] = {}

    def units(self, arriving: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        """The exponents of what is added next: those of the sums, raised to any that is larger.

        Sums on quite another scale are put aside first.
        """
        if _far_apart(torch.stack((self._least, self._exponent, arriving), 1)):
            self._apart = self.result()
            self._sums = {name: torch.zeros_like(total) for name, total in self._sums.items()}
            self._exponent = self._least = torch.full_like(self._exponent, NOTHING)
        less, more = torch.minimum(self._least, arriving), torch.maximum(self._least, arriving)
        self._least = torch.where(less == NOTHING, more, less)
        top = torch.maximum(self._exponent, arriving)
        shift = torch.where(self._exponent == NOTHING, 0, self._exponent - top)
        if bool(shift.any()):
            for total in self._sums.values():
                total *= power_of_two(shift, total).view(-1, *[1] * (total.ndim - 1))
        self._exponent = top
        return top

    def add(self, pulled: CellAdjoint) -> None:
        """What a pull-back says of the parameters, its rows in `units` (plain numbers before)."""
        for formed in pulled.formed:
            for some, gradients in formed.blocks(GATHERED):
                for name, parts in gradients.items():
                    self._sums[name][some] += parts
        for uses in pulled.uses:
            da, summed = uses.adjoint, None
            for name, first, operand in uses.operands:
                total = self._sums[name][:, first : first + da.shape[2]]
                if operand is not None:
                    total.baddbmm_(da.mT, operand.expand(len(da), -1, -1))
                else:  # two biases, one sum
                    summed = da.sum(1) if summed is None else summed
                    total += summed

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        exponent = torch.where(self._exponent == NOTHING, 0, self._exponent)
        sums = {name: Scaled(total, exponent) for name, total in self._sums.items()}
        if not self._apart:
            return sums
        return {
            name: total.normalised()[0].plus(self._apart[name].normalised()[0])
            for name, total in sums.items()
        }


def _far_apart(exponents: Int[Tensor, "M K"]) -> bool:
    """Whether any row holds numbers further apart than 2^BAND."""
    most = exponents.amax(1, keepdim=True)
    least = torch.where(exponents == NOTHING, most, exponents)
    return bool((most - least > BAND).any())


class AdjointSums:
    """The same from adjoint rows [M, B, S] that come step by step."""

    def __init__(self, cell: AbstractCell, rows: int):
        self._sums = ParameterSums(cell.parameters, rows)
        self._gathered: list[Scaled] = []

    def add(self, step: AdjointStep | CrossingStep, rows: Scaled) -> None:
        """Rows of one step; steps come in the order of the recursion, last one first."""
        self._gathered.insert(0, rows)
        full = (len(self._gathered) + 1) * rows.values.numel() > GATHERED
        if full or step.k == step.chunk.first:
            values = torch.stack([each.values for each in self._gathered], 1)
            exponent = torch.stack([each.exponent for each in self._gathered], 1)
            self._pull_back(step.k, values, exponent, step.chunk)
            self._gathered = []

    def _pull_back(
        self,
        k: int,
        values: Float[Tensor, "M K B S"],
        exponent: Int[Tensor, "M K"],
        chunk: Chunk,
    ) -> None:
        """Rows of neighbouring steps from step k on; by halves if their scales are far apart."""
        count = exponent.shape[1]
        if count > 1 and _far_apart(exponent):
            early, late = slice(0, count // 2), slice(count // 2, None)
            self._pull_back(k + count // 2, values[:, late], exponent[:, late], chunk)
            self._pull_back(k, values[:, early], exponent[:, early], chunk)
            return
        units = self._sums.units(exponent.amax(1))
        values *= power_of_two(exponent - units.unsqueeze(1), values)[..., None, None]
        self._sums.add(chunk.pull_back(values.flatten(1, 2), k, count))

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        return self._sums.result()
