"""The backward recursion of rows told apart by crossings, in one call of the library."""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retrograde.compiled.buffers import room
from retrograde.compiled.program import given
from retrograde.compiled.scan import Steps, address, addresses


@dataclass(frozen=True, eq=False)
class Turn:
    """A step at which neighbouring entries become one, before any enters.

    Attributes:
        step: its number among the steps.
        sources: those that each entry is the sum of: where they begin, and the end of all.
        weights: what each of their rows is multiplied by, [A * C].
        units: 2**units is what each row is in units of up to the next turn, those of entries that
            come in between among them, [E * C].
        moves: what crosses from each class to the next is multiplied by, [E, C - 1].
    """

    step: int
    sources: Sequence[int]
    weights: Tensor
    units: Tensor
    moves: Tensor


@dataclass(frozen=True, eq=False)
class Binned:
    """What rows are summed by: bins, beside their classes.

    Attributes:
        count: how many bins there are.
        places: the bin of each entry at each step, those of a bin next to each other, [E, K].
        sums: takes the sums, [C * M, K, B, S].
    """

    count: int
    places: Tensor
    sums: Tensor


@dataclass(frozen=True, eq=False)
class Crossed:
    """What a pass through neighbouring steps gives.

    Attributes:
        sizes: of the largest entry of each row at each step, NaN if one is not finite, [E * C, K],
            E being the most entries that there are at any of them.
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
    turns: Sequence[Turn],
    entries: Sequence[int],
    direct: Tensor | None,
    boundaries: Mapping[int, Tensor],
    back: bool,
    binned: Binned | None,
) -> Crossed:
    """Pull rows back through neighbouring steps, all classes of an entry one after the other.

    Args:
        steps: those of a whole chunk: what comes back without crossing, and behind it by crossing.
        first: the number of the earliest one in the chunk.
        start: the rows that arrive at the latest one, [A * C, B, S].
        turns: what becomes of these, and later of all, the latest first; one alone without bins.
        entries: how many there are at each step, fewer than at the one after it at turns alone.
        direct: what the loss gives at each step, [K, B, S]; None for nothing.
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        back: whether what comes back to the state before the earliest is asked for.
        binned: what rows are summed by; None if they are asked for themselves.

    Raises:
        MemoryError: where there is not enough.
    """
    library, program = steps.library, steps.program
    (all_steps, samples, size), dtype = program.shape, program.dtype
    count, most, one = len(entries), max(entries), (samples, size)
    classes = turns[0].moves.shape[1] + 1
    start = given(start, (turns[0].sources[-1] * classes, *one), dtype)
    table = _Turns(turns, entries, classes, dtype)
    direct = None if direct is None else given(direct, (count, *one), dtype)
    factors = {k: given(factor, one, dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps
    assert direct is not None or not table.some_enter
    places = sum_units = None
    if binned is not None:
        places = given(binned.places, (most, count), torch.int64)
        assert 0 <= int(places.min()) and int(places.max()) < binned.count
        assert bool((places[1:] <= places[:-1]).all())
        sum_units = torch.empty(classes * binned.count, count, dtype=torch.int64)
    if binned is None:
        assert len(turns) == 1
        values = room(start, most * classes, count, *one)
    else:
        values = binned.sums
        assert values.shape == (classes * binned.count, count, *one)
        assert values[0].is_contiguous() and values.dtype == dtype and values.is_cpu
    sizes = start.new_empty(most * classes, count)
    behind = room(start, entries[0] * classes, *one) if back else None
    behind_sizes = start.new_empty(entries[0] * classes) if back else None
    passed = addresses(factors, count)
    fields = (
        *(count, samples, size, classes, first),
        *library.threads,
        *(ctypes.addressof(table.entries), most),
        *map(ctypes.addressof, (table.at, table.started)),
        *(table.arriving, ctypes.addressof(table.sources)),
        *map(address, (start, table.weights, direct)),
        0 if passed is None else ctypes.addressof(passed),
        *map(address, (table.moves, None if binned else values, sizes, behind, behind_sizes)),
        *((0, 0) if binned is None else (binned.count, values.stride(0))),
        *map(address, (places, table.units, values if binned else None, sum_units)),
        *program.fields,
    )
    if library.crossings[dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for a pass of this size")
    return Crossed(sizes, behind, behind_sizes, values, sum_units)


class _Turns:
    """Turns as the library reads them, one behind the other; see csrc/recurrence.h."""

    def __init__(
        self, turns: Sequence[Turn], entries: Sequence[int], classes: int, dtype: torch.dtype
    ):
        count, most = len(entries), max(entries)
        at, started, sources = [-1] * count, list[int](), list[int]()
        self.arriving = max(turn.sources[-1] for turn in turns)
        self.some_enter, until = False, count
        for turn in turns:
            begins, after = turn.sources, len(turn.sources) - 1
            assert all(one < other for one, other in zip(begins, begins[1:], strict=False))
            assert (turn.step == count - 1) if until == count else (0 <= turn.step < until)
            assert until == count or begins[-1] == entries[turn.step + 1]
            at[turn.step], until = len(started), turn.step
            started.append(after)
            sources += [*begins, *[0] * (self.arriving + 1 - len(begins))]
        for step in range(count - 1, -1, -1):
            before = started[at[step]] if at[step] >= 0 else entries[step + 1]
            assert before <= entries[step] <= before + 1
            self.some_enter |= before < entries[step]
        self.at = (ctypes.c_int64 * count)(*at)
        self.entries = (ctypes.c_int64 * count)(*entries)
        self.started = (ctypes.c_int64 * len(started))(*started)
        self.sources = (ctypes.c_int64 * len(sources))(*sources)
        shapes = (self.arriving * classes,), (most * classes,), (most, classes - 1)
        kinds = dtype, torch.int64, dtype
        every = zip(*((turn.weights, turn.units, turn.moves) for turn in turns), strict=True)
        self.weights, self.units, self.moves = (
            given(pad_sequence(some, True), (len(turns), *shape), kind)  # type: ignore[arg-type]
            for some, shape, kind in zip(every, shapes, kinds, strict=True)
        )
