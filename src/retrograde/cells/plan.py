"""A graph folded into what is done at every step of a recursion: few operations on many rows.

Followed edge by edge, a graph costs a call for each edge. A plan folds it, once for many steps: the
adjoint of a node is a sum of `base * factor`, and only those of few nodes are really formed, the
bases: what weights lead back to, and where several bases meet. Neighbouring targets of one base
become one product with stacked factors, all blocks of a weight one matrix product. Of the step of
an LSTM five operations are left.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.graph import AbstractDerivative, Diagonal, Graph, Opaque, Use, Weight
from retrograde.cells.precision import no_autocast

FEW_ROWS = 16
"""Above this many rows forming the Jacobian of each sample is cheaper."""

TOGETHER = 2**20
"""Jacobians of all steps are formed together up to this many numbers, else step by step."""

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

    def plus(self, other: "Blocks") -> "Blocks":
        """Both side by side."""
        targets, factors = self.targets + other.targets, self.factors + other.factors
        return Blocks(self.first, other.last, targets, factors, self.matrix)


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


class Plan:
    """The folded form of a graph, and the programs that compute adjoints from it.

    Args:
        graph: the linearised step [B, ...], or many along a first axis [K, B, ...].
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self._forms: dict[str, Form] = {}
        self._arriving: dict[str, Arriving] = {}
        self._segments: dict[object, tuple[Segment, ...]] = {}
        self._by_crossing: Program | None = None

    @cached_property
    def back(self) -> "Program":
        """From the adjoint of s_k to that of s_{k-1}."""
        return self.split(None)

    @cached_property
    def by_route(self) -> "Program":
        """The same along each route alone."""
        return self.split(*(route.__eq__ for route in self.graph.routes))

    def by_crossing(self, recurrent: frozenset[str]) -> "Program":
        """Twice the same: along the routes that cross no recurrent weights, and along these."""
        if self._by_crossing is None:
            self._by_crossing = self.split(lambda r: r not in recurrent, recurrent.__contains__)
        return self._by_crossing

    def split(self, *wanted: Wanted | None) -> "Program":
        """The same, for each of several choices, along the chosen routes alone."""
        program = Program(self)
        for routes in wanted:
            program.give(self.graph.before, self.graph.state_size, routes)
        return program

    @cached_property
    def to_input(self) -> "Program":
        """From the adjoint of s_k to that of x_k."""
        program = Program(self)
        program.give(self.graph.reads, self.graph.input_size, None)
        return program

    @cached_property
    def to_uses(self) -> "Program":
        """From the adjoint of s_k to those that gradients follow from, and their operands."""
        program = Program(self)
        for blocks, uses in self.uses:
            program.keep_side_by_side(blocks, [use.operand for use, _ in uses if not use.diagonal])
        for edge in self.functions:
            program.keep_function(edge)
        return program

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
    found: list[Blocks] = []
    for one in sorted(blocks, key=lambda block: block.first):
        for number, before in enumerate(found):
            if before.takes(one):
                found[number] = before.plus(one)
                break
        else:
            found.append(one)
    return found


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """What a program computes with at one step, or at several as if they were samples of one.

    `step` is the number of the step among those of the graph, None for several together.
    """

    tensors: Sequence[Tensor]
    functions: Sequence[AbstractDerivative]
    step: int | None = None


Register = int
Registers = list[Any]
"""Tensors; None where nothing has been computed yet."""
Operation = Callable[[Registers, Frame], None]
Product = Callable[[Registers, Frame, Tensor | None, bool], Tensor]


