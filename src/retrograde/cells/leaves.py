"""The single layers inside a cell: stacks and directions taken apart."""

from collections.abc import Iterator
from dataclasses import dataclass

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.gates import Gate
from retrograde.cells.position import Position
from retrograde.cells.wrapped import AbstractWrapped


@dataclass(frozen=True, eq=False)
class Leaf:
    """One layer in one direction.

    Attributes:
        cell: its cell.
        suffix: what the names of its slots and weights end in.
        route_suffix: what the names of its routes end in.
        part: its part of the whole state.
        path: where its steps lie among those of the whole.
        position: its layer and direction, if it is one of a stack, or of a module of torch.nn.
    """

    cell: AbstractCell
    suffix: str
    route_suffix: str
    part: slice
    path: tuple[int, ...]
    position: Position | None = None

    def of(self, step: CellStep) -> CellStep:
        """Its own part of a step of the whole."""
        for number in self.path:
            step = step.layers[number]
        return step


def leaves(
    cell: AbstractCell,
    suffix: str = "",
    route_suffix: str = "",
    start: int = 0,
    path: tuple[int, ...] = (),
    position: Position | None = None,
) -> Iterator[Leaf]:
    """The layers of a cell, from the first slot of the state to the last."""
    while isinstance(cell, AbstractWrapped):
        cell = cell.cell
    if not isinstance(cell, AbstractComposite):
        yield Leaf(
            cell, suffix, route_suffix, slice(start, start + cell.state_size), path, position
        )
        return
    ends = zip(cell.suffixes, cell.route_suffixes, cell.offsets, cell.positions, strict=True)
    for number, (layer, (end, route_end, offset, inner)) in enumerate(
        zip(cell.layers, ends, strict=True)
    ):
        names = (end + suffix, route_end + route_suffix)
        where = inner if position is None else position if inner is None else None
        yield from leaves(layer, *names, start + offset, (*path, number), where)


def gate_of(cell: AbstractCell, route: str) -> tuple[Gate, Position | None] | None:
    """The gate that a route passes, and its layer; None for a route that passes none.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, Stacked
        >>> lower, upper = (GRU(torch.zeros(6, n), torch.zeros(6, 2)) for n in (3, 2))
        >>> gate, position = gate_of(Stacked((lower, upper)), "recurrent.update_l1")
        >>> gate.name, position
        ('update', Position(layer=1, reverse=False))
    """
    for leaf in leaves(cell):
        own = route.removesuffix(leaf.route_suffix)
        if own + leaf.route_suffix == route and own in (*leaf.cell.routes, *leaf.cell.inner_routes):
            name = own.rpartition(".")[2]
            return next(((g, leaf.position) for g in leaf.cell.gates if g.name == name), None)
    return None
