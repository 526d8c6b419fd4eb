"""The sLSTM: exponential gates, a normaliser, and a stabiliser that keeps both in range.

Reference: Maximilian Beck et al., "xLSTM: Extended Long Short-Term Memory" (2024), arXiv
2405.04517, section 2.2 and appendix A.2, equations 15 to 17 for the stabiliser.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractLayer, CellStep, plus_product
from retrograde.cells.edges import Diagonal
from retrograde.cells.gates import SIGMOID, TANH, Gate
from retrograde.cells.graph import Graph

GATES = (
    Gate("input", None, "input"),
    Gate("forget", SIGMOID, "forget", keeps="c"),
    Gate("cell", TANH, "candidate"),
    Gate("output", SIGMOID, "output"),
)


@dataclass(frozen=True, eq=False)
class SLSTM(AbstractLayer):
    """The sLSTM with its stabiliser, gates in the order i, f, z, o and state s = (h, c, n, m).

        a = W x_k + R h_{k-1} + b       l = log sigma(a_f) + m_{k-1}      m_k = max(a_i, l)
        i = exp(a_i - m_k)              f = exp(l - m_k)                  z = tanh(a_z)
        c_k = f c_{k-1} + i z           n_k = f n_{k-1} + i               o = sigma(a_o)
        h_k = o c_k / n_k

    c and n are in units of exp(m), which cancels in h. Where n_{k-1} is 0, as in a zero initial
    state, there is nothing to keep and m_k = a_i, as in the xlstm package: i = 1, and h_k is
    o tanh(a_z) for any a_i. It reads h by recurrent weights, so that it is no linear recurrence.
    The activation of the input gate is not given to the rules, as an
    exponential has no largest slope.

    Args:
        weight_ih: W, shape [4H, I].
        weight_hh: R, shape [4H, H]; block-diagonal in the paper, a block for each head.
        bias_ih, bias_hh: shape [4H], or None; only their sum matters.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import SLSTM
        >>> cell = SLSTM(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> cell.step(torch.zeros(3), torch.ones(8)).state[6:]  # m = log sigma(0) + 1
        tensor([0.3069, 0.3069])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None

    @property
    def gates(self) -> tuple[Gate, ...]:
        return GATES

    @property
    def slots(self) -> Mapping[str, slice]:
        size = self.hidden_size
        return {name: slice(n * size, (n + 1) * size) for n, name in enumerate("hcnm")}

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        h, c, n, m = state.chunk(4, -1)
        a_i, a_f, a_z, a_o = plus_product(projected, h, self.weight_hh).chunk(4, -1)
        held = logsigmoid(a_f) + m
        empty = n == 0
        m = torch.where(empty, a_i, torch.maximum(a_i, held))
        most = math.log(torch.finfo(m.dtype).max) / 2
        gap = held - m  # above 0 only where empty; there a finite f keeps f * 0 at 0
        i, f, z, o = (a_i - m).exp(), gap.clamp(max=most).exp(), a_z.tanh(), a_o.sigmoid()
        c, n = f * c + i * z, f * n + i
        holds = torch.where(held == a_i, 0.5, (held > a_i).to(m.dtype))  # dm/dl
        holds = torch.where(empty, 0, holds)
        activations = {"forget": a_f.sigmoid(), "cell": z, "output": o}
        slope = torch.where(gap > most, 0, f)  # df/dl
        inside = {"i": i, "f": f, "slope": slope, "holds": holds}
        return CellStep(x, state, torch.cat((o * c / n, c, n, m), -1), activations | inside)

    def linearise(self, step: CellStep) -> Graph:
        """The deltas; g is dm/dl, 1 where m holds on and 0 where the input gate sets it.

        dc <- dc + dh o / n      dn <- dn - dh o c / n^2       df = dc c_{k-1} + dn n_{k-1}
        di = dc z + dn           dm <- dm - i di - f df        dl = f df + g dm
        da_i = i di + (1 - g) dm           da_f = dl (1 - sigma(a_f))          dm_{k-1} = dl
        """
        forget, z, o, i, f, slope, g = step.activations.values()
        _, c_before, n_before, _ = step.previous.chunk(4, -1)
        _, c, n, _ = step.state.chunk(4, -1)
        routes = tuple(f"recurrent.{gate.name}" for gate in GATES)
        return self.graph(
            *self.affine_edges(step, routes),
            Diagonal("m-", "l", None, "stabiliser"),
            Diagonal("a.forget", "l", 1 - forget),
            Diagonal("l", "m", g),
            Diagonal("a.input", "m", 1 - g),
            Diagonal("l", "f", slope),
            Diagonal("m", "f", -slope),
            Diagonal("a.input", "i", i),
            Diagonal("m", "i", -i),
            Diagonal("m", "m+"),
            Diagonal("c-", "c", f, "carousel"),
            Diagonal("f", "c", c_before),
            Diagonal("i", "c", z),
            Diagonal("a.cell", "c", TANH.times_slope(i, z)),
            Diagonal("n-", "n", f, "carousel.normaliser"),
            Diagonal("f", "n", n_before),
            Diagonal("i", "n"),
            Diagonal("c", "c+"),
            Diagonal("n", "n+"),
            Diagonal("c", "h+", o / n, "readout"),
            Diagonal("n", "h+", -o * (c / n) / n, "readout.normaliser"),
            Diagonal("a.output", "h+", SIGMOID.times_slope(c / n, o)),
        )
