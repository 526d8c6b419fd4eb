"""Numbers beyond the range of floating point: a tensor and an integer exponent of two.

Multiplying by a power of two is exact, so a row that shrinks or grows can be brought back into
range at any time and the factor kept as an integer. Nothing here rounds, underflows or overflows,
however long the sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CENTRE = 32
"""Rows are kept near 2^32, not near 1: with the slack below, a gate's adjoint that is 2^-71 of its
row still has a normal float32 square, and the sum of squares of a row is at most 2^112."""

SLACK = 24
"""Nothing is rescaled while all norms are within 2^(CENTRE - SLACK) and 2^(CENTRE + SLACK)."""


ORDINARY = 72
"""Norms within 2^(CENTRE - ORDINARY) and 2^(CENTRE + ORDINARY) are normal numbers whose squares a
single power of two brings to the centre."""


def in_range(sizes: Float[Tensor, "N"], slack: int = SLACK, centre: int = CENTRE) -> bool:
    """Whether all rows, of these sizes, are near enough to the centre to be left as they are."""
    least, most = torch.aminmax(sizes)
    return float(least) >= 2.0 ** (centre - slack) and float(most) <= 2.0 ** (centre + slack)


def all_finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity among some numbers.

    A finite sum has none; a sum that is not finite may still be one of finite numbers.
    """
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


def power_of_two(exponent: Int[Tensor, "*R"], like: Tensor) -> Float[Tensor, "*R"]:
    """2**exponent, exact, in the data type of `like`.

    Made from the bits: torch.ldexp goes through pow, which need not be exact. Below the smallest
    normal number it is 0, above the largest power it stays there.
    """
    mantissa, bias, integer = (
        (52, 1023, torch.int64) if like.dtype == torch.float64 else (23, 127, torch.int32)
    )
    field = (exponent + bias).clamp(0, 2 * bias).to(integer)
    return (field << mantissa).view(torch.float64 if mantissa == 52 else torch.float32)


