"""Linear recurrences of other packages, in their plain torch code: minGRU, and Mamba's mixer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from retrograde.declarations.declaration import Declaration

Weights = Mapping[str, Tensor]


def _min_gru(
    module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Feng et al. 2024, with the positive candidate of the form that takes logarithms."""
    n, z = (x @ weights["to_hidden_and_gate.weight"].T).chunk(2, -1)
    z, n = z.sigmoid(), torch.where(n >= 0, n + 0.5, n.sigmoid())
    h = (1 - z) * s["h"] + z * n
    out = weights.get("to_out.weight")
    return {"h": h, "y": h if out is None else h @ out.T}


def _half_of_its_rows(module: Any) -> int:
    return int(module.to_hidden_and_gate.out_features) // 2


def _mamba(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gu and Dao 2023: projection, convolution, selective scan, gate and projection of a block."""
    read = x.view(len(x), module.conv_kernel_size, -1) @ weights["in_proj.weight"].T
    hidden, gate = read.chunk(2, -1)
    u = (hidden * weights["conv1d.weight"].squeeze(1).T).sum(1) + weights.get("conv1d.bias", 0)
    u = module.act(u)
    sizes = [module.time_step_rank, module.ssm_state_size, module.ssm_state_size]
    rank, B, C = torch.split(u @ weights["x_proj.weight"].T, sizes, -1)
    delta = softplus(rank @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])
    kept = torch.exp(-delta.unsqueeze(-1) * weights["A_log"].exp())
    S = kept * s["ssm"].view_as(kept) + (delta * u).unsqueeze(-1) * B.unsqueeze(1)
    y = ((S * C.unsqueeze(1)).sum(-1) + weights["D"] * u) * silu(gate[:, -1])
    return {"ssm": S.flatten(1), "y": y @ weights["out_proj.weight"].T}


def _states_of_all_channels(module: Any) -> int:
    return int(module.A_log.numel())


def _convolved(arguments: Mapping[str, Any]) -> Tensor:
    """The inputs that the convolution of each step sees, the latest last, [B, T, K * features]."""
    x, module = next(iter(arguments.values())), arguments["self"]
    width = module.conv_kernel_size
    if module.use_bias:
        raise ValueError("the projection of its input has a bias, before which zeros are padded")
    padded = pad(x, (0, 0, width - 1, 0))
    return padded.unfold(1, width, 1).mT.flatten(2)


LINEAR: Mapping[str, Declaration] = {
    "minGRU_pytorch.minGRU.minGRU": Declaration(
        _min_gru,
        state={"h": _half_of_its_rows},
        readout="y",
        initial=(),
        output=lambda returned: returned[0] if isinstance(returned, tuple) else returned,
        batch_first=True,
        carousel=("h->h", "h->y"),
    ),
    "transformers.models.mamba.modeling_mamba.MambaMixer": Declaration(
        _mamba,
        state={"ssm": _states_of_all_channels},
        readout="y",
        x=_convolved,
        initial=(),
        batch_first=True,
        carousel=("ssm->ssm", "ssm->y"),
    ),
}
"""Declarations by the qualified names of classes. A state from an earlier call is not followed."""
