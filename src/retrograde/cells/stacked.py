"""A stack of layers is itself a cell: its state is the states of all layers, side by side."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellAdjoint, CellStep, Operator
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.position import Position
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

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        masks = torch.split(step.x, self._widths, -1)[1:] if self.masked else ()
        adjoints: list[CellAdjoint] = []
        by_masks: list[Tensor] = []
        for number, part in reversed(list(enumerate(self.split(delta)))):
            layer, own = self.layers[number], step.layers[number]
            if adjoints:  # what the layer above reads of this one's output
                read = adjoints[0].input()
                part = part.clone()
                part[..., layer.output] += read * masks[number] if masks else read
                if masks:
                    by_masks.insert(0, read * own.state[..., layer.output])
            adjoints.insert(0, layer.pull_back(own, part))

        def to_input() -> Tensor:
            return torch.cat((adjoints[0].input(), *by_masks), -1)

        whole = Operator(("input",), to_input, slice(0, self.input_size))
        return self.joined(adjoints, whole if masks else adjoints[0].to_input, delta)
