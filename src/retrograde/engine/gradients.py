"""From adjoint rows to the gradients of the parameters, row by row, summed over steps.

The outer products of many steps are one matrix product, so rows are gathered first and pulled back
together, as if the steps were samples of one step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellAdjoint
from retrograde.engine.adjoint import AdjointStep
from retrograde.engine.crossings import CrossingStep
from retrograde.engine.scaling import NOTHING, Scaled, power_of_two
from retrograde.engine.unroll import CHUNK

GATHERED = 2**21
"""No more numbers than this are gathered, unless it be of a single step (8 MiB in float32)."""


class ParameterSums:
    """For each of some rows the gradient of every parameter, summed over steps."""

    def __init__(self, parameters: Mapping[str, Tensor], rows: int):
        self._sums = {
            name: value.new_zeros(rows, *value.shape) for name, value in parameters.items()
        }
        like = next(iter(parameters.values()))
        self._exponent = like.new_full((rows,), NOTHING, dtype=torch.int64)

    def units(self, arriving: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        """The exponents of what is added next: those of the sums, raised to any that is larger."""
        top = torch.maximum(self._exponent, arriving)
        shift = torch.where(self._exponent == NOTHING, 0, self._exponent - top)
        if bool(shift.any()):
            for total in self._sums.values():
                total *= power_of_two(shift, total).view(-1, *[1] * (total.ndim - 1))
        self._exponent = top
        return top

    def add(self, pulled: CellAdjoint) -> None:
        """What `pull_back` says of the parameters, its rows in `units` (plain numbers before)."""
        for formed in pulled.formed:
            for some, gradients in formed.blocks(GATHERED):
                for name, parts in gradients.items():
                    self._sums[name][some] += parts
        summed: dict[int, Tensor] = {}
        for name, uses in pulled.uses.items():
            row = 0
            for use in uses:
                total = self._sums[name][:, row : row + use.adjoint.size]
                row += use.adjoint.size
                da = use.adjoint.dense
                if use.operand is not None:
                    total.baddbmm_(da.mT, use.operand.expand(len(da), -1, -1))
                    continue
                key = id(use.adjoint)  # two biases, one sum
                summed[key] = summed[key] if key in summed else da.sum(1)
                total += summed[key]

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        exponent = torch.where(self._exponent == NOTHING, 0, self._exponent)
        return {name: Scaled(total, exponent) for name, total in self._sums.items()}


class AdjointSums:
    """The same from adjoint rows [M, B, S] that come step by step."""

    def __init__(self, cell: AbstractCell, rows: int):
        self._cell = cell
        self._sums = ParameterSums(cell.parameters, rows)
        self._exponent = next(iter(cell.parameters.values())).new_zeros(rows, 0, dtype=torch.int64)
        self._count = 0
        self._values: Float[Tensor, "M K B S"]

    def add(self, step: AdjointStep | CrossingStep, rows: Scaled) -> None:
        """Rows of one step; steps come in the order of the recursion, last one first."""
        if not self._exponent.shape[1]:
            most = min(CHUNK, max(1, GATHERED // rows.values.numel()))
            shape = (len(rows.exponent), most)
            self._values = rows.values.new_empty(*shape, *rows.values.shape[1:])
            self._exponent = rows.exponent.new_empty(shape)
        self._count += 1
        self._values[:, -self._count] = rows.values
        self._exponent[:, -self._count] = rows.exponent
        if step.k == step.chunk.first or self._count == self._exponent.shape[1]:
            self._pull_back(step)
            self._count = 0

    def _pull_back(self, step: AdjointStep | CrossingStep) -> None:
        """All that is gathered; `step` is the earliest."""
        values, exponent = self._values[:, -self._count :], self._exponent[:, -self._count :]
        units = self._sums.units(exponent.amax(1))
        values *= power_of_two(exponent - units.unsqueeze(1), values)[..., None, None]
        many = step.chunk.merged(step.k, self._count)
        self._sums.add(self._cell.pull_back(many, values.flatten(1, 2)))

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        return self._sums.result()
