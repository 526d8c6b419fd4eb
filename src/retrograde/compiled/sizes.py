"""How large the gradients are that rows of adjoints make of the parameters, in one call."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.cells.plan import Plan
from retrograde.compiled.library import Library
from retrograde.compiled.passes import in_use
from retrograde.compiled.program import Beyond, Program, Writer

FEW_SAMPLES = 32
"""Up to this many samples products of them are cheap however narrow the operands are."""


@dataclass(frozen=True, eq=False)
class Uses:
    """What gradients follow from at neighbouring steps, as the library reads it.

    Attributes:
        library: what computes with it.
        program: the nodes whose adjoints they are multiples of.
        groups: how many adjoints side by side there are, and the addresses of what they consist of.
        operands: of all of them the products of samples, <u_b, u_b'>, [U, K, B, B].
        counts: the number of operands of each group.
    """

    library: Library
    program: Program
    groups: tuple[int, int, int]
    operands: Tensor
    counts: tuple[int, ...]


def uses_of(plan: Plan, like: Tensor) -> Uses | None:
    """The uses of a plan for the library; None where it is not in use or cannot run them.

    That is so where functions give gradients, and where a batch is large and wider than what the
    adjoints are multiplied by: to form the gradients costs less then.

    Args:
        plan: that of neighbouring steps, [K, B, ...].
        like: the states before them, [K, B, S].
    """
    library = in_use(like)
    if library is None or plan.functions:
        return None
    steps, batch, _ = like.shape
    groups, segments, operands, counts = list[int](), list[int](), list[Tensor](), list[int]()
    try:
        writer = Writer(plan.folded, like)
        for blocks, uses in plan.uses:
            some = plan.folded.segments(blocks)
            groups += (blocks.height, len(blocks.targets), len(some), len(uses))
            counts.append(len(uses))
            columns = 0
            for use, _ in uses:
                operand = None if use.diagonal else use.operand
                columns += 1 if operand is None else operand.shape[-1]
                operands.append(_products(operand, like))
            if batch > max(columns, FEW_SAMPLES):
                return None
            for each in some:
                segments += writer.segment(each, blocks.height)
        addresses = len(counts), writer.numbers(groups), writer.numbers(segments)
        program = writer.program()
    except Beyond:
        return None
    return Uses(library, program, addresses, torch.stack(operands), tuple(counts))


def squares(
    uses: Uses, first: int, values: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Squared norms of what rows make of each operand, and where the sums cancel too far.

    Args:
        uses: those of a whole chunk.
        first: the number of the earliest step in the chunk.
        values: the rows at neighbouring steps, [N, K, B, S]; those of a step next to each other.

    Returns:
        For each group [U, N, K], in float64, and booleans of the same shape.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = uses.library, uses.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    rows, steps = values.shape[:2]
    assert values.shape[2:] == (samples, size) and values.dtype == dtype and values.is_cpu
    assert 0 <= first and first + steps <= all_steps
    if not values[0, 0].is_contiguous():
        values = values.contiguous()
    found = torch.empty(len(uses.operands), rows, steps, dtype=torch.float64)
    cancels = torch.empty(found.shape, dtype=torch.bool)
    fields = (
        *(steps, samples, size, rows, first, all_steps),
        *library.threads,
        *(values.data_ptr(), *values.stride()[:2]),
        *(uses.operands.data_ptr(), found.data_ptr(), cancels.data_ptr()),
        *uses.groups,
        *program.fields,
    )
    if library.sizes[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for rows of this size")
    counts = list(uses.counts)
    return torch.split(found, counts), torch.split(cancels, counts)


def _products(operand: Tensor | None, like: Tensor) -> Tensor:
    """<u_b, u_b'> of each step in float64, [K, B, B]; ones for the operand of a bias."""
    steps, batch, _ = like.shape
    if operand is None:
        return like.new_ones((), dtype=torch.float64).expand(steps, batch, batch)
    operand = operand.double()
    return operand @ operand.mT
