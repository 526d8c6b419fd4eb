"""A cell with some of its routes cut: it runs as before, but no gradient passes along them.

Cutting every route through recurrent weights gives the truncated backward pass that Hochreiter and
Schmidhuber trained their LSTM with (1997, appendix A.1): what the carousel alone brings back.
"""

from dataclasses import dataclass

from retrograde import _checks
from retrograde.cells.base import AbstractCell, CellStep, is_cell
from retrograde.cells.graph import Graph
from retrograde.cells.rewiring import cut
from retrograde.cells.wrapped import AbstractWrapped
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Cut(AbstractWrapped):
    """A cell without the gradient along some routes.

    Args:
        cell: the cell that runs.
        cut: names among the cell's `routes` and `inner_routes`.

    Raises:
        ArgumentError: for a name that is not one of its routes.

    Example:
        >>> import torch
        >>> from retrograde.cells import LSTM, Cut
        >>> cell = LSTM(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> Cut(cell, frozenset(cell.recurrent_routes)).routes
        ('carousel',)
    """

    cut: frozenset[str]

    def __post_init__(self) -> None:
        is_cell(self.cell)
        if not isinstance(self.cut, frozenset) or not all(isinstance(r, str) for r in self.cut):
            raise ArgumentError(
                f"cut must be a frozenset of route names; got {_checks.shown(self.cut)}"
            )
        known = (*self.cell.routes, *self.cell.inner_routes)
        unknown = sorted(self.cut - set(known))
        if unknown:
            raise ArgumentError(
                f"no route {', '.join(map(repr, unknown))} in this cell; it has {', '.join(known)}"
            )

    def linearise(self, step: CellStep) -> Graph:
        return cut(self.cell.linearise(step), self.cut)


def truncated(cell: AbstractCell) -> AbstractCell:
    """The cell with the truncated backward pass of 1997: nothing comes back through h_{k-1}.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, truncated
        >>> cell = truncated(GRU(torch.zeros(6, 3), torch.zeros(6, 2)))
        >>> cell.recurrent_routes
        ()

    Reference: Hochreiter and Schmidhuber (1997), appendix A.1.
    """
    is_cell(cell)
    return Cut(cell, frozenset(cell.recurrent_routes))