def factors_to_centre(
    sizes: Float[Tensor, "N"], centre: int = CENTRE
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Factors 2^e that bring sizes near 2^centre, and -e; as far as a factor itself can reach."""
    limit = 1022 if sizes.dtype == torch.float64 else 126
    shift = _shift_to_centre(sizes, centre).clamp(-limit, limit)
    return power_of_two(shift, sizes), -shift


def _shift_to_centre(sizes: Float[Tensor, "N"], centre: int = CENTRE) -> Int[Tensor, "N"]:
    """The e with which sizes times 2^e are near 2^centre; 0 for a size of 0."""
    shift = centre - torch.frexp(sizes).exponent.to(torch.int64)
    return torch.where(sizes > 0, shift, 0)


def times_power_of_two(
    values: Float[Tensor, "N *R"], exponent: Int[Tensor, "N"]
) -> Float[Tensor, "N *R"]:
    """`values * 2**exponent`, row by row, exact also where 2**exponent itself is out of range."""
    limit = 1022 if values.dtype == torch.float64 else 126
    column = exponent.view(-1, *[1] * (values.ndim - 1)).clamp(-3 * limit, 3 * limit)
    largest = int(column.abs().max()) if column.numel() else 0
    if largest == 0:
        return values
    if largest <= limit:
        return values * power_of_two(column, values)
    third = torch.div(column, 3, rounding_mode="trunc")  # three steps reach across the whole range
    step = power_of_two(third, values)
    return values * step * step * power_of_two(column - 2 * third, values)


def as_vectors(values: Float[Tensor, "N *R"]) -> Float[Tensor, "N _"]:
    """Each row as one vector; the row of a scalar parameter as one of length 1."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


def row_norms(values: Float[Tensor, "N *R"]) -> Float[Tensor, "N"]:
    """L2 norm of each row; 0 or inf where the squares leave the range."""
    norms: Tensor = torch.linalg.vector_norm(as_vectors(values), dim=1)
    return norms


def largest_of(values: Float[Tensor, "N M"]) -> Float[Tensor, "N"]:
    """The largest size of a number in each row, NaN where there is one; nothing is copied."""
    if not values.numel():
        return values.new_zeros(len(values))
    return torch.maximum(values.amax(1), -values.amin(1))


NO_EXPONENT = -(2**40)
"""The exponent that stands for a row without any number in it: below that of anything."""


@dataclass(frozen=True)
class Scaled:
    """`values * 2**exponent`, one integer exponent for each row of the leading axis."""

    values: Float[Tensor, "N *R"]
    exponent: Int[Tensor, "N"]

    @staticmethod
    def of(values: Float[Tensor, "N *R"]) -> "Scaled":
        """Plain numbers, exponent 0."""
        return Scaled(values, values.new_zeros(values.shape[0], dtype=torch.int64))

    def normalised(
        self, slack: int = SLACK, centre: int = CENTRE
    ) -> "tuple[Scaled, Float[Tensor, 'N']]":
        """The same numbers with the norms of the values near 2^centre, and those norms.

        Nothing is touched while all norms are within the slack; else all are centred at once.
        """
        norms = row_norms(self.values)
        if in_range(norms, slack, centre):
            return self, norms
        if in_range(norms, ORDINARY):
            factors, units = factors_to_centre(norms, centre)
            column = factors.view(-1, *[1] * (self.values.ndim - 1))
            return Scaled(self.values * column, self.exponent + units), norms * factors
        centred = self.centred(norms, centre)
        return (self, norms) if centred is self else (centred, row_norms(centred.values))

    def centred(self, norms: Float[Tensor, "N"], centre: int = CENTRE) -> "Scaled":
        """The same numbers with every norm near 2^centre; a row of zeros stays zero."""
        extreme = torch.nonzero((norms == 0) | ~norms.isfinite()).squeeze(1)
        size = norms.clone()  # where the squares left the range, the largest entry must do
        size[extreme] = as_vectors(self.values[extreme]).abs().amax(1)
        shift = _shift_to_centre(size, centre)
        if not bool(shift.any()):
            return self
        return Scaled(times_power_of_two(self.values, shift), self.exponent - shift)

    def log2_norms(self) -> Float[Tensor, "N"]:
        """log2 of each row's L2 norm, in float64; -inf for a row of zeros."""
        scaled, norms = self.normalised()
        return torch.log2(norms.double()) + scaled.exponent

    def plus(self, other: "Scaled") -> "Scaled":
        """Row-wise sum."""
        mine, theirs = aligned((self, other))
        return Scaled(mine.values + theirs.values, mine.exponent)

    def log2_scale(self) -> Int[Tensor, "N"]:
        """The exponent of each row, NO_EXPONENT for a row of zeros, which has no scale."""
        largest = as_vectors(self.values).abs().amax(1)  # faster than any()
        return torch.where(largest != 0, self.exponent, NO_EXPONENT)

    def total(self) -> "Scaled":
        """The sum over all rows, as a single row."""
        top = self.log2_scale().amax(0, keepdim=True)
        top = torch.where(top == NO_EXPONENT, 0, top)
        rows = times_power_of_two(self.values, (self.exponent - top).clamp(max=0))
        return Scaled(rows.sum(0, keepdim=True), top)

    def plain(self) -> Float[Tensor, "N *R"]:
        """Ordinary numbers; they may read 0 or inf where the range ends."""
        return times_power_of_two(self.values, self.exponent)


def aligned(some: Sequence[Scaled]) -> tuple[Scaled, ...]:
    """The same numbers with, row by row, one exponent for all: the largest of any nonzero row."""
    top = torch.stack([one.log2_scale() for one in some]).amax(0)
    top = torch.where(top == NO_EXPONENT, 0, top)
    return tuple(
        Scaled(times_power_of_two(one.values, (one.exponent - top).clamp(max=0)), top)
        for one in some
    )
