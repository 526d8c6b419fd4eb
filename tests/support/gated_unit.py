"""A cell that the package has never seen: equations, gates and edges, and nothing else."""

from dataclasses import dataclass

from torch import Tensor

from retrograde.cells import ACTIVATIONS, AbstractLayer, CellStep, Gate
from retrograde.cells.base import affine
from retrograde.cells.edges import Diagonal

SIGMOID, TANH = ACTIVATIONS["sigmoid"], ACTIVATIONS["tanh"]


@dataclass(frozen=True, eq=False)
class Unit(AbstractLayer):
    """A gated unit of one gate, which keeps what it does not replace, under any names.

    f = sigma(a_f),  n = tanh(a_n),  h_k = f * h_{k-1} + (1 - f) * n,  a = W x_k + R h_{k-1} + b
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    described: tuple[Gate, Gate] = (
        Gate("keep", SIGMOID, "forget", keeps="h"),
        Gate("new", TANH, "candidate"),
    )

    @property
    def gates(self) -> tuple[Gate, ...]:
        return self.described

    def advance(self, x, projected, state):
        f, n = (projected + affine(state, self.weight_hh, None)).chunk(2, -1)
        f, n = f.sigmoid(), n.tanh()
        activations = dict(zip(self.pre_activations, (f, n), strict=True))
        return CellStep(x, state, f * state + (1 - f) * n, activations)

    def linearise(self, step):
        f, n = step.activations.values()
        keep, new = self.pre_activations
        return self.graph(
            *self.affine_edges(step, (f"recurrent.{keep}", f"recurrent.{new}")),
            Diagonal("h-", "h+", f, "carousel"),
            Diagonal(f"a.{keep}", "h+", (step.previous - n) * f * (1 - f)),
            Diagonal(f"a.{new}", "h+", (1 - f) * (1 - n * n)),
        )
