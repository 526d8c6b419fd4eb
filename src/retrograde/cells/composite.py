"""What stacks and directions have in common: a cell of cells, its state theirs side by side."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import (
    AbstractCell,
    CellAdjoint,
    CellStep,
    Edge,
    Factors,
    shifted,
)
from retrograde.cells.gates import Gate


class AbstractComposite(AbstractCell):
    """Cells whose weights, slots and routes carry suffixes, those of torch.nn."""

    layers: tuple[AbstractCell, ...]

    @property
    @abstractmethod
    def suffixes(self) -> tuple[str, ...]:
        """The suffix of each cell's weights and slots."""

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

    @property
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
    def routes(self) -> tuple[str, ...]:
        return self._suffixed([layer.routes for layer in self.layers])

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        return self._suffixed([layer.recurrent_routes for layer in self.layers])

    @property
    def inner_routes(self) -> tuple[str, ...]:
        return self._suffixed([layer.inner_routes for layer in self.layers])

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self._of_layers([layer.gates for layer in self.layers])

    @property
    def activations(self) -> tuple[Gate, ...]:
        return self._of_layers([layer.activations for layer in self.layers])

    def _of_layers(self, gates: Sequence[tuple[Gate, ...]]) -> tuple[Gate, ...]:
        ends = zip(self.route_suffixes, self.suffixes, gates, strict=True)
        return tuple(gate.suffixed(*end) for *end, of_cell in ends for gate in of_cell)

    def _suffixed(self, routes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        pairs = zip(self.route_suffixes, routes, strict=True)
        return tuple(route + suffix for suffix, of_cell in pairs for route in of_cell)

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

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        parts = []
        for suffix, layer, part in zip(self.route_suffixes, self.layers, step.layers, strict=True):
            known = (*layer.routes, *layer.inner_routes)
            parts.append(layer.linearise(part, frozenset(r for r in known if r + suffix in cut)))
        return replace(step, layers=tuple(parts))

    def split(self, state: Float[Tensor, "*L S"]) -> tuple[Tensor, ...]:
        """The cells' own parts of a state."""
        if len(self.layers) == 1:
            return (state,)
        return torch.split(state, [layer.state_size for layer in self.layers], -1)

    def joined(
        self, adjoints: Sequence[CellAdjoint], to_input: Edge, like: Float[Tensor, "N B S"]
    ) -> CellAdjoint:
        """The pull-backs of all cells as one."""
        return CellAdjoint(
            edges=tuple(
                shifted(edge, offset, suffix)
                for offset, suffix, adjoint in zip(
                    self.offsets, self.route_suffixes, adjoints, strict=True
                )
                for edge in adjoint.edges
            ),
            to_input=to_input,
            find_uses=lambda: {
                name + suffix: uses
                for suffix, adjoint in zip(self.suffixes, adjoints, strict=True)
                for name, uses in adjoint.uses.items()
            },
            like=like,
            formed=tuple(
                gradients.suffixed(suffix)
                for suffix, adjoint in zip(self.suffixes, adjoints, strict=True)
                for gradients in adjoint.formed
            ),
            factors=_joined([adjoint.factors for adjoint in adjoints]),
        )


def _joined(factors: Sequence[Factors | None]) -> Factors | None:
    """Those of several cells; None where no policy acts."""
    if not any(factors):
        return None
    return Factors(layers=tuple(one or Factors() for one in factors))
