"""Recurrences of other packages: which of their classes steps how, and how it is called.

None of the packages is needed; a class is found by its qualified name, or by that of a class that
it inherits from. What a declaration cannot know (a dropout that acts between layers, a batch norm
in training mode) makes the replay part from the module, which is an error and no wrong answer.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells import GRU, LSTM, AbstractCell, Elman
from retrograde.declarations.declaration import Declaration
from retrograde.declarations.linear import LINEAR
from retrograde.declarations.xlstm import XLSTM

CELL_STATE = ("h", "c")

Weights = Mapping[str, Tensor]


def _ealstm(weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kratzert et al. 2019, equations 1-6: the static features open the input gate."""
    inputs = weights["dynamic_gates.weight_ih"].shape[0]
    dynamic, static = x[:, :inputs], x[:, inputs:]
    i = torch.sigmoid(static @ weights["input_gate.weight"].T + weights["input_gate.bias"])
    recurrent = s["h"] @ weights["dynamic_gates.weight_hh"]
    gates = recurrent + dynamic @ weights["dynamic_gates.weight_ih"] + weights["dynamic_gates.bias"]
    f, o, g = gates.chunk(3, -1)
    c = torch.sigmoid(f) * s["c"] + i * torch.tanh(g)
    return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}


def _static_beside_dynamic(arguments: Mapping[str, Any]) -> Tensor:
    """The features of a basin as features of every step, [B, T, *], where nothing is embedded."""
    data = arguments["data"]
    dynamic = data["x_d"]
    if isinstance(dynamic, Mapping):
        dynamic = torch.cat(list(dynamic.values()), -1)
    static = [data[name] for name in ("x_s", "x_one_hot") if name in data]
    every = torch.cat(static, -1).unsqueeze(1).expand(-1, dynamic.shape[1], -1)
    return torch.cat((dynamic, every), -1)


def _ligru(module: Any, weights: Weights, x: Tensor, h: Tensor) -> Tensor:
    """Ravanelli et al. 2018: one gate, and a candidate without bounds."""
    if module.training and isinstance(module.norm, nn.BatchNorm1d):
        raise RuntimeError(
            "its batch norm mixes samples and steps in training mode; record the pass in eval mode "
            "or with normalization='layernorm'"
        )
    w = torch.func.functional_call(module.w, _part(weights, "w"), (x,))
    if module.normalize:
        w = torch.func.functional_call(module.norm, _part(weights, "norm"), (w,))
    u = torch.func.functional_call(module.u, _part(weights, "u"), (h,))
    if hasattr(module, "layer_norm"):  # the stabilised one, Moumen and Parcollet 2023
        u = torch.func.functional_call(module.layer_norm, _part(weights, "layer_norm"), (u,))
    candidate, update = (w + u).chunk(2, -1)
    z = torch.sigmoid(update)
    new: Tensor = z * h + (1 - z) * module.act(candidate)
    return new


def _with_time(arguments: Mapping[str, Any]) -> Tensor:
    """The input of one step, and the time that it takes as its last feature."""
    x, _, time = list(arguments.values())[:3]
    time = torch.as_tensor(time, dtype=x.dtype, device=x.device)
    return torch.cat((x, time.reshape(-1, 1).expand(len(x), 1)), -1)


def _timed(module: Any, weights: Weights, x: Tensor, h: Tensor) -> Tensor:
    """A step of a closed-form cell over some time."""
    given = (x[:, :-1], h, x[:, -1:])
    return torch.func.functional_call(module, dict(weights), given)[1]  # type: ignore[no-any-return]


