"""A stack of layers is itself a cell: its state is the states of all layers, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.edges import Diagonal, Edge, Part
from retrograde.cells.graph import Graph
from retrograde.cells.position import Position
from retrograde.cells.rewiring import joined, moved
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Stacked(AbstractComposite):
    """Layer l+1 reads the output of layer l at the same step, as in torch.nn.LSTM(num_layers=...).

    Parameters are named as there: `weight_ih_l0`, `weight_hh_l1`, ... Routes of more than one layer
    carry the same suffix (`carousel_l1`); a single layer keeps its own names.

    Args:
        layers: the cells from the input upwards.
        masked: a dropout between the layers: the step reads, after x, what the outputs of each
            layer but the last are multiplied by.

    Raises:
        ArgumentError: for no layers, or a layer whose input is not the output of the one below.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, Stacked
        >>> lower = GRU(torch.zeros(6, 3), torch.zeros(6, 2))
        >>> upper = GRU(torch.zeros(6, 2), torch.zeros(6, 2))
        >>> Stacked((lower, upper)).slots
        {'h_l0': slice(0, 2, None), 'h_l1': slice(2, 4, None)}
    """

    layers: tuple[AbstractCell, ...]
    masked: bool = False

    def __post_init__(self) -> None:
        _checks.tuple_of("layers", self.layers, AbstractCell, "cells of retrograde.cells")
        _checks.flag("masked", self.masked)
        for number, (below, above) in enumerate(zip(self.layers, self.layers[1:], strict=False), 1):
            if above.input_size != below.output_size:
                raise ArgumentError(
                    f"layer {number} of a stack must read the {below.output_size} outputs of layer "
                    f"{number - 1}; it expects {above.input_size} inputs"
                )

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        return tuple(Position(number).suffix for number in range(len(self.layers)))

    @property
    def positions(self) -> tuple[Position | None, ...]:
        """The number of each layer; None for a single one, of which there is none to tell apart."""
        several = len(self.layers) > 1
        return tuple(Position(number) if several else None for number in range(len(self.layers)))

    @cached_property
    def route_suffixes(self) -> tuple[str, ...]:
        return self.suffixes if len(self.layers) > 1 else ("",)

    @property
    def _widths(self) -> list[int]:
        """Sizes of what a step reads: x, and the masks of the layers above the first."""
        return [layer.input_size for layer in (self.layers if self.masked else self.layers[:1])]

    @property
    def input_size(self) -> int:
        return sum(self._widths)

    @property
    def output(self) -> slice | list[int]:
        part, offset = self.layers[-1].output, self.offsets[-1]
        if isinstance(part, slice):
            return slice(part.start + offset, part.stop + offset)
        return [entry + offset for entry in part]

    def project(self, x: Input) -> Projected:
        return self.layers[0].project(x[..., : self.layers[0].input_size])

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        below, *masks = torch.split(x, self._widths, -1) if self.masked else (x,)
        first, *others = self.split(state)
        steps = [self.layers[0].advance(below, projected, first)]
        for number, part in enumerate(others):
            read = steps[-1].state[..., self.layers[number].output]
            read = read * masks[number] if masks else read
            steps.append(self.layers[number + 1].step(read, part))
        states = [step.state for step in steps]
        joined = torch.cat(states, -1) if others else states[0]
        return CellStep(x, state, joined, layers=tuple(steps))

    def linearise(self, step: CellStep) -> Graph:
        if len(self.layers) == 1:
            return self.layer(0, step, 0)
        masks = torch.split(step.x, self._widths, -1)[1:] if self.masked else ()
        graphs, links = [self.layer(0, step, 0)], list[list[Edge]]()
        reads, width = dict(graphs[0].reads), self._widths[0]
        for number, below in enumerate(self.layers[:-1]):
            above, on, offset = self.layer(number + 1, step, 0), list[Edge](), self.offsets[number]
            after = {node: moved(slot, -offset) for node, slot in graphs[-1].after.items()}
            for source, target, entries, at in _runs(below.output_entries, after, above.reads):
                factor = None
                if masks:
                    factor, mask = masks[number][..., entries], f"mask.{source}"
                    read = step.layers[number].state[..., after[source]]
                    on.append(Diagonal(mask, target, read, at=at))
                    reads[mask] = moved(entries, width)
                on.append(Diagonal(source, target, factor, at=at))
            width += above.input_size
            links.append(on)
            graphs.append(above)
        return replace(joined(graphs, [*links, []]), reads=reads)


def _runs(
    output: Sequence[int], after: Mapping[str, slice], reads: Mapping[str, slice]
) -> Iterator[tuple[str, str, slice, Part | None]]:
    """(node of the state below, node that reads it, which outputs these are, part of the reader).

    Raises:
        ArgumentError: if anything but whole parts of the state is read.
    """
    first = 0
    while first < len(output):
        target, slot = next((n, s) for n, s in reads.items() if s.start <= first < s.stop)
        found = [
            (source, slice(first, first + part.stop - part.start))
            for source, part in after.items()
            if output[first : first + part.stop - part.start] == list(range(part.start, part.stop))
        ]
        if not found or found[0][1].stop > slot.stop:
            raise ArgumentError(
                f"the layers of a stack must read whole parts of the state below, of "
                f"{', '.join(after)}, each in one part of their input; {target} does not"
            )
        source, entries = found[0]
        at = Part(first - slot.start, entries.stop - slot.start, slot.stop - slot.start)
        yield source, target, entries, None if at.stop - at.start == at.size else at
        first = entries.stop
