"""The backward recursion of many rows in one call of the library, for any folded graph."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.cells.folding import Folded, Wanted
from retrograde.compiled.buffers import room
from retrograde.compiled.library import Library
from retrograde.compiled.passes import in_use
from retrograde.compiled.program import Beyond, Program, Writer, given

NOT_FINITE = 2
"""What the library answers where a row that is summed is not finite."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Neighbouring linearised steps, through which the library can pull rows back."""

    library: Library
    program: Program


def steps_of(folded: Folded, like: Tensor, *wanted: Wanted | None) -> Steps | None:
    """Linearised steps for the library; None where it is not in use or cannot run them.

    Args:
        folded: the graph of neighbouring steps, [K, B, ...].
        like: the states before them, [K, B, S].
        wanted: for each of several results, one behind the other, the routes that count; None for
            all of them.
    """
    library = in_use(like)
    if library is None:
        return None
    try:
        writer = Writer(folded, like)
        for number, routes in enumerate(wanted):
            writer.back(routes, number * like.shape[2])
        return Steps(library, writer.program())
    except Beyond:
        return None


@dataclass(frozen=True, eq=False)
class Rows:
    """What a pass through neighbouring steps gives; see `AbstractBackend.pull_back`."""

    values: Tensor
    norms: Tensor
    back: Tensor | None
    back_norms: Tensor | None = None
    exponents: Tensor | None = None


@dataclass(frozen=True, eq=False)
class RowSums:
    """What a pass that sums rows gives; see `AbstractBackend.sum_back`."""

    values: Tensor
    exponents: Tensor
    back: Tensor | None
    back_norms: Tensor | None
    back_exponents: Tensor | None


def pull_back(
    steps: Steps,
    first: int,
    start: Tensor,
    rows: Sequence[int],
    direct: Tensor | None,
    boundaries: Mapping[int, Tensor],
    back: bool,
    scales: Tensor | None,
    ranged: bool,
) -> Rows:
    """Pull rows back through neighbouring steps.

    Args:
        steps: those of a whole chunk.
        first: the number of the earliest one in the chunk.
        start: the rows at the latest one, [N0, B, S].
        rows: how many there are at each step, never fewer at an earlier one, [K].
        direct: what the loss gives at each step, [K, B, S]; None for nothing.
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        back: whether what comes back to the state before the earliest is asked for; it has one more
            row, without a value.
        scales: what each row at the latest step is multiplied by first, [N0]; None for nothing.
        ranged: whether rows are brought into range on the way, but for the newest one as long as
            the loss adds to it.

    Raises:
        MemoryError: where there is not enough.
    """
    count, most, one = len(rows), rows[0], steps.program.shape[1:]
    values = room(start, most, count, *one)
    norms = start.new_empty(most, count)
    behind = room(start, most + 1, *one) if back else None
    sizes = start.new_empty(most) if back else None
    exponents = torch.empty(most, count, dtype=torch.int64) if ranged else None
    results = (values, norms, behind, sizes, exponents)
    _run(steps, first, start, rows, direct, boundaries, scales, results)
    return Rows(values, norms, behind, sizes, exponents)


def sum_back(
    steps: Steps,
    first: int,
    start: Tensor,
    rows: Sequence[int],
    direct: Tensor | None,
    boundaries: Mapping[int, Tensor],
    back: bool,
    sums: int,
    places: Tensor,
    units: Tensor,
) -> RowSums | None:
    """The same, of which sums of rows are asked for; None where a row is not finite.

    Args:
        steps, first, start, rows, direct, boundaries, back: as in `pull_back`; all that the loss
            gives must be rows of their own.
        sums: how many there are.
        places: the number of the sum that each row belongs to at each step, -1 for none, [N, K].
        units: the exponent of each row, [N].

    Raises:
        MemoryError: where there is not enough.
    """
    count, most, one = len(rows), rows[0], steps.program.shape[1:]
    assert places.shape == (most, count) and units.shape == (most,)
    assert places.dtype == units.dtype == torch.int64
    assert -1 <= int(places.min()) and int(places.max()) < sums
    values = room(start, sums, count, *one)
    exponents = torch.empty(sums, count, dtype=torch.int64)
    behind = room(start, most + 1, *one) if back else None
    sizes = start.new_empty(most) if back else None
    units_back = torch.empty(most, dtype=torch.int64) if back else None
    results = (values, None, behind, sizes, exponents)
    of_sums = (places.contiguous(), units.contiguous(), units_back)
    if not _run(steps, first, start, rows, direct, boundaries, None, results, sums, of_sums):
        return None
    return RowSums(values, exponents, behind, sizes, units_back)


def _run(
    steps: Steps,
    first: int,
    start: Tensor,
    rows: Sequence[int],
    direct: Tensor | None,
    boundaries: Mapping[int, Tensor],
    scales: Tensor | None,
    results: Sequence[Tensor | None],
    sums: int = 0,
    of_sums: Sequence[Tensor | None] = (None, None, None),
) -> bool:
    """Call the library; whether all rows are finite, where they are summed.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = steps.library, steps.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    count, one = len(rows), (samples, size)
    start = given(start, (rows[-1], *one), dtype)
    direct = None if direct is None else given(direct, (count, *one), dtype)
    scales = None if scales is None else given(scales, (rows[-1],), dtype)
    factors = {k: given(factor, one, dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps
    assert direct is not None or rows[0] == rows[-1]
    numbers = (ctypes.c_int64 * count)(*rows)
    passed = addresses(factors, count)
    fields = (
        *(count, samples, size, rows[-1], first),
        *library.threads,
        ctypes.addressof(numbers),
        *map(address, (start, scales, direct)),
        0 if passed is None else ctypes.addressof(passed),
        *map(address, results),
        sums,
        *map(address, of_sums),
        *program.fields,
    )
    failed = library.scan[dtype]((ctypes.c_int64 * len(fields))(*fields))
    if failed == NOT_FINITE:
        return False
    if failed:
        raise MemoryError("there is not enough memory for a pass of this size")
    return True


def address(tensor: Tensor | None) -> int:
    """That of a tensor, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(factors: Mapping[int, Tensor], count: int) -> "ctypes.Array[ctypes.c_int64] | None":
    """Those of the factors before some of `count` steps, 0 before the others; None without any."""
    if not factors:
        return None
    return (ctypes.c_int64 * count)(
        *(factors[k].data_ptr() if k in factors else 0 for k in range(count))
    )
