"""The single layers inside a cell: stacks and directions taken apart."""

from collections.abc import Iterator
from dataclasses import dataclass

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.composite import AbstractComposite
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
    """

    cell: AbstractCell
    suffix: str
    route_suffix: str
    part: slice
    path: tuple[int, ...]

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
) -> Iterator[Leaf]:
    """The layers of a cell, from the first slot of the state to the last."""
    while isinstance(cell, AbstractWrapped):
        cell = cell.cell
    if not isinstance(cell, AbstractComposite):
        yield Leaf(cell, suffix, route_suffix, slice(start, start + cell.state_size), path)
        return
    ends = zip(cell.layers, cell.suffixes, cell.route_suffixes, cell.offsets, strict=True)
    for number, (layer, end, route_end, offset) in enumerate(ends):
        names = (end + suffix, route_end + route_suffix)
        yield from leaves(layer, *names, start + offset, (*path, number))
