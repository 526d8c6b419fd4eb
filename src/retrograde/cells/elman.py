"""The plain recurrent network: one matrix, one activation function, one route.

Reference: Jeffrey L. Elman, "Finding Structure in Time", Cognitive Science 14 (1990).
"""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractLayer, CellStep, plus_product
from retrograde.cells.edges import Diagonal
from retrograde.cells.gates import ACTIVATIONS, Gate
from retrograde.cells.graph import Graph


@dataclass(frozen=True, eq=False)
class Elman(AbstractLayer):
    """h_k = phi(W x_k + b_ih + R h_{k-1} + b_hh), the equation of torch.nn.RNN.

    Args:
        weight_ih: W, shape [H, I].
        weight_hh: R, shape [H, H].
        bias_ih: b_ih, shape [H], or None.
        bias_hh: b_hh, shape [H], or None.
        activation: phi, a name in gates.py: "tanh", "relu", "sigmoid", "identity", ...

    Raises:
        ArgumentError: for an unknown activation, or weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman
        >>> cell = Elman(torch.tensor([[1.0]]), torch.tensor([[0.5]]), activation="identity")
        >>> cell.step(torch.tensor([3.0]), torch.tensor([4.0])).state
        tensor([5.])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None
    activation: str = "tanh"

    def __post_init__(self) -> None:
        _checks.one_of("activation", self.activation, ACTIVATIONS)
        self.check()

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("hidden", ACTIVATIONS[self.activation], "candidate"),)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        h = ACTIVATIONS[self.activation].function(plus_product(projected, state, self.weight_hh))
        return CellStep(x, state, h, {"hidden": h})

    def linearise(self, step: CellStep) -> Graph:
        """da = dh phi'(a)        dh_{k-1} = R^T da"""
        h_by_a = ACTIVATIONS[self.activation].derivative(step.activations["hidden"])
        return self.graph(
            *self.affine_edges(step, ("recurrent",)),
            Diagonal("a.hidden", "h+", h_by_a),
        )
