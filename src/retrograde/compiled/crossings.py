"""The backward recursion of rows told apart by crossings, in one call of the library."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.compiled.buffers import room
from retrograde.compiled.program import given
from retrograde.compiled.scan import Steps, address, addresses


@dataclass(frozen=True, eq=False)
class Binned:
    """What rows are summed by: bins, beside their classes.

    Attributes:
        count: how many bins there are.
        places: the bin of each entry at each step, those of a bin next to each other, [E, K].
        units: 2**units is what each row is in units of, [E * C].
        sums: takes the sums, [C * M, K, B, S].
    """

    count: int
    places: Tensor
    units: Tensor
    sums: Tensor


@dataclass(frozen=True, eq=False)
class Crossed:
    """What a pass through neighbouring steps gives.

    Attributes:
        sizes: of the largest entry of each row at each step, NaN if one is not finite, [E * C, K].
        back: what comes back to the state before the earliest step, if it was asked for.
        back_sizes: the sizes of these.
        values: the rows, [E * C, K, B, S]; or their sums by class and bin, [C * M, K, B, S].
        units: of these sums, the exponent of nothing for one without rows, [C * M, K].
    """

    sizes: Tensor
    back: Tensor | None
    back_sizes: Tensor | None
    values: Tensor
    units: Tensor | None


def sums_pay(steps: Steps) -> bool:
    """Whether rows are summed while they are at hand: a bin is one thread's, of some samples."""
    return steps.library.threads[0] <= steps.program.shape[1]


def pull_back(
    steps: Steps,
    first: int,
    start: Tensor,
    weights: Tensor,
    sources: Sequence[int],
    entries: Sequence[int],
    direct: Tensor | None,
    moves: Tensor,
    boundaries: Mapping[int, Tensor],
    back: bool,
    binned: Binned | None,
) -> Crossed:
    """Pull rows back through neighbouring steps, all classes of an entry one after the other.

    Args:
        steps: those of a whole chunk: what comes back without crossing, and behind it by crossing.
        first: the number of the earliest one in the chunk.
        start: the rows that arrive at the latest one, [A * C, B, S].
        weights: what each of them is multiplied by, [A * C].
        sources: those that each entry there is the sum of: where they begin, and the end of all.
        entries: how many there are at each step, never fewer at an earlier one, [K].
        direct: what the loss gives at each step, [K, B, S]; None for nothing.
        moves: what crosses from each class to the next is multiplied by, [E, C - 1].
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        back: whether what comes back to the state before the earliest is asked for.
        binned: what rows are summed by; None if they are asked for themselves.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = steps.library, steps.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    count, most, classes = len(entries), entries[0], moves.shape[1] + 1
    one, started = (samples, size), len(sources) - 1
    arriving = sources[-1] * classes
    start = given(start, (arriving, *one), dtype)
    weights = given(weights, (arriving,), dtype)
    moves = given(moves, (most, classes - 1), dtype)
    direct = None if direct is None else given(direct, (count, *one), dtype)
    factors = {k: given(factor, one, dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps and started <= entries[-1]
    assert all(one < other for one, other in zip(sources, sources[1:], strict=False))
    assert direct is not None or most == started
    places = units = sum_units = None
    if binned is not None:
        places = given(binned.places, (most, count), torch.int64)
        units = given(binned.units, (most * classes,), torch.int64)
        assert 0 <= int(places.min()) and int(places.max()) < binned.count
        assert bool((places[1:] <= places[:-1]).all())
        sum_units = torch.empty(classes * binned.count, count, dtype=torch.int64)
    if binned is None:
        values = room(start, most * classes, count, *one)
    else:
        values = binned.sums
        assert values.shape == (classes * binned.count, count, *one)
        assert values[0].is_contiguous() and values.dtype == dtype and values.is_cpu
    sizes = start.new_empty(most * classes, count)
    behind = room(start, most * classes, *one) if back else None
    behind_sizes = start.new_empty(most * classes) if back else None
    numbers, begins = (ctypes.c_int64 * count)(*entries), (ctypes.c_int64 * (started + 1))(*sources)
    passed = addresses(factors, count)
    fields = (
        *(count, samples, size, classes, started, first),
        *library.threads,
        *map(ctypes.addressof, (numbers, begins)),
        *map(address, (start, weights, direct)),
        0 if passed is None else ctypes.addressof(passed),
        *map(address, (moves, None if binned else values, sizes, behind, behind_sizes)),
        *((0, 0) if binned is None else (binned.count, values.stride(0))),
        *map(address, (places, units, values if binned else None, sum_units)),
        *program.fields,
    )
    if library.crossings[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for a pass of this size")
    return Crossed(sizes, behind, behind_sizes, values, sum_units)
