"""The gated recurrent unit, in its two forms: the reset gate after or before the product with R_n.

Reference: Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", EMNLP (2014), applies r to h, before the product; torch.nn.GRU
applies it to R_n h + b_hn, after. The update gate z keeps the state in both, as in the paper.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractLayer, CellStep, affine
from retrograde.cells.edges import Diagonal, biases, weights
from retrograde.cells.gates import GRU_GATES, SIGMOID, TANH, Gate
from retrograde.cells.graph import Graph

RECURRENT_ROUTES = tuple(f"recurrent.{gate.name}" for gate in GRU_GATES)


class AbstractGRU(AbstractLayer):
    """What both forms have in common: gates r, z, n; b_hh belongs to what r acts on."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        return GRU_GATES

    def project(self, x: Input) -> Projected:
        return affine(x, self.weight_ih, self.bias_ih)


@dataclass(frozen=True, eq=False)
class GRU(AbstractGRU):
    """The GRU of torch, gates in torch's order r, z, n and state s = h.

        r = sigma(W_r x + b_ir + R_r h + b_hr)     z = sigma(W_z x + b_iz + R_z h + b_hz)
        q = R_n h + b_hn                           n = tanh(W_n x + b_in + r * q)
        h_k = (1 - z) * n + z * h_{k-1}

    Args:
        weight_ih: W, shape [3H, I].
        weight_hh: R, shape [3H, H].
        bias_ih: b_i, shape [3H], or None.
        bias_hh: b_h, shape [3H], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU
        >>> GRU(torch.zeros(6, 3), torch.zeros(6, 2)).step(torch.zeros(3), torch.ones(2)).state
        tensor([0.5000, 0.5000])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        x_r, x_z, x_n = projected.chunk(3, -1)
        h_r, h_z, q = affine(state, self.weight_hh, self.bias_hh).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * q).tanh()
        h = (1 - z) * n + z * state
        return CellStep(x, state, h, {"reset": r, "update": z, "candidate": n, "inner": q})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; ' is the slope of an activation function.

        da_z = dh (h_{k-1} - n) z'      da_n = dh (1 - z) n'      da_r = da_n q r'
        dq = da_n r                     dh_{k-1} = R^T (da_r, da_z, dq) + dh z
        """
        r, z, n, q = step.activations.values()
        return self.graph(
            *self.affine_edges(step, RECURRENT_ROUTES, inner=("a.reset", "a.update", "q")),
            Diagonal("h-", "h+", z, "carousel"),
            Diagonal("a.reset", "a.candidate", SIGMOID.times_slope(q, r)),
            Diagonal("q", "a.candidate", r),
            Diagonal("a.update", "h+", SIGMOID.times_slope(step.previous - n, z)),
            Diagonal("a.candidate", "h+", TANH.times_slope(1 - z, n)),
        )


@dataclass(frozen=True, eq=False)
class GRU2014(AbstractGRU):
    """The GRU of Cho et al. (2014): as torch's, but r multiplies h before the product with R_n.

        r = sigma(W_r x + b_ir + R_r h + b_hr)     z = sigma(W_z x + b_iz + R_z h + b_hz)
        q = r * h_{k-1}                            n = tanh(W_n x + b_in + R_n q + b_hn)
        h_k = (1 - z) * n + z * h_{k-1}

    A path through the reset gate passes R_r and then R_n within one step; it is one crossing.

    Args:
        weight_ih: W, shape [3H, I].
        weight_hh: R, shape [3H, H].
        bias_ih: b_i, shape [3H], or None.
        bias_hh: b_h, shape [3H], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU2014
        >>> GRU2014(torch.zeros(6, 3), torch.zeros(6, 2)).step(torch.zeros(3), torch.ones(2)).state
        tensor([0.5000, 0.5000])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        R_r, R_z, R_n = self.weight_hh.chunk(3)
        b_r, b_z, b_n = (None,) * 3 if self.bias_hh is None else self.bias_hh.chunk(3)
        x_r, x_z, x_n = projected.chunk(3, -1)
        r, z = (x_r + affine(state, R_r, b_r)).sigmoid(), (x_z + affine(state, R_z, b_z)).sigmoid()
        q = r * state
        n = (x_n + affine(q, R_n, b_n)).tanh()
        h = (1 - z) * n + z * state
        return CellStep(x, state, h, {"reset": r, "update": z, "candidate": n, "inner": q})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; ' is the slope of an activation function.

        da_z = dh (h_{k-1} - n) z'      da_n = dh (1 - z) n'      dq = R_n^T da_n
        da_r = dq h_{k-1} r'            dh_{k-1} = R_r^T da_r + R_z^T da_z + dq r + dh z
        """
        r, z, n, q = step.activations.values()
        nodes, h = ("a.reset", "a.update", "a.candidate"), step.previous
        R = ("weight_hh", self.weight_hh)
        return self.graph(
            *weights("weight_ih", self.weight_ih, "x", nodes, step.x),
            *biases("bias_ih", self.bias_ih, nodes),
            *biases("bias_hh", self.bias_hh, nodes),
            *weights(*R, "h-", nodes[:2], h, RECURRENT_ROUTES[:2], range(0, 3)),
            Diagonal("h-", "q", r, RECURRENT_ROUTES[2]),
            Diagonal("a.reset", "q", SIGMOID.times_slope(h, r)),
            *weights(*R, "q", nodes[2:], q, blocks=range(2, 3)),
            Diagonal("h-", "h+", z, "carousel"),
            Diagonal("a.update", "h+", SIGMOID.times_slope(h - n, z)),
            Diagonal("a.candidate", "h+", TANH.times_slope(1 - z, n)),
        )
