"""Cells that know nothing of each other as one: the two directions of a layer, each in its time."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.graph import Graph
from retrograde.cells.rewiring import joined
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class SideBySide(AbstractComposite):
    """Several cells in step, each with its own input, state and weights; no route joins them.

    A bidirectional layer is two of them: the first reads the sequence forwards, the second
    backwards, and step k is the k-th that each of them does.

    Args:
        layers: the cells.
        ends: what is added to the names of each cell's weights, slots and routes.

    Raises:
        ArgumentError: if there is not one suffix of its own for each cell.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman, SideBySide
        >>> forward = Elman(torch.zeros(2, 3), torch.zeros(2, 2))
        >>> both = SideBySide((forward, forward), ("_l0", "_l0_reverse"))
        >>> both.routes, both.input_size
        (('recurrent_l0', 'recurrent_l0_reverse'), 6)
    """

    layers: tuple[AbstractCell, ...]
    ends: tuple[str, ...]

    def __post_init__(self) -> None:
        _checks.tuple_of("layers", self.layers, AbstractCell, "cells of retrograde.cells")
        _checks.tuple_of("ends", self.ends, str, "suffixes, one for each cell")
        if len(set(self.ends)) != len(self.layers):
            raise ArgumentError(
                f"{len(self.layers)} cells side by side need as many different suffixes; got "
                f"{self.ends}"
            )

    @property
    def suffixes(self) -> tuple[str, ...]:
        return self.ends

    @property
    def input_size(self) -> int:
        return sum(layer.input_size for layer in self.layers)

    @property
    def output(self) -> list[int]:
        return [
            offset + entry
            for layer, offset in zip(self.layers, self.offsets, strict=True)
            for entry in layer.output_entries
        ]

    def _inputs(self, x: Float[Tensor, "*L I"]) -> tuple[Tensor, ...]:
        return torch.split(x, [layer.input_size for layer in self.layers], -1)

    @cached_property
    def _widths(self) -> list[int]:
        """P of each cell."""
        some = next(iter(self.parameters.values()))
        return [c.project(some.new_zeros(0, c.input_size)).shape[-1] for c in self.layers]

    def project(self, x: Input) -> Projected:
        parts = zip(self.layers, self._inputs(x), strict=True)
        return torch.cat([layer.project(part) for layer, part in parts], -1)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        by_cell = (self._inputs(x), torch.split(projected, self._widths, -1), self.split(state))
        parts = zip(self.layers, *by_cell, strict=True)
        steps = tuple(layer.advance(*part) for layer, *part in parts)
        return CellStep(x, state, torch.cat([step.state for step in steps], -1), layers=steps)

    def linearise(self, step: CellStep) -> Graph:
        graphs, inputs = [], 0
        for number, layer in enumerate(self.layers):
            graphs.append(self.layer(number, step, inputs))
            inputs += layer.input_size
        return joined(graphs, [[]] * len(graphs))
