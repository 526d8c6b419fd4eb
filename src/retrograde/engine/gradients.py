"""From the uses of the parameters at every step to their gradients, row by row.

The outer products of many steps are one matrix product, so uses are gathered before they are
multiplied out. Gradients that come formed are added as they come.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.cells.base import CellAdjoint, Use, new_rows
from retrograde.engine.scaling import NOTHING, Scaled, power_of_two

STEPS_AT_ONCE = 64
"""Outer products of so many steps are gathered into one matrix product."""

GATHERED = 2**22
"""... or of fewer, so that no more numbers than this are gathered (16 MiB in float32)."""

Uses = Mapping[str, tuple[Use, ...]]


class ParameterSums:
    """For each of some rows the gradient of every parameter, summed over steps."""

    def __init__(self, parameters: Mapping[str, Tensor], rows: int):
        self._gathered: list[tuple[Uses, Tensor]] = []
        self._sums = {
            name: value.new_zeros(rows, *value.shape) for name, value in parameters.items()
        }
        like = next(iter(parameters.values()))
        self._exponent = torch.full((rows,), NOTHING, dtype=torch.int64, device=like.device)

    def add(self, pulled: CellAdjoint, exponent: Int[Tensor, "M"]) -> None:
        """One step: what `pull_back` says of the parameters, rows in units of 2^exponent."""
        if pulled.formed:
            self._add_formed(pulled, exponent)
        uses = pulled.uses
        if not uses:
            return
        self._gathered.append((uses, exponent))
        adjoints = {id(use.adjoint): use.adjoint for several in uses.values() for use in several}
        numbers = len(exponent) * sum(da.size * da.batch for da in adjoints.values())
        steps = len(self._gathered)
        if steps == STEPS_AT_ONCE or numbers * steps >= GATHERED:
            self._multiply()

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        self._multiply()
        exponent = torch.where(self._exponent == NOTHING, 0, self._exponent)
        return {name: Scaled(total, exponent) for name, total in self._sums.items()}

    def _add_formed(self, pulled: CellAdjoint, exponent: Int[Tensor, "M"]) -> None:
        """Add the gradients of one step that come formed."""
        self._rescale(exponent)
        shift = exponent - self._exponent
        for formed in pulled.formed:
            for some, gradients in formed.blocks(GATHERED):
                for name, parts in gradients.items():
                    factor = power_of_two(shift[some], parts)
                    self._sums[name][some] += parts * factor.view(-1, *[1] * (parts.ndim - 1))

    def _multiply(self) -> None:
        """Add the outer products of all gathered steps to the sums."""
        if not self._gathered:
            return
        exponents = torch.stack([exponent for _, exponent in self._gathered])
        self._rescale(exponents.amax(0))
        shift = exponents - self._exponent
        multiplied: dict[int, Tensor] = {}
        summed: dict[int, Tensor] = {}

        def adjoints_of(uses: list[Use]) -> Tensor:
            """da of all steps, one after the other; parameters that share it meet it once."""
            first = uses[0].adjoint
            if id(first) not in multiplied:
                batches = [use.adjoint.batch for use in uses]
                like = first.parts[0][0]
                da = new_rows(like, len(like), sum(batches), first.size)
                for use, part in zip(uses, torch.split(da, batches, 1), strict=True):
                    use.adjoint.write(part)
                if bool(shift.any()):
                    of_sample = torch.tensor(batches, device=da.device)
                    da *= power_of_two(shift, da).T.repeat_interleave(of_sample, 1).unsqueeze(-1)
                multiplied[id(first)] = da
            return multiplied[id(first)]

        for name, first in self._gathered[0][0].items():
            row = 0
            for number, use in enumerate(first):
                uses = [each[name][number] for each, _ in self._gathered]
                total = self._sums[name][:, row : row + use.adjoint.size]
                operands = [each.operand for each in uses if each.operand is not None]
                if operands:
                    operand = torch.cat(operands).expand(len(total), -1, -1)
                    total.baddbmm_(adjoints_of(uses).mT, operand)
                else:
                    key = id(use.adjoint)  # two biases, one sum
                    summed[key] = summed[key] if key in summed else adjoints_of(uses).sum(1)
                    total += summed[key]
                row += use.adjoint.size
        self._gathered = []

    def _rescale(self, arriving: Int[Tensor, "M"]) -> None:
        """Bring the sums to the largest exponent that they have met."""
        top = torch.maximum(self._exponent, arriving)
        shift = torch.where(self._exponent == NOTHING, 0, self._exponent - top)
        if bool(shift.any()):
            for total in self._sums.values():
                total *= power_of_two(shift, total).view(-1, *[1] * (total.ndim - 1))
        self._exponent = top
