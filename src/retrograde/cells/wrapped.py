"""A cell that runs as another one does, and differs in what its gradient does on the way back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellAdjoint, CellStep
from retrograde.cells.gates import Gate


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
    def routes(self) -> tuple[str, ...]:
        return self.cell.routes

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        return self.cell.recurrent_routes

    @property
    def inner_routes(self) -> tuple[str, ...]:
        return self.cell.inner_routes

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

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        return self.cell.linearise(step, cut)

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        return self.cell.pull_back(step, delta)
