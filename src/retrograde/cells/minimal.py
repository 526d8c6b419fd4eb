"""The minimal GRU and the minimal LSTM: gates that read the input alone, and no recurrent weights.

Reference: Leo Feng, Frederick Tung, Mohamed Osama Ahmed, Yoshua Bengio and Hossein Hajimirsadeghi,
"Were RNNs All We Needed?" (2024), arXiv 2410.01201: sections 3.1 and 3.2, and for the form that is
computed with logarithms appendix B.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import CellStep, affine
from retrograde.cells.edges import Diagonal, biases, weights
from retrograde.cells.gates import ACTIVATIONS, CONSTANT, SIGMOID, Activation, Gate
from retrograde.cells.graph import PRE_ACTIVATION, Graph
from retrograde.cells.linear import AbstractLinear

FORMS = {"linear": ACTIVATIONS["identity"], "log": ACTIVATIONS["relu+sigmoid"]}
"""The activation of the candidate by form; a positive candidate has a logarithm."""


class AbstractMinimal(AbstractLinear):
    """What both have in common: W x_k + b for each gate, and nothing else."""

    weight_ih: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None
    form: str

    def __post_init__(self) -> None:
        _checks.one_of("form", self.form, FORMS)
        self.check()

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        rows = len(self.gates) * hidden
        return {"weight_ih": (rows, inputs), "bias_ih": (rows,)}

    @property
    def input_size(self) -> int:
        return self.weight_ih.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.weight_ih.shape[0] // len(self.gates)

    @property
    def candidate(self) -> Activation:
        """phi."""
        return FORMS[self.form]

    def project(self, x: Input) -> Projected:
        return affine(x, self.weight_ih, self.bias_ih)

    def derivative(self, step: CellStep, kept: Tensor, by: Mapping[str, Tensor]) -> Graph:
        """The graph of h_k = kept h_{k-1} + ...; `by` is dh_k/da of each gate."""
        nodes = self.gate_nodes
        return self.graph(
            *weights("weight_ih", self.weight_ih, "x", nodes, step.x),
            *biases("bias_ih", self.bias_ih, nodes),
            Diagonal("h-", "h+", kept, "carousel"),
            *(Diagonal(PRE_ACTIVATION + gate, "h+", factor) for gate, factor in by.items()),
        )


@dataclass(frozen=True, eq=False)
class MinGRU(AbstractMinimal):
    """The minimal GRU, gates in the paper's order z, n and state s = h.

        z = sigma(W_z x + b_z)                 n = phi(W_n x + b_n)
        h_k = (1 - z) * h_{k-1} + z * n

    A single route leads from step to step, the carousel, by the factor 1 - z. Note that z is here
    what a GRU calls 1 - z: it writes, and does not keep.

    Args:
        weight_ih: W, shape [2H, I].
        bias_ih: b, shape [2H], or None.
        form: "linear", with phi the identity; or "log", with phi(a) = a + 1/2 from 0 on and
            sigma(a) below, which is positive, so that packages compute it with logarithms.

    Raises:
        ArgumentError: for an unknown form, or weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import MinGRU
        >>> MinGRU(torch.zeros(4, 3)).step(torch.zeros(3), torch.ones(2)).state
        tensor([0.5000, 0.5000])
    """

    weight_ih: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    form: str = "linear"

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (Gate("update", SIGMOID, "input"), Gate("candidate", self.candidate, "candidate"))

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (*self.gates, Gate("kept", CONSTANT, "forget", keeps="h"))

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        z, n = projected.chunk(2, -1)
        z, n = z.sigmoid(), self.candidate.function(n)
        h = (1 - z) * state + z * n
        return CellStep(x, state, h, {"update": z, "candidate": n, "kept": 1 - z})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; ' is the slope of an activation function.

        da_z = dh (n - h_{k-1}) z'      da_n = dh z phi'      dh_{k-1} = dh (1 - z)
        """
        z, n, kept = step.activations.values()
        by_z = SIGMOID.times_slope(n - step.previous, z)
        by = {"update": by_z, "candidate": self.candidate.times_slope(z, n)}
        return self.derivative(step, kept, by)


@dataclass(frozen=True, eq=False)
class MinLSTM(AbstractMinimal):
    """The minimal LSTM, gates in the paper's order f, i, n and state s = h.

        f = sigma(W_f x + b_f)     i = sigma(W_i x + b_i)     n = phi(W_n x + b_n)
        h_k = f' * h_{k-1} + i' * n,       f' = f / (f + i),  i' = i / (f + i)

    f' and i' sum to 1; f' is what the carousel passes on, under the name "kept".

    Args:
        weight_ih: W, shape [3H, I].
        bias_ih: b, shape [3H], or None.
        form: "linear" or "log", as in `MinGRU`.

    Raises:
        ArgumentError: for an unknown form, or weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import MinLSTM
        >>> MinLSTM(torch.zeros(6, 3)).step(torch.zeros(3), torch.ones(2)).state
        tensor([0.5000, 0.5000])
    """

    weight_ih: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    form: str = "linear"

    @property
    def gates(self) -> tuple[Gate, ...]:
        return (
            Gate("forget", SIGMOID),
            Gate("input", SIGMOID),
            Gate("candidate", self.candidate, "candidate"),
        )

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (*self.gates, Gate("kept", SIGMOID, "forget", keeps="h"))

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        a_f, a_i, n = projected.chunk(3, -1)
        f, i, n = a_f.sigmoid(), a_i.sigmoid(), self.candidate.function(n)
        # f / (f + i) = sigma(log f - log i), where f and i may both be 0 in their data type
        kept = (logsigmoid(a_f) - logsigmoid(a_i)).sigmoid()
        h = kept * state + (1 - kept) * n
        return CellStep(x, state, h, {"forget": f, "input": i, "candidate": n, "kept": kept})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; df'/da_f = f' i' (1 - f) and df'/da_i = -f' i' (1 - i).

        da_f = dh (h_{k-1} - n) f' i' (1 - f)       da_n = dh i' phi'
        da_i = dh (n - h_{k-1}) f' i' (1 - i)       dh_{k-1} = dh f'
        """
        f, i, n, kept = step.activations.values()
        by_kept = SIGMOID.times_slope(step.previous - n, kept)
        by = {
            "forget": by_kept * (1 - f),
            "input": -by_kept * (1 - i),
            "candidate": self.candidate.times_slope(1 - kept, n),
        }
        return self.derivative(step, kept, by)
