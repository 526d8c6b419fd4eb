"""What comes back from steps by each route and bin of lags, in one call of the library."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from retrograde.compiled.program import given
from retrograde.compiled.scan import Steps, address, addresses


def pull_back(
    steps: Steps,
    first: int,
    values: Tensor,
    places: Tensor,
    exponents: Tensor,
    bins: int,
    boundaries: Mapping[int, Tensor],
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Pull rows back through neighbouring steps, each by one step, those that share a bin as one.

    Args:
        steps: those of a whole chunk: what comes back by each route, one behind the other.
        first: the number of the earliest step in the chunk.
        values: the rows, [N, K, B, S].
        places: the bin of each at the step before, never a smaller one than of the row before it,
            [N, K].
        exponents: of each row, that of nothing for one of zeros, [N, K].
        bins: how many there are.
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        out: where what comes back from each step but the first is written, at the place of the step
            before it, [R * M, K, B, S]; the last place is left as it is.

    Returns:
        What comes back from the first step, [R * M, B, S], and the exponents of what comes back
        from each, that of nothing where nothing does and nothing is written, [R * M, K].

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = steps.library, steps.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    rows, count = values.shape[:2]
    assert values.shape[2:] == (samples, size) and values.dtype == dtype and values.is_cpu
    if not values[0, 0].is_contiguous():
        values = values.contiguous()
    places = given(places, (rows, count), torch.int64)
    exponents = given(exponents, (rows, count), torch.int64)
    factors = {k: given(factor, (samples, size), dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps
    assert 0 <= int(places.min()) and int(places.max()) < bins
    assert bool((places[1:] >= places[:-1]).all())
    assert out.shape[1:] == (count, samples, size) and not out.shape[0] % bins
    assert out.is_contiguous() and out.dtype == dtype and out.is_cpu
    last = out.new_zeros(len(out), samples, size)
    units = torch.empty(len(out), count, dtype=torch.int64)
    passed = addresses(factors, count)
    fields = (
        *(count, samples, size, rows, first, bins, len(out) // bins),
        *library.threads,
        *(values.data_ptr(), *values.stride()[:2]),
        *map(address, (places, exponents)),
        0 if passed is None else ctypes.addressof(passed),
        *map(address, (out, last, units)),
        *program.fields,
    )
    if library.routes[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for a pass of this size")
    return last, units
