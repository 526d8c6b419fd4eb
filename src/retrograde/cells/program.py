"""The few operations on many rows that a folded graph is at every step of a recursion.

What to compute is said once for many steps; then the same operations run with the numbers of one
step, or of several as if they were samples of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import AbstractDerivative, Opaque
from retrograde.cells.folding import Arriving, Base, Blocks, Folded, Form, Wanted
from retrograde.cells.precision import no_autocast

FEW_ROWS = 16
"""Above this many rows forming the Jacobian of each sample is cheaper."""

TOGETHER = 2**17
"""Jacobians of all steps are formed together up to this many numbers, half a MiB in float32; more
of them do not stay in a processor's cache until they are used, and each step forms its own."""


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

    def __init__(self, folded: Folded):
        self._folded = folded
        self._operations: list[Operation] = []
        self._size = 1
        self._of_base: dict[Base, Register] = {Base("", 0, folded.graph.state_size): 0}
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
            arriving = self._folded.arriving(node, wanted)
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
                    Base("", 0, self._folded.graph.state_size) if not base.node else Base(base.node)
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
        arriving, scale = self._folded.arriving(node), self._folded.graph.scales.get(node)
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
            for each in self._folded.segments(blocks)
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
        segments, adjoints = self._folded.segments(blocks), self._adjoints(blocks)
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
        forms = {target: self._folded.form(target) for target in targets}
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
            rows, register = self._rows_of(edge, edge.rows(targets)), self._new()

            def call(registers: Registers, frame: Frame) -> None:
                derivative, delta = frame.functions[number], registers[rows]
                registers[register] = (
                    derivative.to_input(delta)
                    if part is None
                    else edge.to_state(derivative, delta, targets)
                )

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
        self, frame: Frame, delta: Float[Tensor, "N B S"], fill: bool = True
    ) -> list[Float[Tensor, "N B _"]]:
        """The results for rows of adjoints.

        Without `fill` nothing is written outside of `slots`.
        """
        rows, batch, _ = delta.shape
        results = [new_rows(delta, rows, batch, width) for width in self._widths]
        if fill:
            self._fill(results)
        with no_autocast(delta.device):
            self._run(frame, delta, results)
        return results

    def run_to(
        self,
        frame: Frame,
        delta: Float[Tensor, "N B S"],
        results: Sequence[Float[Tensor, "N B _"]],
        fill: bool = True,
    ) -> None:
        """The same written to tensors of which the rows lie one after the other; no autocast."""
        if fill:
            self._fill(results)
        self._run(frame, delta, results)

    def _fill(self, results: Sequence[Float[Tensor, "N B _"]]) -> None:
        """Zeros where nothing comes back to."""
        for result, slots in zip(results, self.slots, strict=True):
            if sum(slot.stop - slot.start for slot in slots) < result.shape[-1]:
                result.zero_()

    def _run(
        self, frame: Frame, delta: Float[Tensor, "N B S"], results: Sequence[Float[Tensor, "N B _"]]
    ) -> Registers:
        registers: Registers = [None] * self._size
        registers[0] = delta
        for register, number, slot in self._views:
            registers[register] = results[number][..., slot]
        for operation in self._operations:
            operation(registers, frame)
        return registers

    def kept(
        self,
        frame: Frame,
        delta: Float[Tensor, "N B S"],
        results: Sequence[Float[Tensor, "N B _"]] = (),
    ) -> tuple[list[tuple[Tensor, list[Tensor | None]]], list[tuple[Tensor, AbstractDerivative]]]:
        """What `keep_side_by_side` and `keep_function` asked for.

        Args:
            frame, delta: as in `run`.
            results: where the results are written to, of a program that has any.
        """
        self._fill(results)
        tensors = frame.tensors
        with no_autocast(delta.device):
            registers = self._run(frame, delta, results)
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
