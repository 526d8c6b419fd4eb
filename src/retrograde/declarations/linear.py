"""Linear recurrences of other packages, in their plain torch code: minGRU, and Mamba's mixers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from retrograde.declarations.declaration import Declaration
from retrograde.declarations.reading import OUTPUT, CallTensors

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
    """Gu and Dao 2023: projection, convolution, selective scan, gate and projection of a block.

    Jamba and FalconMamba norm what the step sizes, B and C are made of.
    """
    into, taps = weights["in_proj.weight"], weights["conv1d.weight"].squeeze(1).T
    inputs, N = into.shape[1], weights["A_log"].shape[1]
    window = x.view(len(x), len(taps), -1)  # [B, K, inputs], and what `_window` adds
    read = window[..., :inputs] @ into.T
    if "in_proj.bias" in weights:
        read = read + window[..., INSIDE, None] * weights["in_proj.bias"]
    hidden, gate = read.chunk(2, -1)
    u = (hidden * taps).sum(1) + weights.get("conv1d.bias", 0)
    u = getattr(module, "act", silu)(u) * window[:, -1, KEPT, None]
    sizes = [weights["dt_proj.weight"].shape[1], N, N]
    read_of_u = torch.split(u @ weights["x_proj.weight"].T, sizes, -1)
    rank, B, C = map(_normed, (module,) * 3, (weights,) * 3, NORMS, read_of_u)
    delta = softplus(rank @ weights["dt_proj.weight"].T + weights["dt_proj.bias"])
    # Both packages compute these two in float32, whatever the precision of the model.
    A, D = -weights["A_log"].float().exp(), weights["D"].float()
    kept = torch.exp(delta.unsqueeze(-1) * A)
    S = kept * s["ssm"].view_as(kept) + (delta * u).unsqueeze(-1) * B.unsqueeze(1)
    y = ((S * C.unsqueeze(1)).sum(-1) + D * u) * silu(gate[:, -1])
    out = y @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0)
    return {"ssm": S.flatten(1), "y": out}


INSIDE, KEPT = -2, -1
"""Where an input of a window has 1: the step is one of the sequence; its attention mask has 1."""

NORMS = (("dt_layernorm",), ("b_layernorm", "B_layernorm"), ("c_layernorm", "C_layernorm"))
"""What the packages call the norms of the step sizes, of B and of C."""


def _normed(module: Any, weights: Weights, names: tuple[str, ...], values: Tensor) -> Tensor:
    """What the norm of one of these names gives, where the module has one."""
    for name in names:
        norm = getattr(module, name, None)
        if norm is not None:
            own = {"weight": weights[f"{name}.weight"]} if f"{name}.weight" in weights else {}
            return torch.func.functional_call(norm, own, (values,))  # type: ignore[no-any-return]
    return values


def _states_of_all_channels(module: Any) -> int:
    return int(module.A_log.numel())


def _window(module: Any, arguments: Mapping[str, Any], returned: Any) -> CallTensors:
    """A call with the inputs that each step's convolution sees, the latest last, as its input.

    Beside each are two marks, since a bias acts on the steps of the sequence alone, and a mask on
    the inputs and on what the convolution gives.
    """
    x, mask = next(iter(arguments.values())), arguments.get("attention_mask")
    with torch.no_grad():
        ones = x.new_ones(*x.shape[:2], 1)
        kept = ones if mask is None else mask.to(x.dtype).view_as(ones)
        width = module.conv1d.weight.shape[-1]
        padded = pad(torch.cat((x * kept, ones, kept), -1), (0, 0, width - 1, 0))
        windows = padded.unfold(1, width, 1).mT.flatten(2)
    rounding = torch.finfo(torch.float32).eps  # of a part, whatever the precision of the model
    return CallTensors(windows, {}, {OUTPUT: returned}, others=(x,), rounding=rounding)


MAMBA = Declaration(
    _mamba,
    state={"ssm": _states_of_all_channels},
    readout="y",
    batch_first=True,
    carousel=("ssm->ssm", "ssm->y"),
    reading=_window,
)

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
    "transformers.models.mamba.modeling_mamba.MambaMixer": MAMBA,
    "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": MAMBA,
    "transformers.models.jamba.modeling_jamba.JambaMambaMixer": MAMBA,
    "mambapy.mamba.MambaBlock": MAMBA,
}
"""Declarations by the qualified names of classes. A state from an earlier call is not followed."""
