"""The LSTM of torch with `proj_size`: what it hands on is a projection of its output.

Reference: Haşim Sak, Andrew Senior and Françoise Beaufays, "Long Short-Term Memory Based Recurrent
Neural Network Architectures for Large Vocabulary Speech Recognition" (2014), arXiv 1402.1128.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractLayer, CellStep, affine, plus_product, standard_shapes
from retrograde.cells.edges import Diagonal, weights
from retrograde.cells.gates import LSTM_GATES, SIGMOID, TANH, Gate
from retrograde.cells.graph import Graph
from retrograde.errors import ArgumentError

RECURRENT_ROUTES = tuple(f"recurrent.{gate.name}" for gate in LSTM_GATES)


@dataclass(frozen=True, eq=False)
class ProjectedLSTM(AbstractLayer):
    """An LSTM with a recurrent projection, gates in torch's order i, f, g, o and s = (h, c).

        a_k = W x_k + b_ih + R h_{k-1} + b_hh      c_k = f * c_{k-1} + i * g
        y_k = o * tanh(c_k)                        h_k = M y_k

    h has P entries and c has H; the state has P + H.

    Args:
        weight_ih: W, shape [4H, I].
        weight_hh: R, shape [4H, P].
        weight_hr: M, shape [P, H].
        bias_ih: b_ih, shape [4H], or None.
        bias_hh: b_hh, shape [4H], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import ProjectedLSTM
        >>> cell = ProjectedLSTM(torch.zeros(8, 3), torch.zeros(8, 1), torch.ones(1, 2))
        >>> cell.step(torch.zeros(3), torch.tensor([0.0, 1.0, -2.0])).state[1:]  # c halves
        tensor([ 0.5000, -1.0000])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    weight_hr: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.weight_hr, Tensor) and self.weight_hr.ndim != 2:
            raise ArgumentError(
                f"weight_hr must have shape [P, H]; got {list(self.weight_hr.shape)}"
            )
        self.check()

    @property
    def gates(self) -> tuple[Gate, ...]:
        return LSTM_GATES

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (*LSTM_GATES, Gate("squashed", TANH, "state"))

    @property
    def hidden_size(self) -> int:
        return self.weight_hr.shape[-1]

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        outputs = self.weight_hr.shape[0]
        shapes = standard_shapes(4, inputs, hidden)
        return {**shapes, "weight_hh": (4 * hidden, outputs), "weight_hr": (outputs, hidden)}

    @property
    def slots(self) -> Mapping[str, slice]:
        outputs, hidden = self.weight_hr.shape
        return {"h": slice(0, outputs), "c": slice(outputs, outputs + hidden)}

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        h, c_previous = state[..., self.slots["h"]], state[..., self.slots["c"]]
        i, f, g, o = plus_product(projected, h, self.weight_hh).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c = torch.addcmul(i * g, f, c_previous)
        squashed = c.tanh()
        y = o * squashed
        new = torch.cat((affine(y, self.weight_hr, None), c), -1)
        activations = {"input": i, "forget": f, "cell": g, "output": o, "squashed": squashed}
        return CellStep(x, state, new, activations)

    def linearise(self, step: CellStep) -> Graph:
        """dy = M^T dh, then as in any LSTM; ' is the slope of an activation function.

        da_o = dy tanh(c) o'    dc <- dc + dy o tanh'(c)
        da_i = dc g i'          da_f = dc c_{k-1} f'          da_g = dc i g'
        dh_{k-1} = R^T da       dc_{k-1} = dc f
        """
        i, f, g, o, squashed = step.activations.values()
        c_previous = step.previous[..., self.slots["c"]]
        return self.graph(
            *self.affine_edges(step, RECURRENT_ROUTES),
            Diagonal("c-", "c", f, "carousel"),
            Diagonal("a.input", "c", SIGMOID.times_slope(g, i)),
            Diagonal("a.forget", "c", SIGMOID.times_slope(c_previous, f)),
            Diagonal("a.cell", "c", TANH.times_slope(i, g)),
            Diagonal("c", "c+"),
            Diagonal("c", "y", TANH.times_slope(o, squashed), "readout"),
            Diagonal("a.output", "y", SIGMOID.times_slope(squashed, o)),
            *weights("weight_hr", self.weight_hr, "y", ("h+",), o * squashed),
        )
