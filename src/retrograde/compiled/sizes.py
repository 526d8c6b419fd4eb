"""How large the gradients are that rows of adjoints make of the parameters, and how much of a given
gradient is in them, in one call."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.cells.precision import no_autocast
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


def images_of(uses: Uses, gradient: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """G u for each operand u of a chunk: [K, B, P], or [P] where it is the same for all.

    Args:
        uses: those of the chunk.
        gradient: G of each parameter.
    """
    operands = [operand for some in uses.operands for operand in some]
    images = []
    with no_autocast(torch.device("cpu")):
        for side, operand in zip(uses.sides, operands, strict=True):
            whole = gradient[side.parameter]
            whole = whole.mT if side.columns else whole
            rows = slice(side.first, side.first + side.height)
            # Two biases may be two rows of one parameter.
            image = whole.flatten()[rows] if operand is None else operand @ whole[rows].mT
            images.append(image.contiguous())
    return tuple(images)


def sizes_of(
    uses: Uses, first: int, values: Tensor, images: Sequence[Tensor] = (), squares: bool = True
) -> Sizes:
    """How large what rows make of each operand is.

    Args:
        uses: those of a whole chunk, with `products` if squares are asked for.
        first: the number of the earliest step in the chunk.
        values: the rows at neighbouring steps, [N, K, B, S]; those of a step next to each other.
        images: of the gradient, as `images_of` gives them; none for no products with it.
        squares: whether squared norms are asked for.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program, products = uses.library, uses.program, uses.products if squares else None
    (all_steps, samples, size), dtype = program.shape, program.dtype
    rows, steps = values.shape[:2]
    assert values.shape[2:] == (samples, size) and values.dtype == dtype and values.is_cpu
    assert 0 <= first and first + steps <= all_steps and (products is not None) == squares
    if not values[0, 0].is_contiguous():
        values = values.contiguous()

    def table(asked: bool, kind: torch.dtype = torch.float64) -> Tensor | None:
        return torch.empty(len(uses.sides), rows, steps, dtype=kind) if asked else None

    found = Sizes(table(squares), table(squares, torch.bool), table(bool(images)))
    numbers = [number for each in _given(uses, images) for number in each]
    given = (ctypes.c_int64 * max(1, len(numbers)))(*numbers)
    fields = (
        *(steps, samples, size, rows, first, all_steps),
        *library.threads,
        *(values.data_ptr(), *values.stride()[:2]),
        *map(address, (products, found.squares, found.cancels)),
        *(ctypes.addressof(given) if images else 0, address(found.inner)),
        *uses.groups,
        *program.fields,
    )
    if library.sizes[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for rows of this size")
    return found


def _given(uses: Uses, images: Sequence[Tensor]) -> Iterator[tuple[int, ...]]:
    """`struct operand` of csrc/recurrence.h for each image."""
    steps, samples, _ = uses.program.shape
    for side, image in zip(uses.sides, images, strict=bool(images)):
        every = image.ndim > 1
        shape = (steps, samples, side.height) if every else (side.height,)
        assert image.shape == shape and image.is_contiguous() and plain(image, uses.program.dtype)
        yield image.data_ptr(), *(image.stride()[:2] if every else (0, 0)), side.height
