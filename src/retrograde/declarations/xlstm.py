"""The layers of xLSTM, as the xlstm package and transformers have them: sLSTM and mLSTM.

Beck et al., "xLSTM: Extended Long Short-Term Memory" (2024), equations 8-27. A layer of the paper
is a convolution, the gates and the recurrence, a norm by heads and what leads out of it; a step
reads the inputs that its convolution sees, and its output is no part of the state. The mLSTM of
"xLSTM 7B" (Beck et al. 2025, arXiv 2503.13427) has no convolution and caps its gates;
transformers takes it from the xlstm package where that is installed, and has its own code where
it is not. Which kernel computes it, chunkwise or step by step, is all the same to its declaration.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, logsigmoid, pad, silu

from retrograde.cells.marks import gate
from retrograde.declarations.declaration import Declaration
from retrograde.declarations.reading import OUTPUT, CallTensors

Weights = Mapping[str, Tensor]

EPS = 1e-6
"""What the package adds to the normaliser of the mLSTM."""


def _of(module: Any, weights: Weights, name: str) -> Callable[[Tensor], Tensor]:
    """A part of a layer with other weights."""
    part, start = module.get_submodule(name), f"{name}."
    own = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
    return lambda x: torch.func.functional_call(part, own, (x,))


def _convolved(module: Any, weights: Weights, window: Tensor) -> Tensor:
    """The last output of the causal convolution over a window [B, K, E], activated."""
    found = conv1d(
        window.mT,
        weights["conv1d.conv.weight"],
        weights.get("conv1d.conv.bias"),
        groups=module.conv1d.groups,
    )
    return silu(found[..., 0])


def _slstm(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Equations 8-18; the gates read the convolution, z and o the input itself."""
    config = module.config
    if config.function != "slstm":
        raise ValueError(f"its function is {config.function!r}; only 'slstm' is known")
    window = x.view(len(x), max(config.conv1d_kernel_size, 1), -1)
    last = window[:, -1]
    seen = _convolved(module, weights, window) if config.conv1d_kernel_size else last
    # The layer hands its "fgate" to the cell as the input gate, and its "igate" as the forget gate.
    names = {"fgate": seen, "igate": seen, "zgate": last, "ogate": last}
    given = torch.cat([_of(module, weights, n)(read) for n, read in names.items()], -1)
    kernel = weights["slstm_cell._recurrent_kernel_"]  # [heads, gates * D, D]
    by_head = s["h"].view(len(x), len(kernel), 1, -1) @ kernel.mT
    recurrent = by_head.view(len(x), len(kernel), 4, -1).transpose(1, 2).flatten(1)
    i, f, z, o = (given + recurrent + weights["slstm_cell._bias_"]).chunk(4, -1)
    kept = s["m"] + logsigmoid(f)
    m = torch.where(s["n"] == 0, i, torch.maximum(i, kept))  # in the first step nothing is kept
    into = gate("input", torch.exp(i - m))
    forget = gate("forget", torch.exp((kept - m).clamp(max=0)))  # as min(exp, 1), never infinite
    c = forget * s["c"] + into * gate("cell", torch.tanh(z))
    n = forget * s["n"] + into
    h = gate("output", torch.sigmoid(o)) * c / n
    y = _of(module, weights, "group_norm")(h.view(len(x), config.num_heads, 1, -1))
    return {"h": h, "c": c, "n": n, "m": m, "y": y.flatten(1)}


