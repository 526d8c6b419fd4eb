"""Numbers of any size, each unit at each step with an exponent of its own.

Units forget at rates of their own, so that beside each other their products differ by more than the
range of a data type.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.engine.scaling import power_of_two

ZERO = -(2**30)
"""The exponent of a unit that is 0."""


@dataclass(frozen=True, eq=False)
class Wide:
    """Numbers of any size: `values * 2**exponent`, an exponent for each unit at each step.

    Attributes:
        values: shape [n, K, B, H], or [n, n, K, B, H] of matrices; the largest of each unit is from
            1 to 2 in size, or a sum of such numbers.
        exponent: shape [K, B, H]; `ZERO` where all values are 0.
    """

    values: Float[Tensor, "*n K B H"]
    exponent: Int[Tensor, "K B H"]

    @staticmethod
    def of(values: Float[Tensor, "*n K B H"], exponent: Int[Tensor, "..."]) -> "Wide":
        """These numbers with their values near 1."""
        flat = values.flatten(0, -4)
        size = flat[0].abs() if len(flat) == 1 else flat.abs().amax(0)
        whole, bits, bias = (
            (torch.int64, 52, 1023) if values.dtype == torch.float64 else (torch.int32, 23, 127)
        )
        own = ((size.view(whole) >> bits) - bias).int()
        values = values * power_of_two(-own, values)
        return Wide(values, torch.where(size > 0, own + exponent, ZERO))

    def __len__(self) -> int:
        return len(self.exponent)

    def at(self, start: int, stop: int) -> "Wide":
        """Some of the steps; a view."""
        return Wide(self.values[..., start:stop, :, :], self.exponent[start:stop])

    def put(self, start: int, other: "Wide") -> None:
        """Overwrite the steps from `start` on."""
        here = self.at(start, start + len(other))
        here.values.copy_(other.values)
        here.exponent.copy_(other.exponent)

    def copy(self) -> "Wide":
        return Wide(self.values.clone(), self.exponent.clone())

    def times(self, other: "Wide") -> "Wide":
        """The product of matrices, or of matrices and vectors, unit by unit."""
        mine, theirs = self.values, other.values
        if len(mine) == 1:
            product = mine[0] * theirs
        elif theirs.ndim < mine.ndim:
            product = (mine * theirs).sum(1)
        else:
            product = (mine.unsqueeze(2) * theirs).sum(1)
        return Wide.of(product, self.exponent + other.exponent)

    def plus(self, other: "Wide") -> "Wide":
        top = torch.maximum(self.exponent, other.exponent)
        mine = self.values * power_of_two(self.exponent - top, self.values)
        return Wide(mine + other.values * power_of_two(other.exponent - top, other.values), top)
