"""The backward recursion of many rows in one call of the library, for any folded graph.

The library knows no cell: it runs the same few sums and products as a program (cells/program.py)
does, read from the same folded graph. What only a function gives it cannot run.
"""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from retrograde.cells.folding import Base, Blocks, Folded, Form
from retrograde.compiled.library import Library
from retrograde.compiled.passes import in_use

MOST_TERMS, MOST_NODES, MOST_PRODUCTS = 8, 64, 64
"""Numbers of csrc/scan.h and csrc/recurrence.h."""

_NONE = (0, 0, 0, 0)  # a factor of 1


class Beyond(Exception):
    """The library cannot run this graph."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Neighbouring linearised steps as the library reads them.

    Attributes:
        library: what runs them.
        nodes, products, segments, terms: the structs of csrc/recurrence.h, their fields in order.
        counts: how many nodes and products there are.
        held: what their addresses lead to.
        dtype: the data type of it all.
        shape: steps, samples and the size of the state.
    """

    library: Library
    nodes: ctypes.Array[ctypes.c_int64]
    products: ctypes.Array[ctypes.c_int64]
    segments: ctypes.Array[ctypes.c_int64]
    terms: ctypes.Array[ctypes.c_int64]
    counts: tuple[int, int]
    held: tuple[Tensor, ...]
    dtype: torch.dtype
    shape: tuple[int, int, int]


def steps_of(folded: Folded, like: Tensor) -> Steps | None:
    """Linearised steps for the library; None where it is not in use or cannot run them.

    Args:
        folded: the graph of neighbouring steps, [K, B, ...].
        like: the states before them, [K, B, S].
    """
    found = in_use(like)
    if found is None:
        return None
    try:
        return _Writer(folded, like).steps(found)
    except Beyond:
        return None


@dataclass(frozen=True, eq=False)
class Rows:
    """What a pass through neighbouring steps gives; see `AbstractBackend.pull_back`."""

    values: Tensor
    norms: Tensor
    back: Tensor | None


def pull_back(
    steps: Steps,
    first: int,
    start: Tensor,
    rows: Sequence[int],
    given: Tensor | None,
    boundaries: Mapping[int, Tensor],
    back: bool,
) -> Rows:
    """Pull rows back through neighbouring steps.

    Args:
        steps: those of a whole chunk.
        first: the number of the earliest one in the chunk.
        start: the rows at the latest one, [N0, B, S].
        rows: how many there are at each step, never fewer at an earlier one, [K].
        given: what the loss gives at each step, [K, B, S]; None for nothing.
        boundaries: what the adjoint that passes to the state before a step is multiplied by, [B, S]
            each, by the number of the step among these.
        back: whether what comes back to the state before the earliest is asked for; it has one more
            row, without a value.

    Raises:
        MemoryError: where there is not enough.
    """
    library, (all_steps, samples, size) = steps.library, steps.shape
    count, most = len(rows), rows[0]
    one = (samples, size)
    start = _given(start, (rows[-1], *one), steps.dtype)
    given = None if given is None else _given(given, (count, *one), steps.dtype)
    factors = {k: _given(factor, one, steps.dtype) for k, factor in boundaries.items()}
    assert 0 <= first and first + count <= all_steps
    assert given is not None or most == rows[-1]
    values = start.new_empty(most, count, *one)
    norms = start.new_empty(most, count)
    behind = start.new_empty(most + 1, *one) if back else None
    numbers = (ctypes.c_int64 * count)(*rows)
    passed = None
    if factors:
        at = [factors[k].data_ptr() if k in factors else 0 for k in range(count)]
        passed = (ctypes.c_int64 * count)(*at)
    parallel = library.parallel
    fields = (
        *(count, samples, size, rows[-1], first),
        *(torch.get_num_threads() if parallel else 1, parallel),
        ctypes.addressof(numbers),
        *(start.data_ptr(), 0 if given is None else given.data_ptr()),
        0 if passed is None else ctypes.addressof(passed),
        *(values.data_ptr(), norms.data_ptr(), 0 if behind is None else behind.data_ptr()),
        *steps.counts,
        *map(ctypes.addressof, (steps.nodes, steps.products, steps.segments, steps.terms)),
    )
    if library.scan[steps.dtype]((ctypes.c_int64 * len(fields))(*fields)):
        raise MemoryError("there is not enough memory for a pass of this size")
    return Rows(values, norms, behind)


def _plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.layout is torch.strided
        and not (tensor.is_neg() or tensor._is_zerotensor())
    )