class Program:
    """Operations on registers that compute adjoints; register 0 is what is pulled back, [N, B, S].

    Attributes:
        slots: for each result, the parts of it that anything comes back to.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        self._operations: list[Operation] = []
        self._size = 1
        self._of_base: dict[Base, Register] = {Base("", 0, plan.graph.state_size): 0}
        self._of_function: dict[object, Register] = {}
        self._side_by_side: dict[object, Callable[[Registers, Frame], Tensor]] = {}
        self._tensors: list[tuple[Tensor, bool]] = []
        self._number_of: dict[int, int] = {}
        self._functions: list[Opaque] = []
        self._views: list[tuple[Register, int, slice]] = []
        self._widths: list[int] = []
        self._kept: list[tuple[Callable[[Registers, Frame], Tensor], list[int | None]]] = []
        self._kept_functions: list[tuple[Register, int]] = []
        self._frames: dict[int, Frame] = {}
        self._columns: list[Sequence[Tensor] | None] = []
        self._jacobians: dict[tuple[int, int], list[Tensor]] = {}
        self.slots: list[list[slice]] = []

    # --- what to compute: said once, before anything runs ---

    def give(self, nodes: Mapping[str, slice], width: int, wanted: Wanted | None) -> None:
        """A result that holds what comes back to some nodes along the wanted routes."""
        filled = []
        for node, slot in nodes.items():
            arriving = self._plan.arriving(node, wanted)
            if arriving.form or arriving.products or arriving.functions:
                view = self._new()
                self._views.append((view, len(self._widths), slot))
                self._write(arriving, view)
                filled.append(slot)
        self._widths.append(width)
        self.slots.append(filled)

    def keep_side_by_side(self, blocks: Blocks, operands: Sequence[Tensor | None]) -> None:
        """The adjoints of some targets side by side, [N, B, P], and what they are multiplied by."""
        numbers = [None if each is None else self._tensor(each) for each in operands]
        self._kept.append((self._adjoints(blocks), numbers))

    def keep_function(self, edge: Opaque) -> None:
        """The adjoint of the state of a function, and its derivative."""
        number = self._number_of_function(edge)
        self._kept_functions.append((self._rows_of(edge, tuple(edge.targets)), number))

    def _new(self) -> Register:
        self._size += 1
        return self._size - 1

    def _tensor(self, value: Tensor, shared: bool | None = None) -> int:
        """The number of a tensor that the operations use."""
        if id(value) not in self._number_of:
            self._number_of[id(value)] = len(self._tensors)
            self._tensors.append((value, value.ndim == 1 if shared is None else shared))
        return self._number_of[id(value)]

    def _factor(self, value: Tensor | None) -> int | None:
        return None if value is None else self._tensor(value)

    def _number_of_function(self, edge: Opaque) -> int:
        if edge not in self._functions:
            self._functions.append(edge)
        return self._functions.index(edge)

    def _base(self, base: Base) -> Register:
        """The register of a base, which the operations so far have computed."""
        if base not in self._of_base:
            if base.node and base.stop is None:
                self._of_base[base] = self._formed(base.node)
            else:
                whole = (
                    Base("", 0, self._plan.graph.state_size) if not base.node else Base(base.node)
                )
                source, register, part = (
                    self._base(whole),
                    self._new(),
                    slice(base.start, base.stop),
                )

                def cut_out(registers: Registers, frame: Frame) -> None:
                    registers[register] = registers[source][..., part]

                self._operations.append(cut_out)
                self._of_base[base] = register
        return self._of_base[base]

    def _formed(self, node: str) -> Register:
        """The adjoint of a node that several things make up."""
        arriving, scale = self._plan.arriving(node), self._plan.graph.scales.get(node)
        products = [self._product(blocks) for blocks in arriving.products]
        functions = [self._through(*each) for each in arriving.functions]
        terms = self._terms(arriving.form)
        register, number = self._new(), self._factor(scale)

        def add_up(registers: Registers, frame: Frame) -> None:
            total: Tensor | None = None
            for product in products:
                more = product(registers, frame, None, False)
                total = more if total is None else total + more
            for function in functions:
                more = function(registers, frame)
                total = more if total is None else total + more
            for base, factor in terms:
                source = registers[base]
                if total is None:
                    total = source if factor is None else source * frame.tensors[factor]
                elif factor is None:
                    total = total + source
                else:
                    total = torch.addcmul(total, source, frame.tensors[factor])
            assert total is not None
            registers[register] = total if number is None else total * frame.tensors[number]

        self._operations.append(add_up)
        return register

    def _terms(self, form: Form) -> list[tuple[Register, int | None]]:
        """Bases and factors, those without a factor first."""
        ordered = sorted(form.items(), key=lambda term: term[1] is not None)
        return [(self._base(base), self._factor(factor)) for base, factor in ordered]

    def _write(self, arriving: Arriving, view: Register) -> None:
        """Write the sum of what arrives to a part of a result."""
        products = [self._product(blocks) for blocks in arriving.products]
        functions = [self._through(*each) for each in arriving.functions]
        terms = self._terms(arriving.form)

        def write(registers: Registers, frame: Frame) -> None:
            out, add = registers[view], False
            for product in products:
                product(registers, frame, out, add)
                add = True
            for function in functions:
                _put(function(registers, frame), out, add)
                add = True
            for base, factor in terms:
                source = registers[base]
                if factor is None:
                    _put(source, out, add)
                elif add:
                    out.addcmul_(source, frame.tensors[factor])
                else:
                    torch.mul(source, frame.tensors[factor], out=out)
                add = True

        self._operations.append(write)

    def _adjoints(self, blocks: Blocks) -> Callable[[Registers, Frame], Tensor]:
        """What gives the adjoints of the targets side by side; computed once, when asked for."""
        key = (blocks.targets, tuple(map(id, blocks.factors)))
        if key in self._side_by_side:
            return self._side_by_side[key]
        segments = [
            (self._base(each.base), each.first, each.last, each.factor, each.shared)
            for each in self._plan.segments(blocks)
        ]
        parts = [
            (base, first, last, None if factor is None else self._tensor(factor, shared))
            for base, first, last, factor, shared in segments
        ]
        count, height, register = len(blocks.targets), blocks.height, self._new()
        base, _, _, only = parts[0]

        def alone(registers: Registers, frame: Frame) -> Tensor:
            source = registers[base]
            found: Tensor = source if only is None else source * frame.tensors[only]
            return found

        def together(registers: Registers, frame: Frame) -> Tensor:
            found: Tensor | None = registers[register]
            if found is None:
                rows, batch, _ = registers[0].shape
                wide = new_rows(registers[0], rows, batch, count, height)
                for base, first, last, factor in parts:
                    source = registers[base]
                    if last - first == 1:
                        out = wide[:, :, first]
                    else:
                        source, out = source.unsqueeze(2), wide[:, :, first:last]
                    if factor is None:
                        out.copy_(source)
                    else:
                        torch.mul(source, frame.tensors[factor], out=out)
                found = registers[register] = wide.view(rows, batch, count * height)
            return found

        self._side_by_side[key] = alone if count == 1 else together
        return self._side_by_side[key]

    def _product(self, blocks: Blocks) -> Product:
        """What gives the adjoints side by side times the matrix.

        Few rows go through the weights, all blocks at once. For many, sum_g diag(factor_g) W_g is
        formed once for each sample: it is that sample's Jacobian, and every row is multiplied by it
        alone, in 1/G of the operations.
        """
        segments, adjoints = self._plan.segments(blocks), self._adjoints(blocks)
        assert blocks.matrix is not None
        weight = blocks.matrix[blocks.first : blocks.last]
        width, few = weight.shape[1], len(blocks.targets) == len(segments)
        by_gate = weight.view(len(blocks.targets), -1, width)
        through = [
            (
                self._base(each.base),
                self._tensor(each.factor, each.shared),
                by_gate[each.first : each.last],
            )
            for each in segments
            if not few and each.factor is not None and not each.shared
        ]
        few = few or len(through) < len(segments)

        def product(registers: Registers, frame: Frame, out: Tensor | None, add: bool) -> Tensor:
            rows, batch, _ = registers[0].shape
            if few or rows <= FEW_ROWS:
                flat = adjoints(registers, frame).flatten(0, 1)
                if out is None:
                    return torch.mm(flat, weight).view(rows, batch, width)
                out.flatten(0, 1).addmm_(flat, weight, beta=int(add))
                return out
            by_sample = new_rows(registers[0], rows, batch * width).view(batch, rows, width)
            for number, (base, factor, some) in enumerate(through):
                source, jacobian = (
                    registers[base].transpose(0, 1),
                    self._jacobian(frame, factor, some),
                )
                by_sample.baddbmm_(source, jacobian, beta=int(number > 0))
            if out is None:
                return by_sample.transpose(0, 1).contiguous()
            _put(by_sample.transpose(0, 1), out, add)
            return out

        return product

    def _jacobian(
        self, frame: Frame, factor: int, blocks: Float[Tensor, "G H M"]
    ) -> Float[Tensor, "B H M"]:
        """sum_g diag(factor_g) W_g of each sample."""
        value, shared = self._tensors[factor]
        key = factor, blocks.data_ptr()
        if frame.step is not None and key not in self._jacobians:
            count = value.shape[0] * value.shape[1] * blocks[0].numel()
            if not shared and count <= TOGETHER:
                self._jacobians[key] = _all_jacobians(value, blocks)
        if frame.step is None or key not in self._jacobians:
            return _jacobians(frame.tensors[factor], blocks)
        return self._jacobians[key][frame.step]

    def _rows_of(self, edge: Opaque, targets: tuple[str, ...]) -> Register:
        """The adjoint of a function's state, as far as it comes to these parts of it."""
        forms = {target: self._plan.form(target) for target in targets}
        size = max(int(slot.stop) for slot in edge.targets.values())
        starts = {
            base.start - slot.start if factor is None and not base.node else -1
            for target, slot in edge.targets.items()
            for base, factor in forms.get(target, {Base("?"): None}).items()
        }
        if len(starts) == 1 and min(starts) >= 0:  # as it is given, in one piece
            return self._base(Base("", min(starts), min(starts) + size))
        terms = [(edge.targets[target], self._terms(form)) for target, form in forms.items()]
        register = self._new()

        def gather(registers: Registers, frame: Frame) -> None:
            rows = registers[0].new_zeros(*registers[0].shape[:2], size)
            for slot, some in terms:
                for base, factor in some:
                    source = registers[base]
                    rows[..., slot] += source if factor is None else source * frame.tensors[factor]
            registers[register] = rows

        self._operations.append(gather)
        return register

    def _through(
        self, edge: Opaque, targets: tuple[str, ...], part: slice | None, label: str
    ) -> Callable[[Registers, Frame], Tensor]:
        """What gives a part of the state before a function, or its x (for None)."""
        key = (id(edge), targets, part is None)
        number = self._number_of_function(edge)
        if key not in self._of_function:
            rows, register = self._rows_of(edge, targets), self._new()

            def call(registers: Registers, frame: Frame) -> None:
                derivative = frame.functions[number]
                pull = derivative.to_input if part is None else derivative.to_state
                registers[register] = pull(registers[rows])

            self._operations.append(call)
            self._of_function[key] = register
        found, scale = self._of_function[key], self._factor(edge.scales.get(label))

        def give(registers: Registers, frame: Frame) -> Tensor:
            whole = registers[found]
            some: Tensor = whole if part is None else whole[..., part]
            return some if scale is None else some * frame.tensors[scale]

        return give

    # --- frames: what it computes with ---

    def at(self, k: int) -> Frame:
        """Step k of a graph of many."""
        if k not in self._frames:
            if not self._columns:
                self._columns = [None if shared else v.unbind() for v, shared in self._tensors]
            tensors = [
                value if column is None else column[k]
                for (value, _), column in zip(self._tensors, self._columns, strict=True)
            ]
            functions = [edge.derivative.each(lambda value: value[k]) for edge in self._functions]
            self._frames[k] = Frame(tensors, functions, k)
        return self._frames[k]

    def whole(self) -> Frame:
        """The only step of a graph."""
        functions = [edge.derivative for edge in self._functions]
        return Frame([value for value, _ in self._tensors], functions)

    def merged(self, first: int, stop: int) -> Frame:
        """Steps first .. stop-1 as if they were samples of one: a cell knows no time."""

        def change(value: Tensor) -> Tensor:
            return value[first:stop].flatten(0, 1)

        tensors = [value if shared else change(value) for value, shared in self._tensors]
        return Frame(tensors, [edge.derivative.each(change) for edge in self._functions])

    # --- running it ---

    def run(
        self, frame: Frame, delta: Float[Tensor, "N B S"], spare: int = 0, fill: bool = True
    ) -> list[Float[Tensor, "N1 B _"]]:
        """The results for rows of adjoints, each with `spare` rows at its end, not written yet.

        Without `fill` nothing is written outside of `slots` either.
        """
        rows, batch, _ = delta.shape
        results = [new_rows(delta, rows + spare, batch, width) for width in self._widths]
        given = [result[:rows] for result in results] if spare else results
        for result, slots in zip(given, self.slots, strict=True):
            if fill and sum(slot.stop - slot.start for slot in slots) < result.shape[-1]:
                result.zero_()
        self._run(frame, delta, given)
        return results

    def _run(
        self, frame: Frame, delta: Float[Tensor, "N B S"], results: Sequence[Float[Tensor, "N B _"]]
    ) -> Registers:
        registers: Registers = [None] * self._size
        registers[0] = delta
        for register, number, slot in self._views:
            registers[register] = results[number][..., slot]
        with no_autocast(delta.device):
            for operation in self._operations:
                operation(registers, frame)
        return registers

    def kept(
        self, frame: Frame, delta: Float[Tensor, "N B S"]
    ) -> tuple[list[tuple[Tensor, list[Tensor | None]]], list[tuple[Tensor, AbstractDerivative]]]:
        """What `keep_side_by_side` and `keep_function` asked for."""
        registers = self._run(frame, delta, [])
        tensors = frame.tensors
        found = [
            (adjoints(registers, frame), [None if n is None else tensors[n] for n in operands])
            for adjoints, operands in self._kept
        ]
        return found, [(registers[at], frame.functions[n]) for at, n in self._kept_functions]


