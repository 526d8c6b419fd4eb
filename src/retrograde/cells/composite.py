"""What stacks and directions have in common: a cell of cells, its state theirs side by side."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.gates import Gate
from retrograde.cells.graph import Graph
from retrograde.cells.position import Position
from retrograde.cells.rewiring import renamed


class AbstractComposite(AbstractCell):
    """Cells whose weights, slots and routes carry suffixes, those of torch.nn."""

    layers: tuple[AbstractCell, ...]

    @property
    @abstractmethod
    def suffixes(self) -> tuple[str, ...]:
        """The suffix of each cell's weights and slots."""

    @property
    def positions(self) -> tuple[Position | None, ...]:
        """The position of each cell; None where its names do not tell one."""
        return tuple(map(Position.of, self.suffixes))

    @property
    def route_suffixes(self) -> tuple[str, ...]:
        """The suffix of each cell's routes."""
        return self.suffixes

    @cached_property
    def offsets(self) -> list[int]:
        """Where each cell's part of the state begins."""
        offsets = [0]
        for layer in self.layers[:-1]:
            offsets.append(offsets[-1] + layer.state_size)
        return offsets

    @cached_property
    def parameters(self) -> Mapping[str, Tensor]:
        return {
            name + suffix: value
            for suffix, layer in zip(self.suffixes, self.layers, strict=True)
            for name, value in layer.parameters.items()
        }

    @property
    def slots(self) -> Mapping[str, slice]:
        cells = zip(self.suffixes, self.layers, self.offsets, strict=True)
        return {
            name + suffix: slice(slot.start + offset, slot.stop + offset)
            for suffix, layer, offset in cells
            for name, slot in layer.slots.items()
        }

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self._of_layers([layer.gates for layer in self.layers])

    @property
    def activations(self) -> tuple[Gate, ...]:
        return self._of_layers([layer.activations for layer in self.layers])

    def _of_layers(self, gates: Sequence[tuple[Gate, ...]]) -> tuple[Gate, ...]:
        ends = zip(self.route_suffixes, self.suffixes, gates, strict=True)
        return tuple(gate.suffixed(*end) for *end, of_cell in ends for gate in of_cell)

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "AbstractComposite":
        layers = tuple(
            layer.with_parameters({name: parameters[name + suffix] for name in layer.parameters})
            for suffix, layer in zip(self.suffixes, self.layers, strict=True)
        )
        return replace(self, layers=layers)  # type: ignore[type-var]

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        for suffix, layer in zip(self.suffixes, self.layers, strict=True):
            name = parameter.removesuffix(suffix)
            if name in layer.parameters and name + suffix == parameter:
                return layer.gates_of(name)
        return ()

    def split(self, state: Float[Tensor, "*L S"]) -> tuple[Tensor, ...]:
        """The cells' own parts of a state."""
        if len(self.layers) == 1:
            return (state,)
        return torch.split(state, [layer.state_size for layer in self.layers], -1)

    def layer(self, number: int, step: CellStep, inputs: int) -> Graph:
        """The derivative of one of the cells inside the whole step.

        Args:
            number: which cell.
            step: the whole step.
            inputs: where its part of x begins.
        """
        graph = self.layers[number].linearise(step.layers[number])
        names = self.suffixes[number], self.route_suffixes[number]
        return renamed(graph, *names, self.offsets[number], inputs)
