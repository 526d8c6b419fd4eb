"""From the uses of the parameters at every step to their gradients, row by row.

The outer products of many steps are one matrix product, so uses are gathered before they are
multiplied out.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.cells.base import Use
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
            name: Scaled.of(value.new_zeros(rows, *value.shape))
            for name, value in parameters.items()
        }

    def add(self, uses: Uses, exponent: Int[Tensor, "M"]) -> None:
        """One step: what `pull_back` says of the parameters, rows in units of 2^exponent."""
        self._gathered.append((uses, exponent))
        adjoints = {id(use.adjoint): use.adjoint for several in uses.values() for use in several}
        numbers = len(exponent) * sum(da.size * da.batch for da in adjoints.values())
        steps = len(self._gathered)
        if steps == STEPS_AT_ONCE or numbers * steps >= GATHERED:
            self._multiply()

    def result(self) -> dict[str, Scaled]:
        """The sums, by parameter."""
        self._multiply()
        return self._sums

    def _multiply(self) -> None:
        """Add the outer products of all gathered steps to the sums."""
        if not self._gathered:
            return
        tops = torch.stack([exponent for _, exponent in self._gathered])
        top = tops.amax(0)
        shift = tops - top
        top = torch.where(top == NOTHING, 0, top)
        multiplied: dict[int, Tensor] = {}

        def adjoints_of(uses: list[Use]) -> Tensor:
            """da of all steps, [M, K*B, P]; parameters that share it meet it once."""
            key = id(uses[0].adjoint)
            if key not in multiplied:
                stacked = torch.stack([use.adjoint.dense for use in uses], 1)  # [M, K, B, P]
                stacked *= power_of_two(shift, stacked).T[..., None, None]
                multiplied[key] = stacked.flatten(1, 2)
            return multiplied[key]

        def product(uses: list[Use]) -> Tensor:
            operands = [use.operand for use in uses if use.operand is not None]
            adjoint = adjoints_of(uses)
            return torch.matmul(adjoint.mT, torch.cat(operands)) if operands else adjoint.sum(1)

        for name, first in self._gathered[0][0].items():
            blocks = [
                product([uses[name][number] for uses, _ in self._gathered])
                for number in range(len(first))
            ]
            part = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
            self._sums[name] = self._sums[name].plus(Scaled(part, top).normalised()[0])
        self._gathered = []
