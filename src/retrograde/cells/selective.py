"""The selective scan of Mamba: a linear recurrence whose step size, input and output are chosen by
the input.

Reference: Albert Gu and Tri Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"
(2023), arXiv 2312.00752: section 3.2, algorithm 2, with the discretisation of its code, where B
enters as delta B.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import CellStep, affine
from retrograde.cells.edges import Diagonal, Edge, Use, biases, weights
from retrograde.cells.gates import ACTIVATIONS, CONSTANT, Gate
from retrograde.cells.graph import Graph
from retrograde.cells.linear import AbstractLinear, in_rows, spread

SOFTPLUS = ACTIVATIONS["softplus"]


@dataclass(frozen=True, eq=False)
class SelectiveScan(AbstractLinear):
    """The diagonal selective scan over I channels, each with N states; h has I entries too.

        delta = softplus(V W_delta x_k + b)     B = W_B x_k     C = W_C x_k     A_n = -exp(A_log_n)
        S_k,n = exp(delta * A_n) * S_{k-1},n + delta * B_n * x_k          n = 0 .. N-1
        h_k = sum_n C_n * S_k,n + D * x_k

    The state is (h, S), S state by state, I entries each; no step reads h. One route leads from
    step to step, the carousel, by the factor exp(delta A). Inside a step the gradient takes the
    ways `delta`, `B` and `C`, through which the input chooses, `input` (x_k itself, as it is
    written), `readout` and `feedthrough`, which `without` takes like routes.

    Args:
        weight_delta_in: W_delta, shape [R, I], R the rank of the step size.
        weight_delta: V, shape [I, R].
        weight_B: W_B, shape [N, I].
        weight_C: W_C, shape [N, I].
        A_log: shape [N*I], state by state: the `A_log.T.flatten()` of packages.
        D: shape [I].
        bias_delta: b, shape [I], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import SelectiveScan
        >>> one = torch.ones(1, 1)
        >>> cell = SelectiveScan(0 * one, one, one, one, torch.zeros(1), torch.zeros(1))
        >>> cell.step(torch.zeros(1), torch.tensor([0.0, 8.0])).state  # exp(-softplus(0)) = 1/2
        tensor([0., 4.])
    """

    weight_delta_in: Float[Tensor, "..."]
    weight_delta: Float[Tensor, "..."]
    weight_B: Float[Tensor, "..."]
    weight_C: Float[Tensor, "..."]
    A_log: Float[Tensor, "..."]
    D: Float[Tensor, "..."]
    bias_delta: Float[Tensor, "..."] | None = None

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return shapes(inputs, self.weight_B.shape[0], self.weight_delta_in.shape[0])

    @property
    def states(self) -> int:
        """N, the states of each channel."""
        return self.weight_B.shape[0]

    @property
    def input_size(self) -> int:
        return self.weight_B.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.input_size

    @property
    def slots(self) -> Mapping[str, slice]:
        width = self.input_size
        return {"h": slice(0, width), "S": slice(width, width * (1 + self.states))}

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("delta", SOFTPLUS, "input"),)

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (*self.gates, Gate("kept", CONSTANT, "forget", keeps="S"))

    def project(self, x: Input) -> Projected:
        rank = affine(x, self.weight_delta_in, None)
        delta = affine(rank, self.weight_delta, self.bias_delta)
        return torch.cat(
            (rank, delta, affine(x, self.weight_B, None), affine(x, self.weight_C, None)), -1
        )

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        count, width = self.states, self.input_size
        sizes = [self.weight_delta_in.shape[0], width, count, count]
        rank, delta, B, C = torch.split(projected, sizes, -1)
        delta = SOFTPLUS.function(delta)
        before = in_rows(state[..., self.slots["S"]], count)
        A = in_rows(-self.A_log.exp(), count)
        kept = (delta.unsqueeze(-2) * A).exp()
        S = kept * before + B.unsqueeze(-1) * (delta * x).unsqueeze(-2)
        h = (C.unsqueeze(-1) * S).sum(-2) + self.D * x
        inside = {"delta": delta, "kept": kept.flatten(-2), "rank": rank, "B": B, "C": C}
        return CellStep(x, state, torch.cat((h, S.flatten(-2)), -1), inside)

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; dS_n are those from h and from later steps.

        dS_n <- dS_n + dh C_n                      dC_n = sum dh S_n
        ddelta = sum_n dS_n (S_{k-1},n kept_n A_n + B_n x)           dB_n = sum dS_n delta x
        dA_log_n = dS_n S_{k-1},n kept_n delta A_n                   dS_{k-1},n = dS_n kept_n
        """
        count, width, x = self.states, self.input_size, step.x
        delta, kept, rank, B, C = step.activations.values()
        kept, A = in_rows(kept, count), in_rows(-self.A_log.exp(), count)
        at = self.slots["S"]
        before, after = (in_rows(s[..., at], count) for s in (step.previous, step.state))
        edges: list[Edge] = [
            *weights("weight_delta_in", self.weight_delta_in, "x", ("rank",), x),
            *weights("weight_delta", self.weight_delta, "rank", ("a.delta",), rank),
            *biases("bias_delta", self.bias_delta, ("a.delta",)),
            Diagonal("a.delta", "delta", SOFTPLUS.derivative(delta)),
            *weights("weight_B", self.weight_B, "x", ("B",), x),
            *weights("weight_C", self.weight_C, "x", ("C",), x),
            *spread("B", [f"B{n}" for n in range(count)], count, width, x),
            *spread("C", [f"C{n}" for n in range(count)], count, width, x),
        ]
        for n in range(count):
            fades = before[..., n, :] * kept[..., n, :] * A[n]  # by delta
            B_n, C_n = (part[..., n : n + 1] for part in (B, C))
            edges += [
                Diagonal("", f"A{n}", use=Use("A_log", slice(n * width, (n + 1) * width))),
                Diagonal(f"A{n}", f"S{n}", fades * delta),
                Diagonal(f"S{n}-", f"S{n}", kept[..., n, :], "carousel"),
                Diagonal("delta", f"S{n}", fades + B_n * x, "delta"),
                Diagonal(f"B{n}", f"S{n}", delta * x, "B"),
                Diagonal("x", f"S{n}", delta * B_n, "input"),
                Diagonal(f"S{n}", f"S{n}+"),
                Diagonal(f"S{n}", "h+", C_n.expand_as(x), "readout"),
                Diagonal(f"C{n}", "h+", after[..., n, :], "C"),
            ]
        use = Use("D", slice(0, width), x, diagonal=True)
        edges.append(Diagonal("x", "h+", self.D, "feedthrough", use))
        return self.in_rows(edges, "S", count)


def shapes(inputs: int, states: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The weights of a layer with so many states a channel and this rank of its step size."""
    return {
        "weight_delta_in": (rank, inputs),
        "weight_delta": (inputs, rank),
        "weight_B": (states, inputs),
        "weight_C": (states, inputs),
        "A_log": (states * inputs,),
        "D": (inputs,),
        "bias_delta": (inputs,),
    }