def _mlstm(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Equations 19-27, for which the package computes all steps at once."""
    config, count = module.config, len(x)
    heads = config.num_heads
    both = _of(module, weights, "proj_up")(x.view(count, config.conv1d_kernel_size, -1))
    inner, z = both.chunk(2, -1)
    seen, last = _convolved(module, weights, inner), inner[:, -1]
    read = {"q_proj": seen, "k_proj": seen, "v_proj": last}
    q, k, v = (_of(module, weights, name)(values) for name, values in read.items())
    gates = torch.cat((q, k, v), -1)
    i = _of(module, weights, "mlstm_cell.igate")(gates)
    kept = logsigmoid(_of(module, weights, "mlstm_cell.fgate")(gates)) + s["m"]
    q, k, v = (values.view(count, heads, -1) for values in (q, k, v))
    m = torch.where((s["n"].view_as(k) == 0).all(-1), i, torch.maximum(i, kept))
    new, h = _matrix_memory(q, k, v, (i, kept, m), s, EPS)
    normed = _of(module, weights, "mlstm_cell.outnorm")(h.unsqueeze(2)).flatten(1)
    out = (normed + weights["learnable_skip"] * seen) * silu(z[:, -1])
    return {**new, "y": _of(module, weights, "proj_down")(out)}


def _matrix_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: tuple[Tensor, Tensor, Tensor],
    s: Mapping[str, Tensor],
    eps: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Equations 19-27 by heads, [B, heads, D]: the new state, and what is read of it.

    The gates are the logarithms of the input gate and of what the forget gate keeps, and the
    largest of the two, which both are divided by.
    """
    i, kept, m = gates
    n, C = s["n"].view_as(k), s["C"].view(*k.shape, -1)
    into = torch.exp(i - m)[..., None] * k
    forget = torch.exp((kept - m).clamp(max=0))[..., None]  # never infinite where n is 0
    C = forget[..., None] * C + into[..., None] * v[..., None, :]
    n = forget * n + into
    q = q / math.sqrt(k.shape[2])
    size = torch.maximum((q * n).sum(-1).abs(), torch.exp(-m))[..., None] + eps
    h = (q[..., None] * C).sum(-2) / size
    return {"C": C.flatten(1), "n": n.flatten(1), "m": m}, h


def _capped_mlstm(
    module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The mLSTM of xLSTM 7B, whose m starts from 0."""
    config = module.config
    cap = config.gate_soft_cap

    def read(name: str) -> Tensor:
        return _of(module, weights, name)(x)

    if config.weight_mode == "fused":
        sizes = [module.qk_dim, module.qk_dim, module.v_dim, module.v_dim]
        q, k, v, o = torch.split(read("qkv_opreact"), sizes, -1)
        i, f = read("ifgate_preact").chunk(2, -1)
    else:
        q, k, v, o = map(read, ("q", "k", "v", "ogate_preact"))
        i, f = map(read, ("igate_preact", "fgate_preact"))
    if cap is not None:
        i, f = cap * torch.tanh(i / cap), cap * torch.tanh(f / cap)
    q, k, v = (values.view(len(x), config.num_heads, -1) for values in (q, k, v))
    kept = logsigmoid(f) + s["m"]
    gates = (i, kept, torch.maximum(kept, i))
    new, h = _matrix_memory(q, k, v, gates, s, getattr(config, "mlstm_backend", config).eps)
    normed = _of(module, weights, "multihead_norm")(h.unsqueeze(1)).flatten(1)
    return {**new, "y": _of(module, weights, "out_proj")(torch.sigmoid(o) * normed)}


def _read_capped(module: Any, arguments: Mapping[str, Any], returned: Any) -> CallTensors:
    """A call of an mLSTM of xLSTM 7B, parts of which may run in a precision of their own."""
    x, state = arguments["x"], arguments.get("state") or ()
    given = {piece: part.detach().flatten(1) for piece, part in zip("Cnm", state, strict=False)}
    backend = getattr(module.config, "mlstm_backend", module.config)
    narrow = []
    if module.config.norm_reduction_force_float32:
        narrow.append(torch.float32)
    if "inference" in backend.mode and x.shape[1] % backend.chunk_size:  # the rest, by steps
        narrow.append(getattr(torch, backend.inference_state_dtype))
    rounding = max((torch.finfo(dtype).eps for dtype in narrow), default=0.0)
    return CallTensors(x, given, {OUTPUT: returned[0]}, others=tuple(state), rounding=rounding)


def _window(arguments: Mapping[str, Any]) -> Tensor:
    """The inputs that the convolution of each step sees, the latest last, [B, T, K * features]."""
    x, width = arguments["x"], max(arguments["self"].config.conv1d_kernel_size, 1)
    return pad(x, (0, 0, width - 1, 0)).unfold(1, width, 1).mT.flatten(2)


def _features(module: Any) -> int:
    return int(module.config.embedding_dim)


def _inner(module: Any) -> int:
    return int(module.config._inner_embedding_dim)


def _heads(module: Any) -> int:
    return int(module.config.num_heads)


def _matrices(module: Any) -> int:
    return _inner(module) ** 2 // _heads(module)


def _key_dim(module: Any) -> int:
    return int(module.qk_dim)


def _keys_by_values(module: Any) -> int:
    return int(module.qk_dim) * int(module.v_dim) // _heads(module)


def _output(returned: Any) -> Tensor:
    found: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return found


ROUTES_OF_MLSTM = tuple(f"{piece}->{to}" for piece in "Cnm" for to in ("C", "n", "m", "y"))
"""Its gates read the input alone, so that no route crosses recurrent weights."""

CAPPED_MLSTM = Declaration(
    _capped_mlstm,
    state={"C": _keys_by_values, "n": _key_dim, "m": _heads},
    readout="y",
    batch_first=True,
    carousel=ROUTES_OF_MLSTM,
    reading=_read_capped,
)

XLSTM: Mapping[str, Declaration] = {
    "xlstm.blocks.slstm.layer.sLSTMLayer": Declaration(
        _slstm,
        state=dict.fromkeys("hcnm", _features),
        readout="y",
        x=_window,
        initial=(),
        output=_output,
        batch_first=True,
    ),
    "xlstm.blocks.mlstm.layer.mLSTMLayer": Declaration(
        _mlstm,
        state={"C": _matrices, "n": _inner, "m": _heads},
        readout="y",
        x=_window,
        initial=(),
        output=_output,
        batch_first=True,
        carousel=ROUTES_OF_MLSTM,
    ),
    "xlstm.xlstm_large.model.mLSTMLayer": CAPPED_MLSTM,
    "transformers.models.xlstm.modeling_xlstm.xLSTMLayer": CAPPED_MLSTM,
}
"""Declarations by the qualified names of classes.

The mLSTM of xLSTM 7B starts from the values of the state that it was given; a gradient that goes
through that state into an earlier call is refused. The others start from zero.
"""
