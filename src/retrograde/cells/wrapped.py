"""A cell that runs as another one does, and differs in what its gradient does on the way back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.gates import Gate
from retrograde.cells.graph import Graph


@dataclass(frozen=True, eq=False)
class AbstractWrapped(AbstractCell):
    """Everything as in `cell`, until a subclass says otherwise."""

    cell: AbstractCell

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.cell.parameters

    @property
    def input_size(self) -> int:
        return self.cell.input_size

    @property
    def slots(self) -> Mapping[str, slice]:
        return self.cell.slots

    @property
    def output(self) -> slice | list[int]:
        return self.cell.output

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self.cell.gates

    @property
    def activations(self) -> tuple[Gate, ...]:
        return self.cell.activations

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "AbstractWrapped":
        return replace(self, cell=self.cell.with_parameters(parameters))

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return self.cell.gates_of(parameter)

    def project(self, x: Input) -> Projected:
        return self.cell.project(x)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        return self.cell.advance(x, projected, state)

    def linearise(self, step: CellStep) -> Graph:
        return self.cell.linearise(step)
