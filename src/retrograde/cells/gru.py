"""The gated recurrent unit in torch's form, with the reset gate after the recurrent product.

Reference: Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", EMNLP (2014). torch.nn.GRU applies r to R_n h + b_hn, where the
paper applies it to h; this file follows torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import GRU_GATES
from retrograde.cells.base import (
    AbstractLayer,
    CellAdjoint,
    CellStep,
    Elementwise,
    GateAdjoint,
    Product,
    affine,
)


@dataclass(frozen=True, eq=False)
class GRU(AbstractLayer):
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

    def __post_init__(self) -> None:
        self.check()

    @property
    def gates(self) -> tuple[str, ...]:
        return GRU_GATES

    @property
    def slots(self) -> Mapping[str, slice]:
        return {"h": slice(0, self.hidden_size)}

    @property
    def routes(self) -> tuple[str, ...]:
        return (*self.recurrent_routes, "carousel")

    def step(self, x: Float[Tensor, "*L I"], state: Float[Tensor, "*L S"]) -> CellStep:
        x_r, x_z, x_n = affine(x, self.weight_ih, self.bias_ih).chunk(3, -1)
        h_r, h_z, q = affine(state, self.weight_hh, self.bias_hh).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * q).tanh()
        h = (1 - z) * n + z * state
        return CellStep(x, state, h, {"reset": r, "update": z, "candidate": n, "inner": q})

    def linearise(self, step: CellStep) -> CellStep:
        r, z, n, q = step.activations.values()
        h_by_a_n = (1 - z) * (1 - n * n)
        h_by_a_z = (step.previous - n) * z * (1 - z)
        a_n_by_a_r = q * r * (1 - r)
        return replace(
            step,
            derivatives={
                "h by a": torch.stack((h_by_a_n * a_n_by_a_r, h_by_a_z, h_by_a_n), -2),
                "h by q": torch.stack((h_by_a_n * a_n_by_a_r, h_by_a_z, h_by_a_n * r), -2),
                "h by h": z,
            },
        )

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        h_by_a, h_by_q, h_by_h = step.derivatives.values()
        through_x = GateAdjoint(((delta, h_by_a),))  # r, z, n
        through_h = GateAdjoint(((delta, h_by_q),))  # r, z and q, which r multiplies

        return CellAdjoint(
            edges=(
                Product(self.recurrent_routes, through_h, self.weight_hh, self.slots["h"]),
                Elementwise(("carousel",), delta, h_by_h, self.slots["h"]),
            ),
            to_input=Product(("input",), through_x, self.weight_ih, slice(0, self.input_size)),
            uses=self.uses(step, through_x, through_h),
            like=delta,
        )
