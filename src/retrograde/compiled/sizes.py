"""How large the gradients are that rows of adjoints make of the parameters, and how much of a given
gradient is in them, in one call."""

import ctypes
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.compiled.program import plain
from retrograde.compiled.scan import address
from retrograde.compiled.uses import Uses


@dataclass(frozen=True, eq=False)
class Sizes:
    """What rows make of each operand, [U, N, K] in float64.

    Attributes:
        squares: the squared norms of it; None where they were not asked for.
        cancels: where their sums cancel too far to be trusted.
        inner: its products with a gradient; None without one.
    """

    squares: Tensor | None
    cancels: Tensor | None
    inner: Tensor | None


def gradients_of(uses: Uses, gradient: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """The rows of a gradient that belong to each operand: [P, M], or [P] for an operand of 1.

    Args:
        uses: those of a chunk.
        gradient: that of each parameter.
    """
    operands = [operand for some in uses.operands for operand in some]
    parts = []
    for side, operand in zip(uses.sides, operands, strict=True):
        whole = gradient[side.parameter]
        whole = whole.mT if side.columns else whole
        # Two biases may be two rows of one parameter.
        whole = whole.flatten() if operand is None else whole
        parts.append(whole[side.first : side.first + side.height])
    return tuple(parts)


def sizes_of(
    uses: Uses,
    first: int,
    values: Tensor,
    lags: Tensor | None = None,
    gradients: Sequence[Tensor] = (),
    squares: bool = True,
) -> Sizes:
    """How large what rows make of each operand is.

    Args:
        uses: those of a whole chunk.
        first: the number of the earliest step in the chunk.
        values: the rows at neighbouring steps, [N, K, B, S]; those of a step next to each other.
        lags: of the rows, negative where one has not entered yet and is zeros, [N, K]; None where
            all have.
        gradients: as `gradients_of` gives them; none for no products with them.
        squares: whether squared norms are asked for.

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
    if lags is not None:
        assert lags.shape == (rows, steps) and lags.dtype == torch.int64 and lags.is_cpu
        lags = lags.contiguous()

    def table(asked: bool, kind: torch.dtype = torch.float64) -> Tensor | None:
        return torch.zeros(len(uses.sides), rows, steps, dtype=kind) if asked else None

    found = Sizes(table(squares), table(squares, torch.bool), table(bool(gradients)))
    given = _array(number for each in _given(uses, gradients) for number in each)
    operands = _array(uses.all_operands)
    fields = (
        *(steps, samples, size, rows, first),
        *library.threads,
        *(values.data_ptr(), *values.stride()[:2], address(lags)),
        ctypes.addressof(given) if gradients else 0,
        *map(address, (found.squares, found.cancels, found.inner)),
        *uses.groups,
        ctypes.addressof(operands),
        *program.fields,
    )
    if library.sizes[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for rows of this size")
    return found


def _given(uses: Uses, gradients: Sequence[Tensor]) -> Iterator[tuple[int, ...]]:
    """`struct matrix` of csrc/recurrence.h for each of them."""
    for side, part in zip(uses.sides, gradients, strict=bool(gradients)):
        shape = (side.height,) if side.width is None else (side.height, side.width)
        assert part.shape == shape and plain(part, uses.program.dtype)
        yield part.data_ptr(), part.stride(0), 0 if side.width is None else part.stride(1)


def _array(values: Iterable[int]) -> "ctypes.Array[ctypes.c_int64]":
    listed = list(values)
    return (ctypes.c_int64 * max(1, len(listed)))(*listed)
