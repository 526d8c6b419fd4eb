"""From adjoint rows to the gradients of the parameters, row by row, summed over steps.

The outer products of many steps are one matrix product, so rows of neighbouring steps are pulled
back together, as if the steps were samples of one step.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.precision import no_autocast
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.scaling import NO_EXPONENT, Scaled, power_of_two
from retrograde.engine.unroll import Chunk

SUMMED = 2**21
"""Rows of several spans are pulled back together up to this many numbers, 8 MiB in float32."""

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
        self._exponent = like.new_full((rows,), NO_EXPONENT, dtype=torch.int64)
        self._least = self._exponent  # of all that was added
        self._empty = True
        self._apart: dict[str, Scaled] = {}

    def units(self, arriving: Int[Tensor, "M"]) -> Int[Tensor, "M"]:
        """The exponents of what is added next: those of the sums, raised to any that is larger.

        Sums on quite another scale are put aside first.
        """
        if self._empty:
            self._exponent, self._least, self._empty = arriving, arriving, False
            return arriving
        if far_apart(torch.stack((self._least, self._exponent, arriving), 1)):
            self._apart = self.result()
            self._sums = {name: torch.zeros_like(total) for name, total in self._sums.items()}
            self._exponent = self._least = torch.full_like(self._exponent, NO_EXPONENT)
        less, more = torch.minimum(self._least, arriving), torch.maximum(self._least, arriving)
        self._least = torch.where(less == NO_EXPONENT, more, less)
        top = torch.maximum(self._exponent, arriving)
        shift = torch.where(self._exponent == NO_EXPONENT, 0, self._exponent - top)
        if bool(shift.any()):
            for total in self._sums.values():
                total *= power_of_two(shift, total).view(-1, *[1] * (total.ndim - 1))
        self._exponent = top
        return top

    def add(self, pulled: CellAdjoint, rows: Int[Tensor, "R"] | None = None) -> None:
        """What a pull-back says of the parameters, its rows in `units` (plain numbers before).

        Args:
            pulled: the pull-back.
            rows: the numbers of its rows; None if it has all of them.
        """
        for formed in pulled.formed:
            for some, gradients in formed.blocks(SUMMED):
                for name, parts in gradients.items():
                    self._sums[name][some if rows is None else rows[some]] += parts
        for uses in pulled.uses:
            da, summed = uses.adjoint, None
            for name, first, operand in uses.operands:
                total = self._sums[name]
                total = total.mT if name in uses.columns else total
                if operand is None:  # two biases may be two rows of one parameter
                    total = total.flatten(1)
                total = total[:, first : first + da.shape[2]]
                if operand is None:  # two biases, one sum
                    part = summed = da.sum(1) if summed is None else summed
                elif rows is None:
                    total.baddbmm_(da.mT, operand.expand(len(da), -1, -1))
                    continue
                else:
                    with no_autocast(da.device):
                        part = torch.bmm(da.mT, operand.expand(len(da), -1, -1))
                if rows is None:
                    total += part
                else:
                    total.index_add_(0, rows, part)

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        exponent = torch.where(self._exponent == NO_EXPONENT, 0, self._exponent)
        sums = {name: Scaled(total, exponent) for name, total in self._sums.items()}
        if not self._apart:
            return sums
        return {
            name: total.normalised()[0].plus(self._apart[name].normalised()[0])
            for name, total in sums.items()
        }


def far_apart(exponents: Int[Tensor, "M K"]) -> bool:
    """Whether any row holds numbers further apart than 2^BAND."""
    most = exponents.amax(1, keepdim=True)
    least = torch.where(exponents == NO_EXPONENT, most, exponents)
    return bool((most - least > BAND).any())


class AdjointSums:
    """The same from adjoint rows of neighbouring steps, span by span."""

    def __init__(self, cell: AbstractCell, rows: int):
        self._sums = ParameterSums(cell.parameters, rows)
        self._gathered: list[tuple[Float[Tensor, "M _ B S"], Int[Tensor, "M _"]]] = []
        self._numbers = 0

    def add(
        self, span: AdjointSpan, values: Float[Tensor, "M K B S"], exponent: Int[Tensor, "M K"]
    ) -> None:
        """Rows at the steps of a span; spans come in the order of the recursion, last one first."""
        self._gathered.insert(0, (values, exponent))
        self._numbers += values.numel()
        if span.first == span.chunk.first or self._numbers + values.numel() > SUMMED:
            every, exponents = zip(*self._gathered, strict=True)
            self._add(span.chunk, span.first, torch.cat(every, 1), torch.cat(exponents, 1))
            self._gathered, self._numbers = [], 0

    def add_steps(
        self, chunk: Chunk, values: Float[Tensor, "M K B S"], exponent: Int[Tensor, "M K"]
    ) -> None:
        """Rows at all steps of a chunk; chunks come in any order. `values` are overwritten."""
        self._add(chunk, chunk.first, values, exponent)

    def _add(
        self,
        chunk: Chunk,
        k: int,
        values: Float[Tensor, "M K B S"],
        exponent: Int[Tensor, "M K"],
    ) -> None:
        count = exponent.shape[1]
        if count > 1 and far_apart(exponent):
            half = count // 2
            self._add(chunk, k + half, values[:, half:], exponent[:, half:])
            self._add(chunk, k, values[:, :half], exponent[:, :half])
            return
        top = exponent.amax(1)
        units, rows = self._sums.units(top), None
        if bool((top == NO_EXPONENT).any()):  # where a block of loss steps is far, most bins
            rows = torch.nonzero(top != NO_EXPONENT).squeeze(1)
            values, exponent, units = values[rows], exponent[rows], units[rows]
        values *= power_of_two(exponent - units.unsqueeze(1), values)[..., None, None]
        if len(values):
            self._sums.add(chunk.pull_back(values.flatten(1, 2), k, count), rows)

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        return self._sums.result()
