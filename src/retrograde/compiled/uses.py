"""What gradients of parameters follow from at neighbouring steps, as the library reads it."""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from retrograde.cells.plan import Plan
from retrograde.compiled.library import Library
from retrograde.compiled.passes import in_use
from retrograde.compiled.program import MOST_PRODUCTS, Beyond, Program, Writer

FEW_SAMPLES = 32
"""Up to this many samples products of them are cheap however narrow the operands are."""


@dataclass(frozen=True)
class Side:
    """Where the gradient of a parameter lies in a sum: [height, width] from an offset on.

    Attributes:
        parameter: its name.
        first: the first of its rows that the gradient is of.
        columns: whether its rows are the columns of its tensor.
        offset: the number of the first entry.
        height: how many rows there are.
        row: the numbers from one row to the next.
        column: those from one column to the next.
        width: of a row; None where the operand is 1.
    """

    parameter: str
    first: int
    columns: bool
    offset: int
    height: int
    row: int
    column: int
    width: int | None

    def part(self, sums: Tensor) -> Tensor:
        """It from whole sums, [sums, height, width]; without the last axis where that is None."""
        size = (len(sums), self.height, self.width or 1)
        strides = (sums.stride(0), self.row, self.column)
        part = sums.as_strided(size, strides, sums.storage_offset() + self.offset)
        return part.squeeze(2) if self.width is None else part


@dataclass(frozen=True, eq=False)
class Uses:
    """Adjoints side by side, and the operands that gradients are their products with.

    Attributes:
        library: what computes with it.
        program: the nodes whose adjoints they are multiples of.
        groups: how many adjoints side by side there are, and the addresses of what they consist of.
        operands: those of each, [K, B, M]; None for 1.
        sides: where the gradients lie in a sum.
        of_sum: the numbers of a sum.
    """

    library: Library
    program: Program
    groups: tuple[int, int, int]
    operands: tuple[tuple[Tensor | None, ...], ...]
    sides: tuple[Side, ...]
    of_sum: int

    @cached_property
    def by_products(self) -> bool:
        """Whether norms follow from products of samples; where gradients are cheaper to form, not.

        That is so where a batch is large and wider than what the adjoints are multiplied by.
        """
        _, batch, _ = self.program.shape
        columns = (sum(1 if u is None else u.shape[-1] for u in some) for some in self.operands)
        return all(batch <= max(each, FEW_SAMPLES) for each in columns)

    @cached_property
    def all_operands(self) -> tuple[int, ...]:
        """`struct operand` of csrc/recurrence.h for each of them."""
        numbers: list[int] = []
        for operand in (each for some in self.operands for each in some):
            if operand is None:
                numbers += (0, 0, 0, 1)
            else:
                numbers += (operand.data_ptr(), *operand.stride()[:2], operand.shape[2])
        return tuple(numbers)


def uses_of(plan: Plan, like: Tensor) -> Uses | None:
    """The uses of a plan for the library; None where it is not in use or cannot run them.

    Args:
        plan: that of neighbouring steps, [K, B, ...].
        like: the states before them, [K, B, S].
    """
    library = in_use(like)
    if library is None or plan.functions:
        return None
    vector = library.vector // like.element_size()
    groups, segments = list[int](), list[int]()
    every, sides, offset = list[tuple[Tensor | None, ...]](), list[Side](), 0
    try:
        writer = Writer(plan.folded, like)
        for blocks, uses in plan.uses:
            some = plan.folded.segments(blocks)
            height = blocks.height * len(blocks.targets)
            groups += (blocks.height, len(blocks.targets), len(some), len(uses))
            for each in some:
                segments += writer.segment(each, blocks.height)
            operands = tuple(
                None if use.diagonal or use.operand is None else writer.operand(use.operand)
                for use, _ in uses
            )
            every.append(operands)
            # As in csrc/sums.h: what fills half a vector at most lies column by column.
            widths = [0 if u is None else u.shape[2] for u in operands]
            wide = [0 if 2 * n <= vector else math.ceil(n / vector) * vector for n in widths]
            padded = math.ceil(height / vector) * vector
            first, narrow = offset, offset + height * sum(wide)
            ones = narrow + padded * sum(n for n in widths if 2 * n <= vector)
            for (use, row), operand, n, of_row in zip(uses, operands, widths, wide, strict=True):
                place = (use.parameter, row, use.columns)
                if operand is None:
                    sides.append(Side(*place, ones, height, 1, 1, None))
                elif of_row:
                    sides.append(Side(*place, first, height, sum(wide), 1, n))
                    first += of_row
                else:
                    sides.append(Side(*place, narrow, height, 1, padded, n))
                    narrow += padded * n
            offset = ones + padded * any(u is None for u in operands)
        if len(every) > MOST_PRODUCTS:
            return None
        addresses = len(every), writer.numbers(groups), writer.numbers(segments)
        program = writer.program()
    except Beyond:
        return None
    return Uses(library, program, addresses, tuple(every), tuple(sides), offset)
