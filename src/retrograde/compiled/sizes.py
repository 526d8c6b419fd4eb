"""How large the gradients are that rows of adjoints make of the parameters, in one call."""

import ctypes

import torch
from torch import Tensor

from retrograde.compiled.uses import Uses


def squares(
    uses: Uses, first: int, values: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Squared norms of what rows make of each operand, and where the sums cancel too far.

    Args:
        uses: those of a whole chunk, with `products`.
        first: the number of the earliest step in the chunk.
        values: the rows at neighbouring steps, [N, K, B, S]; those of a step next to each other.

    Returns:
        For each group [U, N, K], in float64, and booleans of the same shape.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program, products = uses.library, uses.program, uses.products
    (all_steps, samples, size), dtype = program.shape, program.dtype
    rows, steps = values.shape[:2]
    assert values.shape[2:] == (samples, size) and values.dtype == dtype and values.is_cpu
    assert 0 <= first and first + steps <= all_steps and products is not None
    if not values[0, 0].is_contiguous():
        values = values.contiguous()
    found = torch.empty(len(products), rows, steps, dtype=torch.float64)
    cancels = torch.empty(found.shape, dtype=torch.bool)
    fields = (
        *(steps, samples, size, rows, first, all_steps),
        *library.threads,
        *(values.data_ptr(), *values.stride()[:2]),
        *(products.data_ptr(), found.data_ptr(), cancels.data_ptr()),
        *uses.groups,
        *program.fields,
    )
    if library.sizes[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for rows of this size")
    counts = [len(operands) for operands in uses.operands]
    return torch.split(found, counts), torch.split(cancels, counts)
