"""A graph folded: the adjoint of each node as a sum of multiples of few others.

Followed edge by edge, a graph costs a call for each edge. Folded, the adjoint of a node is a sum of
`base * factor`, and only those of few nodes are really formed, the bases: what weights lead back
to, and where several bases meet. Neighbouring targets of one base become one product with stacked
factors, all blocks of a weight one matrix product. Of the step of an LSTM five operations are left.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retrograde.cells.edges import Diagonal, Opaque, Use, Weight
from retrograde.cells.graph import Graph

Wanted = Callable[[str], bool]
"""Whether a route is wanted."""


@dataclass(frozen=True)
class Base:
    """Adjoint rows that others are multiples of: entries start .. stop-1 of a node's, or all of it.

    The node "" stands for the adjoint that is pulled back, that of the whole state after.
    """

    node: str
    start: int = 0
    stop: int | None = None

    def part(self, start: int, stop: int) -> "Base":
        return Base(self.node, self.start + start, self.start + stop)


Form = Mapping[Base, Tensor | None]
"""An adjoint as a sum of base * factor; None is a factor of 1."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of rows of a matrix side by side, and the targets that they lead to.

    Attributes:
        first, last: the rows of the matrix, from first to last - 1.
        targets: the nodes, one for each block.
        factors: what the adjoint of each is multiplied by before; None for nothing.
        matrix: the matrix; None where only the adjoints side by side are of interest.
    """

    first: int
    last: int
    targets: tuple[str, ...]
    factors: tuple[Tensor | None, ...]
    matrix: Tensor | None = None

    @property
    def height(self) -> int:
        """Rows of one block."""
        return (self.last - self.first) // len(self.targets)

    def takes(self, other: "Blocks") -> bool:
        """Whether another block continues this one."""
        return (
            self.last == other.first and self.matrix is other.matrix and self.height == other.height
        )

    @staticmethod
    def together(some: "Sequence[Blocks]") -> "Blocks":
        """Several that continue each other."""
        if len(some) == 1:
            return some[0]
        targets = tuple(target for one in some for target in one.targets)
        factors = tuple(factor for one in some for factor in one.factors)
        return Blocks(some[0].first, some[-1].last, targets, factors, some[0].matrix)


@dataclass(frozen=True, eq=False)
class Segment:
    """Blocks first .. last-1, whose adjoints are multiples of one base.

    The factor has shape [*L, G, H], [*L, H] for a single block; None is a factor of 1.
    """

    base: Base
    first: int
    last: int
    factor: Tensor | None
    shared: bool  # by all samples, so that it has no leading axes


@dataclass(frozen=True, eq=False)
class Arriving:
    """What makes up the adjoint of a node: multiples of bases, products with weights, functions.

    `functions` holds (edge, targets, part of the function's state or None for its x, label).
    """

    form: Form
    products: tuple[Blocks, ...]
    functions: tuple[tuple[Opaque, tuple[str, ...], slice | None, str], ...]


class Folded:
    """A graph, the adjoint of each of its nodes folded into multiples of few.

    Args:
        graph: the linearised step [B, ...], or many along a first axis [K, B, ...].
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._forms: dict[str, Form] = {}
        self._arriving: dict[str, Arriving] = {}
        self._segments: dict[object, tuple[Segment, ...]] = {}

    @cached_property
    def uses(self) -> list[tuple[Blocks, list[tuple[Use, int]]]]:
        """Adjoints side by side, and the uses that share them with the first row of each."""
        edges: dict[tuple[str, int], list[tuple[Use, str]]] = {}
        for edge in self.graph.edges:
            if not isinstance(edge, Opaque) and edge.use is not None and self.form(edge.target):
                operand = None if edge.use.diagonal else edge.use.operand
                edges.setdefault((edge.use.parameter, id(operand)), []).append(
                    (edge.use, edge.target)
                )
        shared: dict[object, tuple[Blocks, list[tuple[Use, int]]]] = {}
        for some in edges.values():
            use = some[0][0]
            blocks = _joined(
                Blocks(u.rows.start, u.rows.stop, (target,), (u.operand if u.diagonal else None,))
                for u, target in some
            )
            for block in blocks:
                key = (block.targets, tuple(map(id, block.factors)))
                shared.setdefault(key, (block, []))[1].append((use, block.first))
        return list(shared.values())

    @cached_property
    def functions(self) -> list[Opaque]:
        """The edges whose gradients a function forms."""
        return [edge for edge in self.graph.edges if isinstance(edge, Opaque)]

    def arriving(self, node: str, wanted: Wanted | None = None) -> Arriving:
        """What edges bring back to a node, before it is scaled."""
        if wanted is None and node in self._arriving:
            return self._arriving[node]
        form: dict[Base, Tensor | None] = {}
        if node in self.graph.after:
            slot = self.graph.after[node]
            form[Base("", slot.start, slot.stop)] = None
        weights: list[Weight] = []
        functions: list[tuple[Opaque, tuple[str, ...], slice | None, str]] = []
        for edge in self.graph.leaving.get(node, ()):
            if isinstance(edge, Opaque):
                if node == edge.reads:
                    functions.append((edge, tuple(edge.targets), None, ""))
                    continue
                functions += [
                    (edge, targets, edge.sources[node], label)
                    for targets, sources, label in edge.groups(wanted)
                    if node in sources
                ]
            elif wanted is None or wanted(edge.route):
                if isinstance(edge, Weight):
                    weights.append(edge)
                else:
                    self._through(edge, form)
        products = _joined(
            Blocks(edge.rows.start, edge.rows.stop, (edge.target,), (edge.scale,), edge.matrix)
            for edge in weights
            if self.form(edge.target)
        )
        found = Arriving(form, tuple(products), tuple(functions))
        if wanted is None:
            self._arriving[node] = found
        return found

    def form(self, node: str) -> Form:
        """The adjoint of a node in terms of bases; itself one if several things make it up."""
        if node not in self._forms:
            arriving, scale = self.arriving(node), self.graph.scales.get(node)
            if arriving.products or arriving.functions or len(arriving.form) > 1:
                self._forms[node] = {Base(node): None}
            else:
                self._forms[node] = {b: _times(f, scale) for b, f in arriving.form.items()}
        return self._forms[node]

    def _through(self, edge: Diagonal, form: dict[Base, Tensor | None]) -> None:
        """Add what comes back along an edge."""
        for base, factor in self.form(edge.target).items():
            if edge.at is not None:
                base = base.part(edge.at.start, edge.at.stop)
                if factor is not None and factor.shape[-1] > 1:
                    factor = factor[..., edge.at.start : edge.at.stop]
            more = _times(factor, edge.factor)
            if base in form:
                before = form[base]
                more = (1 if before is None else before) + (self._one if more is None else more)
            form[base] = more

    @cached_property
    def _one(self) -> Tensor:
        edges = self.graph.edges
        return next(edge.matrix for edge in edges if isinstance(edge, Weight)).new_ones(1)

    def segments(self, blocks: Blocks) -> tuple[Segment, ...]:
        """The adjoints of the targets side by side, as few products as possible."""
        key = (blocks.targets, tuple(map(id, blocks.factors)))
        if key not in self._segments:
            runs: list[tuple[Base, list[Tensor | None]]] = []
            for target, scale in zip(blocks.targets, blocks.factors, strict=True):
                ((base, factor),) = self.form(target).items()
                if not runs or runs[-1][0] != base:
                    runs.append((base, []))
                runs[-1][1].append(_times(factor, scale))
            found, first = [], 0
            for base, factors in runs:
                last = first + len(factors)
                found.append(Segment(base, first, last, *self._stacked(factors, blocks.height)))
                first = last
            self._segments[key] = tuple(found)
        return self._segments[key]

    def _stacked(self, factors: Sequence[Tensor | None], height: int) -> tuple[Tensor | None, bool]:
        """Factors of several blocks as one, and whether all samples share it."""
        given = [self._one if factor is None else factor for factor in factors]
        if len(factors) == 1:
            return factors[0], given[0].ndim == 1
        leading = max((factor.shape[:-1] for factor in given), key=len)
        return torch.stack([f.expand(*leading, height) for f in given], -2), not leading


def _times(factor: Tensor | None, other: Tensor | None) -> Tensor | None:
    if factor is None or other is None:
        return other if factor is None else factor
    return factor * other


def _joined(blocks: Iterable[Blocks]) -> list[Blocks]:
    """Blocks, those that continue each other as one."""
    found: list[list[Blocks]] = []
    for one in sorted(blocks, key=lambda block: block.first):
        for run in found:
            if run[-1].takes(one):
                run.append(one)
                break
        else:
            found.append([one])
    return [Blocks.together(run) for run in found]
