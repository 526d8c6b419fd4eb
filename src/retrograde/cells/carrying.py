"""A cell whose state before a step may outlive the step: what `h = m * h_new + (1 - m) * h` does.

A sequence that has ended keeps its state, zoneout keeps some units: the state that goes on is a mix
of the one that a step made and the one that had entered it. So the latter is held beside the state,
and what enters the next step reads either (`retrograde.engine.Boundary`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellStep, is_cell
from retrograde.cells.edges import Diagonal
from retrograde.cells.graph import Graph
from retrograde.cells.wrapped import AbstractWrapped

HELD = "held"
"""The part of the state that is held."""

SKIP = "skip"
"""The route around a step, from what is held to what is held."""


@dataclass(frozen=True, eq=False)
class Carrying(AbstractWrapped):
    """A cell with as many entries again beside its state, which a step leaves as they are.

        s_k = step(x_k, s_{k-1}),   z_k = z_{k-1},   the state is (s, z)

    Args:
        cell: the cell that steps.

    Raises:
        ArgumentError: for anything but a cell.

    Example:
        >>> import torch
        >>> from retrograde.cells import Carrying, Elman, pull_back
        >>> linear = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> cell = Carrying(linear)
        >>> step = cell.step(torch.ones(1, 1), torch.tensor([[4.0, 7.0]]))
        >>> step.state
        tensor([[3., 7.]])
        >>> pull_back(cell.linearise(step), torch.ones(1, 1, 2)).previous()
        tensor([[[0.5000, 1.0000]]])
    """

    def __post_init__(self) -> None:
        is_cell(self.cell)

    @property
    def slots(self) -> Mapping[str, slice]:
        size = self.cell.state_size
        return {**self.cell.slots, HELD: slice(size, 2 * size)}

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        size = self.cell.state_size
        step = self.cell.advance(x, projected, state[..., :size])
        return replace(step, previous=state, state=torch.cat((step.state, state[..., size:]), -1))

    def linearise(self, step: CellStep) -> Graph:
        size = self.cell.state_size
        inner = replace(step, previous=step.previous[..., :size], state=step.state[..., :size])
        graph, held = self.cell.linearise(inner), slice(size, 2 * size)
        return replace(
            graph,
            edges=(*graph.edges, Diagonal(HELD + "-", HELD + "+", route=SKIP)),
            before={**graph.before, HELD + "-": held},
            after={**graph.after, HELD + "+": held},
        )


def stepping(cell: AbstractCell) -> AbstractCell:
    """The cell that steps, without the state that is held beside it.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, stepping
        >>> cell = GRU(torch.zeros(6, 3), torch.zeros(6, 2))
        >>> stepping(cell) is cell  # nothing is held beside its state
        True
    """
    is_cell(cell)
    return cell.cell if isinstance(cell, Carrying) else cell