def _jacobians(
    factor: Float[Tensor, "..."], blocks: Float[Tensor, "G H M"]
) -> Float[Tensor, "B H M"]:
    """sum_g diag(factor_g) W_g of each sample, from [B, G, H], or [B, H] for a single block."""
    factors = factor.view(factor.shape[0], -1, factor.shape[-1], 1)
    total = factors[:, 0] * blocks[0]
    for block in range(1, len(blocks)):
        total.addcmul_(factors[:, block], blocks[block])
    return total


def _all_jacobians(
    factor: Float[Tensor, "..."], blocks: Float[Tensor, "G H M"]
) -> list[Float[Tensor, "B H M"]]:
    """The same for many steps, unit by unit one product of all steps and samples."""
    steps, batch, *_, units = factor.shape
    by_unit = factor.reshape(steps * batch, -1, units).permute(2, 0, 1)
    found = torch.bmm(by_unit, blocks.transpose(0, 1)).transpose(0, 1)
    return list(found.view(steps, batch, *found.shape[1:]).unbind())


def _put(values: Tensor, out: Tensor, add: bool) -> None:
    """Write values to `out`, or add them to what is there."""
    if add:
        out += values
    else:
        out.copy_(values)


def new_rows(like: Tensor, rows: int, *shape: int) -> Tensor:
    """An uninitialised tensor [rows, *shape], its memory for 1, 2, 4, ..., 64, 128, 192, ... rows.

    The recursion gains a row at every step. Blocks that keep their size are handed out by the
    allocator again and again; blocks that grew a little would be fresh memory each time.
    """
    room = 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64
    whole = like.new_empty(room, *shape)
    return whole if room == rows else whole[:rows]


