"""The gated recurrent unit, in its two forms: the reset gate after or before the product with R_n.

Reference: Kyunghyun Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for
Statistical Machine Translation", EMNLP (2014), applies r to h, before the product; torch.nn.GRU
applies it to R_n h + b_hn, after. The update gate z keeps the state in both, as in the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import (
    AbstractLayer,
    CellAdjoint,
    CellStep,
    Elementwise,
    GateAdjoint,
    Product,
    Use,
    affine,
    new_rows,
    standard_shapes,
)
from retrograde.cells.gates import GRU_GATES, Gate

RECURRENT_ROUTES = tuple(f"recurrent.{gate.name}" for gate in GRU_GATES)


class AbstractGRU(AbstractLayer):
    """What both forms have in common: gates r, z, n, state s = h, four routes."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        return GRU_GATES

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return standard_shapes(3, inputs, hidden)

    @property
    def slots(self) -> Mapping[str, slice]:
        return {"h": slice(0, self.hidden_size)}

    @property
    def routes(self) -> tuple[str, ...]:
        return (*RECURRENT_ROUTES, "carousel")

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        return RECURRENT_ROUTES

    @property
    def inner_routes(self) -> tuple[str, ...]:
        return ()

    @property
    def adjoint_order(self) -> tuple[tuple[str, ...], ...]:
        return ("update", "candidate"), ("reset",)

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return tuple(gate.name for gate in GRU_GATES)

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

    def __post_init__(self) -> None:
        self.check()

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        x_r, x_z, x_n = projected.chunk(3, -1)
        h_r, h_z, q = affine(state, self.weight_hh, self.bias_hh).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * q).tanh()
        h = (1 - z) * n + z * state
        return CellStep(x, state, h, {"reset": r, "update": z, "candidate": n, "inner": q})

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        r, z, n, q = step.activations.values()
        h_by_a_n = (1 - z) * step.slope("candidate", 1 - n * n)
        h_by_a_z = (step.previous - n) * step.slope("update", z * (1 - z))
        a_n_by_a_r = q * step.slope("reset", r * (1 - r))
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
                Product(RECURRENT_ROUTES, through_h, self.weight_hh, self.slots["h"]),
                Elementwise(("carousel",), delta, h_by_h, self.slots["h"]),
            ),
            to_input=Product(("input",), through_x, self.weight_ih, slice(0, self.input_size)),
            find_uses=lambda: self.uses(step, through_x, through_h),
            like=delta,
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

    def __post_init__(self) -> None:
        self.check()

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        R_r, R_z, R_n = self.weight_hh.chunk(3)
        b_r, b_z, b_n = (None,) * 3 if self.bias_hh is None else self.bias_hh.chunk(3)
        x_r, x_z, x_n = projected.chunk(3, -1)
        r, z = (x_r + affine(state, R_r, b_r)).sigmoid(), (x_z + affine(state, R_z, b_z)).sigmoid()
        q = r * state
        n = (x_n + affine(q, R_n, b_n)).tanh()
        h = (1 - z) * n + z * state
        return CellStep(x, state, h, {"reset": r, "update": z, "candidate": n, "inner": q})

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        r, z, n, _ = step.activations.values()
        h_by_a_n = (1 - z) * step.slope("candidate", 1 - n * n)
        h_by_a_z = (step.previous - n) * step.slope("update", z * (1 - z))
        q_by_a_r = step.previous * step.slope("reset", r * (1 - r))
        return replace(
            step,
            derivatives={
                "q by a_r": q_by_a_r.unsqueeze(-2),
                "h by a": torch.stack((h_by_a_z, h_by_a_n), -2),
                "h by a_z": h_by_a_z.unsqueeze(-2),
                "h by a_n": h_by_a_n.unsqueeze(-2),
                "q by h": r,
                "h by h": z,
            },
        )

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        by, h = step.derivatives, self.slots["h"]
        gates = 2 * self.hidden_size
        R_gates, R_n = self.weight_hh[:gates], self.weight_hh[gates:]

        da_n = GateAdjoint(((delta, by["h by a_n"]),))
        dq = new_rows(delta, *delta.shape)
        da_n.product(R_n, dq)
        da_gates = GateAdjoint(((dq, by["q by a_r"]), (delta, by["h by a_z"])))  # r, z
        da = GateAdjoint(((dq, by["q by a_r"]), (delta, by["h by a"])))  # r, z, n

        def uses() -> dict[str, tuple[Use, ...]]:
            by_rows = (Use(da_gates, step.previous), Use(da_n, step.activations["inner"]))
            return {**self.uses(step, da, da), "weight_hh": by_rows}

        return CellAdjoint(
            edges=(
                Product(RECURRENT_ROUTES[:2], da_gates, R_gates, h),
                Elementwise((RECURRENT_ROUTES[2],), dq, by["q by h"], h),
                Elementwise(("carousel",), delta, by["h by h"], h),
            ),
            to_input=Product(("input",), da, self.weight_ih, slice(0, self.input_size)),
            find_uses=uses,
            like=delta,
        )
