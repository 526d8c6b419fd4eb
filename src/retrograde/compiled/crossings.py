"""The backward recursion of rows told apart by crossings, in one call of the library."""

import ctypes
from collections.abc import Mapping, Sequence

from torch import Tensor

from retrograde.compiled.program import given
from retrograde.compiled.scan import Rows, Steps, address, addresses, room


def pull_back(
    steps: Steps,
    first: int,
    start: Tensor,
    entries: Sequence[int],
    direct: Tensor | None,
    moves: Tensor,
    boundaries: Mapping[int, Tensor],
    back: bool,
) -> Rows:
    """Pull rows back through neighbouring steps, all classes of an entry one after the other.

    Args:
        steps: those of a whole chunk: what comes back without crossing, and behind it by crossing.
        first: the number of the earliest one in the chunk.
        start: the rows at the latest one, [E0 * C, B, S].
        entries: how many there are at each step, never fewer at an earlier one, [K].
        direct: what the loss gives at each step, [K, B, S]; None for nothing.
        moves: what crosses from each class to the next is multiplied by, [E, C - 1].
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        back: whether what comes back to the state before the earliest is asked for.

    Returns:
        The rows; their norms are the sizes of the largest entries, NaN if one is not finite.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = steps.library, steps.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    count, most, classes = len(entries), entries[0], moves.shape[1] + 1
    one = (samples, size)
    start = given(start, (entries[-1] * classes, *one), dtype)
    moves = given(moves, (most, classes - 1), dtype)
    direct = None if direct is None else given(direct, (count, *one), dtype)
    factors = {k: given(factor, one, dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps
    assert direct is not None or most == entries[-1]
    values = room(start, most * classes, count, *one)
    sizes = start.new_empty(most * classes, count)
    behind = room(start, most * classes, *one) if back else None
    numbers = (ctypes.c_int64 * count)(*entries)
    passed = addresses(factors, count)
    fields = (
        *(count, samples, size, classes, entries[-1], first),
        *library.threads,
        ctypes.addressof(numbers),
        *map(address, (start, direct)),
        0 if passed is None else ctypes.addressof(passed),
        *map(address, (moves, values, sizes, behind)),
        *program.fields,
    )
    if library.crossings[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for a pass of this size")
    return Rows(values, sizes, behind)