def _wired(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of a cell of several layers, of which the last is the output."""
    given = (x[:, :-1], s["h"], x[:, -1:])
    y, h = torch.func.functional_call(module, dict(weights), given)
    return {"y": y, "h": h}


def _ltc(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A liquid cell, which keeps its weights in a dictionary of its own."""
    other: Any = copy.copy(module)
    other._params = {**other._params, **weights}
    y, h = other.forward(x[:, :-1], s["h"], x[:, -1:])
    return {"y": y, "h": h}


def _custom_lstm(
    module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """An LSTM with layer norms of its gates and its cell state."""
    gates = x @ weights["x2g.weight"].T + s["h"] @ weights["p2g.weight"].T
    gates = gates + weights.get("x2g.bias", 0)
    gates = torch.func.functional_call(module.g_norm, _part(weights, "g_norm"), (gates,))
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * s["c"] + torch.sigmoid(i) * torch.tanh(g)
    c = torch.func.functional_call(module.c_norm, _part(weights, "c_norm"), (c,))
    return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}


def _dp_cells(module: Any, weights: Weights) -> list[AbstractCell]:
    """The cells of a layer for differential privacy, whose steps are torch's."""
    kinds = {"DPLSTMCell": LSTM, "DPGRUCell": GRU, "DPRNNCell": Elman}
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    def weight(parameter: Tensor | None) -> Tensor | None:
        return None if parameter is None else weights[names[id(parameter)]]

    cells: list[AbstractCell] = []
    for cell in module.cells:
        parameters = (cell.ih.weight, cell.hh.weight, cell.ih.bias, cell.hh.bias)
        how = {"activation": cell.nonlinearity} if hasattr(cell, "nonlinearity") else {}
        cells.append(kinds[type(cell).__name__](*map(weight, parameters), **how))
    return cells


def _qrnn(module: Any, weights: Weights, x: Tensor, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bradbury et al. 2017, equations 3-5: f keeps what is new, as their implementation has it."""
    parts = (x @ weights["linear.weight"].T + weights["linear.bias"]).chunk(
        3 if module.output_gate else 2, -1
    )
    f = torch.sigmoid(parts[1])
    c = f * torch.tanh(parts[0]) + (1 - f) * s["c"]
    return {"h": torch.sigmoid(parts[2]) * c if module.output_gate else c, "c": c}


def _window(arguments: Mapping[str, Any]) -> Tensor:
    """The input of every step, beside that of the step before where the window holds two."""
    x = arguments["X"]
    if arguments["self"].window == 1:
        return x  # type: ignore[no-any-return]
    return torch.cat((x, torch.cat((torch.zeros_like(x[:1]), x[:-1]))), -1)


def _part(weights: Weights, name: str) -> dict[str, Tensor]:
    """The weights of a part of a module."""
    start = f"{name}."
    return {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}


KNOWN: Mapping[str, Declaration] = {
    "torchrecurrent.base.SingleStateCellBase": Declaration(),
    "torchrecurrent.base.DoubleStateCellBase": Declaration(state=CELL_STATE),
    "torchrecurrent.base.DecoupledSingleStateCellBase": Declaration(readout="y"),
    "torchrecurrent.base.DecoupledDoubleStateCellBase": Declaration(state=CELL_STATE, readout="y"),
    "neuralhydrology.modelzoo.ealstm.EALSTM": Declaration(
        _ealstm,
        state=CELL_STATE,
        x=_static_beside_dynamic,
        initial=(),
        output={"h": "h_n", "c": "c_n"},
        batch_first=True,
        weights=("input_gate", "dynamic_gates"),
    ),
    "speechbrain.nnet.RNN.LiGRU_Layer": Declaration(_ligru, batch_first=True),
    "speechbrain.nnet.RNN.SLiGRU_Layer": Declaration(_ligru, batch_first=True),
    "ncps.torch.cfc_cell.CfCCell": Declaration(_timed, x=_with_time, initial=1),
    "ncps.torch.wired_cfc_cell.WiredCfCCell": Declaration(
        _wired, readout="y", x=_with_time, initial=1
    ),
    "ncps.torch.ltc_cell.LTCCell": Declaration(_ltc, readout="y", x=_with_time, initial=1),
    "torchaudio.models.rnnt._CustomLSTM": Declaration(
        _custom_lstm, state=CELL_STATE, batch_first=False
    ),
    "opacus.layers.dp_rnn.DPLSTM": Declaration(cell=_dp_cells, state=CELL_STATE),
    "opacus.layers.dp_rnn.DPGRU": Declaration(cell=_dp_cells),
    "opacus.layers.dp_rnn.DPRNN": Declaration(cell=_dp_cells),
    "torchqrnn.qrnn.QRNNLayer": Declaration(
        _qrnn, state="c", readout="h", x=_window, initial=1, batch_first=False
    ),
    **LINEAR,
    **XLSTM,
}
"""Declarations by the qualified names of classes."""
