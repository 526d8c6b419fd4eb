"""A folded graph as the library reads it: nodes, each a sum of products and of multiples of others.

The library knows no cell: it runs the same few sums and products as a program of torch operations
does (cells/program.py), read from the same folded graph. What only a function gives it cannot run.
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from retrograde.cells.folding import Base, Blocks, Folded, Form, Segment, Wanted

MOST_TERMS, MOST_NODES, MOST_PRODUCTS = 8, 64, 64
"""Numbers of csrc/step.h and csrc/recurrence.h."""

_NONE = (0, 0, 0, 0)  # a factor of 1


class Beyond(Exception):
    """The library cannot run this graph."""


@dataclass(frozen=True, eq=False)
class Program:
    """What is computed at each of some neighbouring steps.

    Attributes:
        fields: `struct program` of csrc/recurrence.h.
        held: what its addresses lead to.
        dtype: the data type of it all.
        shape: steps, samples and the size of the state.
    """

    fields: tuple[int, ...]
    held: tuple[object, ...]
    dtype: torch.dtype
    shape: tuple[int, int, int]


class Writer:
    """Writes a folded graph down as numbers, in the order in which it is computed.

    Args:
        folded: the graph of neighbouring steps, [K, B, ...].
        like: the states before them, [K, B, S].
    """

    def __init__(self, folded: Folded, like: Tensor):
        self._folded, self._dtype = folded, like.dtype
        steps, samples, size = like.shape
        self._shape = steps, samples, size
        self._held: list[object] = []
        self._registers = {"": 0}
        self._nodes: list[int] = []
        self._products: list[int] = []
        self._segments: list[int] = []
        self._terms: list[int] = []
        if folded.graph.state_size != size:
            raise Beyond

    def back(self, wanted: Wanted | None = None, at: int = 0) -> None:
        """All parts of the state before, in their order; zeros where nothing comes back to.

        Args:
            wanted: the routes that count; None for all of them.
            at: where the state before begins in what is written.
        """
        graph, end = self._folded.graph, 0
        for node, slot in sorted(graph.before.items(), key=lambda each: int(each[1].start)):
            if slot.start < end:
                raise Beyond  # the same part of the state by two names
            if slot.start > end:
                self._node(at + end, slot.start - end, (), {}, None)
            arriving = self._folded.arriving(node, wanted)
            if arriving.functions:
                raise Beyond
            form, products = arriving.form, arriving.products
            self._node(at + slot.start, slot.stop - slot.start, products, form, None)
            end = slot.stop

    def program(self) -> Program:
        """What was written."""
        counts = len(self._nodes) // 8, len(self._products) // 7
        if counts[0] > MOST_NODES or counts[1] > MOST_PRODUCTS:
            raise Beyond
        arrays = [
            self.numbers(each)
            for each in (self._nodes, self._products, self._segments, self._terms)
        ]
        return Program((*counts, *arrays), tuple(self._held), self._dtype, self._shape)

    def numbers(self, values: Iterable[int]) -> int:
        """The address of some numbers."""
        listed = list(values)
        array = (ctypes.c_int64 * max(1, len(listed)))(*listed)
        self._held.append(array)
        return ctypes.addressof(array)

    def segment(self, each: Segment, height: int) -> tuple[int, ...]:
        """Neighbouring blocks whose adjoints are multiples of one base."""
        count = each.last - each.first
        source = self._source(each.base)
        return (*source, each.first, count, *self._factor(each.factor, height, count))

    def operand(self, value: Tensor) -> Tensor:
        """What adjoints are multiplied by, [K, B, M], as the library reads it."""
        if value.shape[:-1] != self._shape[:2]:
            raise Beyond
        if value.stride(-1) != 1 and value.shape[-1] > 1:
            value = value.contiguous()
        self._hold(value)
        return value

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
                segments += self.segment(each, blocks.height)
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
        if not plain(tensor, self._dtype):
            raise Beyond
        self._held.append(tensor)


def plain(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether the library can read a tensor's memory as it is."""
    return (
        type(tensor) in (Tensor, Parameter)
        and tensor.is_cpu
        and tensor.dtype == dtype
        and tensor.layout is torch.strided
        and not (tensor.is_neg() or tensor._is_zerotensor())
    )


def given(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor as the library reads it, held against what it must be."""
    assert tensor.shape == torch.Size(shape) and tensor.dtype == dtype and tensor.is_cpu
    return tensor.contiguous()