def _given(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor as the library reads it, held against what it must be."""
    assert tensor.shape == torch.Size(shape) and tensor.dtype == dtype and tensor.is_cpu
    return tensor.contiguous()


class _Writer:
    """Writes a folded graph down as numbers, in the order in which it is computed."""

    def __init__(self, folded: Folded, like: Tensor):
        self._folded, self._dtype = folded, like.dtype
        steps, samples, size = like.shape
        self._shape = steps, samples, size
        self._held: list[Tensor] = []
        self._registers = {"": 0}
        self._nodes: list[int] = []
        self._products: list[int] = []
        self._segments: list[int] = []
        self._terms: list[int] = []

    def steps(self, library: Library) -> Steps:
        graph = self._folded.graph
        if graph.state_size != self._shape[2]:
            raise Beyond
        end = 0
        for node, slot in sorted(graph.before.items(), key=lambda each: int(each[1].start)):
            if slot.start < end:
                raise Beyond  # the same part of the state by two names
            if slot.start > end:
                self._node(end, slot.start - end, (), {}, None)
            arriving = self._folded.arriving(node)
            if arriving.functions:
                raise Beyond
            self._node(slot.start, slot.stop - slot.start, arriving.products, arriving.form, None)
            end = slot.stop
        counts = len(self._nodes) // 8, len(self._products) // 7
        if counts[0] > MOST_NODES or counts[1] > MOST_PRODUCTS:
            raise Beyond
        return Steps(
            library,
            _numbers(self._nodes),
            _numbers(self._products),
            _numbers(self._segments),
            _numbers(self._terms),
            counts,
            tuple(self._held),
            self._dtype,
            self._shape,
        )

    def _node(
        self,
        slot: int,
        width: int,
        products: Sequence[Blocks],
        form: Form,
        scale: Tensor | None,
    ) -> None:
        """What stands in it is written before it."""
        if len(form) > MOST_TERMS:
            raise Beyond
        terms, segments, matrices = list[int](), list[int](), list[int]()
        for base, factor in form.items():
            terms += (*self._source(base), *self._factor(factor, width))
        for blocks in products:
            matrix = blocks.matrix
            assert matrix is not None
            self._hold(matrix)
            part = matrix[blocks.first : blocks.last]
            if part.shape[1] != width:
                raise Beyond
            found = self._folded.segments(blocks)
            matrices += (part.data_ptr(), *part.stride(), len(blocks.targets), blocks.height)
            matrices += (width, len(found))
            for each in found:
                count = each.last - each.first
                segments += (*self._source(each.base), each.first, count)
                segments += self._factor(each.factor, blocks.height, count)
        self._nodes += (slot, width, len(products), len(form), *self._factor(scale, width))
        self._terms += terms
        self._segments += segments
        self._products += matrices

    def _source(self, base: Base) -> tuple[int, int]:
        """The number of a register and where in it a base begins."""
        if base.node not in self._registers:
            graph = self._folded.graph
            arriving = self._folded.arriving(base.node)
            if arriving.functions:
                raise Beyond
            width = self._width(base.node)
            self._node(-1, width, arriving.products, arriving.form, graph.scales.get(base.node))
            self._registers[base.node] = len(self._registers)
        return self._registers[base.node], base.start

    def _width(self, node: str) -> int:
        """How many numbers a node has."""
        graph, arriving = self._folded.graph, self._folded.arriving(node)
        if node in graph.after:
            return int(graph.after[node].stop - graph.after[node].start)
        for blocks in arriving.products:
            if blocks.matrix is not None:
                return int(blocks.matrix.shape[1])
        sizes = [
            factor.shape[-1]
            if factor is not None and factor.shape[-1] > 1
            else 0
            if base.stop is None
            else base.stop - base.start
            for base, factor in arriving.form.items()
        ]
        if not max(sizes):
            raise Beyond
        return max(sizes)

    def _factor(self, value: Tensor | None, width: int, blocks: int = 1) -> tuple[int, ...]:
        """A factor of every step and sample, or one that all share."""
        if value is None:
            return _NONE
        steps, samples, _ = self._shape
        wide = (width,) if blocks == 1 else (blocks, width)
        leading = value.ndim - len(wide)
        if leading not in (0, 2):
            raise Beyond
        whole = value.expand(*((steps, samples) if leading else ()), *wide)
        if whole.stride(-1) != 1 and width > 1:
            whole = whole.contiguous()
        self._hold(whole)
        step, sample = whole.stride()[:2] if leading else (0, 0)
        return whole.data_ptr(), step, sample, whole.stride(-2) if blocks > 1 else 0

    def _hold(self, tensor: Tensor) -> None:
        if not _plain(tensor, self._dtype):
            raise Beyond
        self._held.append(tensor)


def _numbers(values: Iterable[int]) -> ctypes.Array[ctypes.c_int64]:
    listed = list(values)
    return (ctypes.c_int64 * max(1, len(listed)))(*listed)
