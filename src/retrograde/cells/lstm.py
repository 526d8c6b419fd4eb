"""The long short-term memory with a forget gate, as torch.nn.LSTM computes it.

References: Sepp Hochreiter, Jürgen Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8)
(1997); Felix A. Gers, Jürgen Schmidhuber, Fred Cummins, "Learning to Forget: Continual Prediction
with LSTM", Neural Computation 12(10) (2000).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import LSTM_GATES
from retrograde.cells.base import (
    AbstractLayer,
    CellAdjoint,
    CellStep,
    Elementwise,
    GateAdjoint,
    Product,
    affine,
    new_rows,
)


@dataclass(frozen=True, eq=False)
class LSTM(AbstractLayer):
    """The LSTM of 2000, gates in torch's order i, f, g, o and state s = (h, c).

        a_k = W x_k + b_ih + R h_{k-1} + b_hh
        i = sigma(a_i)   f = sigma(a_f)   g = tanh(a_g)   o = sigma(a_o)
        c_k = f * c_{k-1} + i * g         h_k = o * tanh(c_k)

    Args:
        weight_ih: W, shape [4H, I].
        weight_hh: R, shape [4H, H].
        bias_ih: b_ih, shape [4H], or None.
        bias_hh: b_hh, shape [4H], or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import LSTM
        >>> cell = LSTM(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> cell.step(torch.zeros(3), torch.tensor([0.0, 0.0, 1.0, -2.0])).state[2:]  # c halves
        tensor([ 0.5000, -1.0000])
    """

    weight_ih: Float[Tensor, "..."]
    weight_hh: Float[Tensor, "..."]
    bias_ih: Float[Tensor, "..."] | None = None
    bias_hh: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        self.check()

    @property
    def gates(self) -> tuple[str, ...]:
        return LSTM_GATES

    @property
    def slots(self) -> Mapping[str, slice]:
        return {
            "h": slice(0, self.hidden_size),
            "c": slice(self.hidden_size, 2 * self.hidden_size),
        }

    @property
    def routes(self) -> tuple[str, ...]:
        return (*self.recurrent_routes, "carousel")

    def step(self, x: Float[Tensor, "*L I"], state: Float[Tensor, "*L S"]) -> CellStep:
        h, c_previous = state.chunk(2, -1)
        a = affine(x, self.weight_ih, self.bias_ih) + affine(h, self.weight_hh, self.bias_hh)
        a_i, a_f, a_g, a_o = a.chunk(4, -1)
        i, f, g, o = a_i.sigmoid(), a_f.sigmoid(), a_g.tanh(), a_o.sigmoid()
        c = f * c_previous + i * g
        squashed = c.tanh()
        return CellStep(
            x,
            state,
            torch.cat((o * squashed, c), -1),
            {"input": i, "forget": f, "cell": g, "output": o, "squashed": squashed},
        )

    def linearise(self, step: CellStep) -> CellStep:
        i, f, g, o, squashed = step.activations.values()
        c_previous = step.previous[..., self.slots["c"]]
        c_by_a = (g * i * (1 - i), c_previous * f * (1 - f), i * (1 - g * g))
        return replace(
            step,
            derivatives={
                "h by c": o * (1 - squashed * squashed),
                "c by a": torch.stack(c_by_a, -2),
                "h by a_o": (squashed * o * (1 - o)).unsqueeze(-2),
                "c by c": f,
            },
        )

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        h_by_c, c_by_a, h_by_a_o, c_by_c = step.derivatives.values()
        dh, dc = delta.chunk(2, -1)

        dc = torch.addcmul(dc, dh, h_by_c, out=new_rows(delta, *dh.shape))
        da = GateAdjoint(((dc, c_by_a), (dh, h_by_a_o)))

        return CellAdjoint(
            edges=(
                Product(self.recurrent_routes, da, self.weight_hh, self.slots["h"]),
                Elementwise(("carousel",), dc, c_by_c, self.slots["c"]),
            ),
            to_input=Product(("input",), da, self.weight_ih, slice(0, self.input_size)),
            uses=self.uses(step, da, da),
            like=delta,
        )