@dataclass(frozen=True, eq=False)
class FormedGradients:
    """Gradients of several parameters that are no outer products: one function gives them formed.

    `pull` maps n adjoint rows [n, B, S] to gradients [n, *shape] by name, `size` counts the numbers
    that one row gives. Nothing is pulled back before it is asked for.
    """

    delta: Float[Tensor, "N B S"]
    derivative: AbstractDerivative
    suffix: str

    def pull(self, delta: Float[Tensor, "_ B S"]) -> dict[str, Float[Tensor, "..."]]:
        """The gradients of these rows, by name."""
        found = self.derivative.to_parameters(delta)
        return {name + self.suffix: gradient for name, gradient in found.items()}

    def blocks(self, most: int) -> Iterator[tuple[slice, Mapping[str, Float[Tensor, "..."]]]]:
        """All rows and their gradients, few enough at a time that these are `most` numbers."""
        rows = max(1, most // self.derivative.size)
        if rows >= len(self.delta):
            yield slice(0, len(self.delta)), self._at_once
            return
        for first in range(0, len(self.delta), rows):
            some = slice(first, min(first + rows, len(self.delta)))
            yield some, self.pull(self.delta[some])

    @cached_property
    def _at_once(self) -> Mapping[str, Float[Tensor, "..."]]:
        """Kept, as sizes and shares both ask for it."""
        return self.pull(self.delta)


@dataclass(frozen=True, eq=False)
class Uses:
    """Adjoints side by side [N, B, P], and what gradients are their products with.

    Attributes:
        adjoint: da, shape [N, B, P].
        operands: (parameter, first of its rows, operand [B, M] or None) of each use; with an
            operand the gradient of rows first .. first+P-1 is sum_b da_b (x) operand_b, else
            sum_b da_b.
    """

    adjoint: Float[Tensor, "N B P"]
    operands: tuple[tuple[str, int, Float[Tensor, "B _"] | None], ...]


class CellAdjoint:
    """The pull-back of N adjoint rows through one step, everything still unsummed over rows.

    Nothing is computed before it is asked for; `pull_back` makes one.

    Args:
        plan: that of the linearised step.
        delta: rows of adjoints of the state after, [N, B, S].
        steps: which of many steps are pulled through as if they were samples of one; None for the
            only step of a graph.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman, pull_back
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> graph = cell.linearise(cell.step(torch.ones(4, 1), torch.zeros(4, 1)))
        >>> pull_back(graph, torch.ones(3, 4, 1)).previous().shape  # 3 rows, 4 samples
        torch.Size([3, 4, 1])
    """

    def __init__(self, plan: Plan, delta: Float[Tensor, "N B S"], steps: range | None = None):
        self._plan, self.delta, self._steps = plan, delta, steps

    def _frame(self, program: Program) -> Frame:
        steps = self._steps
        return program.whole() if steps is None else program.merged(steps.start, steps.stop)

    def previous(self) -> Float[Tensor, "N B S"]:
        """Adjoint of s_{k-1}: J_k^T delta, the sum over all routes."""
        return self._plan.back.run(self._frame(self._plan.back), self.delta)[0]

    def along(self, routes: Container[str]) -> Float[Tensor, "N B S"]:
        """The part of it that comes along these routes."""
        program = self._plan.split(routes.__contains__)
        return program.run(self._frame(program), self.delta)[0]

    def by_route(self) -> dict[str, Float[Tensor, "N B S"]]:
        """The same split by route; the parts sum to it."""
        program = self._plan.by_route
        parts = program.run(self._frame(program), self.delta)
        return dict(zip(self._plan.graph.routes, parts, strict=True))

    def input(self) -> Float[Tensor, "N B I"]:
        """Adjoint of x_k."""
        return self._plan.to_input.run(self._frame(self._plan.to_input), self.delta)[0]

    @cached_property
    def _kept(self) -> tuple[tuple[Uses, ...], tuple[FormedGradients, ...]]:
        program = self._plan.to_uses
        frame = self._frame(program)
        together, rows = program.kept(frame, self.delta)
        uses = []
        for (_, named), (adjoint, operands) in zip(self._plan.uses, together, strict=True):
            given = iter(operands)
            uses.append(
                Uses(
                    adjoint,
                    tuple(
                        (use.parameter, first, None if use.diagonal else next(given))
                        for use, first in named
                    ),
                )
            )
        formed = [
            FormedGradients(delta, derivative, edge.suffix)
            for (delta, derivative), edge in zip(rows, self._plan.functions, strict=True)
        ]
        return tuple(uses), tuple(formed)

    @property
    def uses(self) -> tuple[Uses, ...]:
        """How the gradients of parameters follow from adjoints within the step."""
        return self._kept[0]

    @property
    def formed(self) -> tuple[FormedGradients, ...]:
        """The gradients that only a function gives."""
        return self._kept[1]


def pull_back(graph: Graph, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
    """Pull N rows of adjoints dL/ds_k back through a linearised step, without summing them.

    Args:
        graph: what `cell.linearise` gives for one step, [B, ...].
        delta: the rows, [N, B, S].

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman, pull_back
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> graph = cell.linearise(cell.step(torch.ones(1, 1), torch.zeros(1, 1)))
        >>> pull_back(graph, torch.full((1, 1, 1), 3.0)).by_route()
        {'recurrent': tensor([[[1.5000]]])}
    """
    return CellAdjoint(Plan(graph), delta)
