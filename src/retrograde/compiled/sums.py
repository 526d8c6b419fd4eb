"""The gradients that rows of adjoints make of the parameters, summed over steps by the library."""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from retrograde.compiled.uses import Side, Uses

PUTS_ASIDE = 2
"""What the library answers where it needs room for what is put aside."""


class Sums:
    """Sums of gradients, from rows at neighbouring steps.

    A row counts at each step in units of 2^exponent. What lies on quite another scale than what was
    added lately is put aside in float64.

    Args:
        count: how many sums there are.
        nothing: the exponent that stands for nothing, NO_EXPONENT of csrc/recurrence.h.

    Attributes:
        units: of each sum the exponent of what was added lately, the least that is in it, and the
            exponent of what was put aside, [3, sums].
    """

    def __init__(self, count: int, nothing: int):
        self.units = torch.full((3, count), nothing)
        self._sides: tuple[Side, ...] = ()
        self._recent: Tensor | None = None
        self._aside: Tensor | None = None

    def add(
        self, uses: Uses, first: int, values: Tensor, places: Tensor, exponents: Tensor
    ) -> None:
        """Add rows at neighbouring steps; spans come in any order.

        Args:
            uses: those of a whole chunk.
            first: the number of the earliest step in the chunk.
            values: the rows, [N, K, B, S].
            places: the sum that each belongs to, -1 for none, [N, K].
            exponents: of each row, that of nothing for one of zeros, [N, K].

        Raises:
            MemoryError: where there is not enough.
        """
        (all_steps, samples, size), dtype = uses.program.shape, uses.program.dtype
        rows, steps = values.shape[:2]
        sums = self.units.shape[1]
        assert values.shape[2:] == (samples, size) and values.dtype == dtype and values.is_cpu
        assert places.shape == exponents.shape == (rows, steps)
        assert places.dtype == exponents.dtype == torch.int64
        assert 0 <= first and first + steps <= all_steps
        if not places.numel():
            return
        assert -1 <= int(places.min()) and int(places.max()) < sums
        if not values[0, 0].is_contiguous():
            values = values.contiguous()
        if self._recent is None:
            self._recent, self._sides = torch.empty(sums, uses.of_sum, dtype=dtype), uses.sides
        assert self._sides == uses.sides and self._recent.dtype == dtype
        places, exponents = places.contiguous(), exponents.contiguous()
        operands = (ctypes.c_int64 * len(uses.all_operands))(*uses.all_operands)
        library = uses.library
        fields = (
            *(steps, samples, size, rows, first, sums, uses.of_sum),
            *library.threads,
            *(values.data_ptr(), *values.stride()[:2]),
            *(places.data_ptr(), exponents.data_ptr(), self._recent.data_ptr()),
            0 if self._aside is None else self._aside.data_ptr(),
            self.units.data_ptr(),
            *uses.groups,
            ctypes.addressof(operands),
            *uses.program.fields,
        )
        failed = library.sums[dtype]((ctypes.c_int64 * len(fields))(*fields))
        if failed == PUTS_ASIDE and self._aside is None:
            self._aside = torch.empty(self._recent.shape, dtype=torch.float64)
            self.add(uses, first, values, places, exponents)
        elif failed:
            raise MemoryError("there is not enough memory for sums of this size")

    @property
    def some_aside(self) -> bool:
        """Whether there is room for what is put aside."""
        return self._aside is not None

    def found(self) -> Iterator[tuple[Side, Tensor, Tensor | None]]:
        """Where each gradient belongs, and what was added lately and put aside, [sums, P, width].

        They hold no numbers where the unit is that of nothing.
        """
        for side in self._sides:
            assert self._recent is not None
            aside = None if self._aside is None else side.part(self._aside)
            yield side, side.part(self._recent), aside

    @property
    def apart(self) -> bool:
        """Whether there are gradients, and no number of a parameter is the sum of two of them."""
        taken = dict[str, tuple[tuple[bool, bool], int]]()
        for side in sorted(self._sides, key=lambda each: (each.parameter, each.first)):
            kind = side.columns, side.width is None
            before, end = taken.get(side.parameter, (kind, 0))
            if kind != before or side.first < end:
                return False
            taken[side.parameter] = kind, side.first + side.height
        return bool(taken)
