"""Every cell under test, one row each: a new cell is one more row and gets every check."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from retrograde.cells import (
    GRU,
    GRU2014,
    LRU,
    LSTM,
    MLSTM,
    SLSTM,
    AbstractCell,
    AbstractLayer,
    AbstractLinear,
    Elman,
    GatedLinearAttention,
    MinGRU,
    MinLSTM,
    ProjectedLSTM,
    SelectiveScan,
    SideBySide,
    Stacked,
    from_function,
    gate,
    generations,
    keras_cell,
    lru,
    matrix_memory,
    selective,
)
from retrograde.cells.base import standard_shapes
from retrograde.cells.generations import TABLE

T, B, INPUTS, H = 5, 3, 2, 4  # all different, so that a swapped axis shows


@dataclass(frozen=True)
class Problem:
    name: str
    make: Callable[..., AbstractCell]
    torch: Callable[[], nn.RNNBase] | None = None


def _layer(kind: type[AbstractLayer], gates: int, *, bias: bool = True, **options: str):
    """A maker of layers whose weights are drawn at random."""
    rows = generations[options["generation"]].shapes if "generation" in options else None

    def make(seed: int = 0, inputs: int = INPUTS) -> AbstractLayer:
        generator = torch.Generator().manual_seed(seed)
        shapes = rows(inputs, H) if rows else standard_shapes(gates, inputs, H)
        weights = {
            name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
            if bias or not name.startswith("bias")
        }
        return kind(**weights, **options)

    return make


def stack(*makers: Callable[..., AbstractCell]):
    def make(seed: int = 0) -> Stacked:
        sizes = [INPUTS] + [H] * (len(makers) - 1)
        pairs = enumerate(zip(makers, sizes, strict=True))
        return Stacked(tuple(maker(seed + i, inputs=size) for i, (maker, size) in pairs))

    return make


def minimal_gated_unit(w, x, h):
    """Zhou et al., "Minimal Gated Unit for Recurrent Neural Networks" (2016): one gate."""
    f = torch.sigmoid(x @ w["W_f"].T + h @ w["R_f"].T + w["b_f"])
    n = torch.tanh(x @ w["W_n"].T + (f * h) @ w["R_n"].T + w["b_n"])
    return (1 - f) * h + f * n


def mgu_with_gates(w, x, h):
    """The same, its gates named; the second reads the first."""
    f = gate("forget", torch.sigmoid(x @ w["W_f"].T + h @ w["R_f"].T + w["b_f"]))
    n = gate("candidate", torch.tanh(x @ w["W_n"].T + (f * h) @ w["R_n"].T + w["b_n"]))
    return (1 - f) * h + f * n


def slstm(w, x, s):
    """Beck et al., "xLSTM" (2024), as coded there: exponential gates, in units of exp(m)."""
    a_i, a_f, a_z, a_o = (x @ w["W"].T + s["h"] @ w["R"].T + w["b"]).chunk(4, -1)
    log_f = torch.nn.functional.logsigmoid(a_f) + s["m"]
    m = torch.maximum(a_i, log_f)
    i, f = torch.exp(a_i - m), torch.exp(log_f - m)
    c = f * s["c"] + i * torch.tanh(a_z)
    n = f * s["n"] + i
    return {"h": torch.sigmoid(a_o) * c / n, "c": c, "n": n, "m": m}


SLSTM_CAROUSEL = tuple(f"{piece}->{to}" for piece in "cnm" for to in "hcnm")


def leaky(w, x, s):
    """Pieces of different sizes, a scalar weight, and an output that is not the first piece."""
    slow = w["leak"] * s["slow"] + x @ w["W"].T
    return {"slow": slow, "h": torch.tanh(s["h"] @ w["R"].T + slow @ w["V"].T)}


def _own(step, shapes, state, carousel=()):
    """A maker of cells from a step function, its weights drawn at random."""

    def make(seed: int = 0, inputs: int = INPUTS) -> AbstractCell:
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes(inputs).items()
        }
        return from_function(step, weights, input_size=inputs, state=state, carousel=carousel)

    return make


def projected(seed: int = 0, inputs: int = INPUTS) -> ProjectedLSTM:
    generator = torch.Generator().manual_seed(seed)
    outputs = 3
    shapes = standard_shapes(4, inputs, H) | {"weight_hh": (4 * H, outputs)}
    weights = {
        name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (shapes | {"weight_hr": (outputs, H)}).items()
    }
    return ProjectedLSTM(**weights)


def _both_ways(*makers: Callable[..., AbstractCell]):
    """Cells side by side, as the directions of a layer are."""

    def make(seed: int = 0) -> SideBySide:
        ends = tuple(f"_{number}" for number in range(len(makers)))
        return SideBySide(tuple(m(seed + i) for i, m in enumerate(makers)), ends)

    return make


def _masked(make: Callable[..., Stacked]):
    """A stack that reads the masks of a dropout between its layers."""
    return lambda seed=0: replace(make(seed), masked=True)


def _torch(kind: type[nn.RNNBase], layers: int = 1, **options: object):
    return lambda: kind(INPUTS, H, num_layers=layers, **options).double()


def _linear(kind: type[AbstractLinear], shapes, **options: object):
    """A maker of linear recurrences whose weights are drawn at random."""

    def make(seed: int = 0, inputs: int = INPUTS) -> AbstractLinear:
        generator = torch.Generator().manual_seed(seed)
        weights = {
            name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes(inputs).items()
        }
        return kind(**weights, **options)

    return make


def _rows(gates: int):
    return lambda inputs: {"weight_ih": (gates * H, inputs), "bias_ih": (gates * H,)}


TANH = _layer(Elman, 1)
RELU = _layer(Elman, 1, activation="relu")
LSTM_ = _layer(LSTM, 4)
GRU_ = _layer(GRU, 3)
GRU2014_ = _layer(GRU2014, 3)
MGU = _own(
    minimal_gated_unit,
    lambda inputs: {
        f"{letter}_{gate}": shape
        for gate in "fn"
        for letter, shape in {"W": (H, inputs), "R": (H, H), "b": (H,)}.items()
    },
    state=H,
)
MGU_GATES = _own(
    mgu_with_gates,
    lambda inputs: {
        f"{letter}_{gate}": shape
        for gate in "fn"
        for letter, shape in {"W": (H, inputs), "R": (H, H), "b": (H,)}.items()
    },
    state=H,
)
OWN_SLSTM = _own(
    slstm,
    lambda inputs: {"W": (4 * H, inputs), "R": (4 * H, H), "b": (4 * H,)},
    state={"h": H, "c": H, "n": H, "m": H},
    carousel=SLSTM_CAROUSEL,
)
LEAKY = _own(
    leaky,
    lambda inputs: {"leak": (), "W": (3, inputs), "V": (H, 3), "R": (H, H)},
    state={"slow": 3, "h": H},
    carousel=("slow->slow", "slow->h"),
)
MINGRU = _linear(MinGRU, _rows(2))
MINGRU_LOG = _linear(MinGRU, _rows(2), form="log")
MINLSTM = _linear(MinLSTM, _rows(3))
LRU_ = _linear(LRU, lambda inputs: lru.shapes(H, H, 3))
SELECTIVE = _linear(SelectiveScan, lambda inputs: selective.shapes(inputs, 2, 1))
ATTENTION = _linear(
    GatedLinearAttention,
    lambda inputs: matrix_memory.attention_shapes(inputs, H, 2, 1),
    tau=2.0,
    scale=0.7,
)
MLSTM_ = _linear(MLSTM, lambda inputs: matrix_memory.mlstm_shapes(inputs, H, 2))
SLSTM_ = partial(_layer(SLSTM, 4), 1)  # with seed 0 a normaliser comes near to 0
FAMILY = {row.name: _layer(LSTM, len(row.gates), generation=row.name) for row in TABLE}


def _keras(kind, gates, biases=1, **options):
    """A maker of cells of Keras with random weights."""

    def make(seed: int = 0, inputs: int = INPUTS) -> AbstractCell:
        generator = torch.Generator().manual_seed(seed)
        shapes = (inputs, gates * H), (H, gates * H), (biases, gates * H)[biases == 1 :]
        drawn = (0.6 * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        return keras_cell(kind, *drawn, **options)

    return make


KERAS_LSTM, KERAS_GRU = _keras("LSTM", 4), _keras("GRU", 3, biases=2)
KERAS_GRU_2014 = _keras("GRU", 3, reset_after=False)
KERAS_RNN = _keras("SimpleRNN", 1, activation="relu")

PROBLEMS = [
    Problem("elman-tanh", stack(TANH), _torch(nn.RNN)),
    Problem("elman-relu", stack(RELU), _torch(nn.RNN, nonlinearity="relu")),
    Problem("elman-sigmoid", _layer(Elman, 1, activation="sigmoid")),
    Problem("elman-identity", _layer(Elman, 1, activation="identity")),
    Problem("lstm", stack(LSTM_), _torch(nn.LSTM)),
    Problem("lstm-no-bias", stack(_layer(LSTM, 4, bias=False)), _torch(nn.LSTM, bias=False)),
    Problem("gru", stack(GRU_), _torch(nn.GRU)),
    Problem("gru-no-bias", stack(_layer(GRU, 3, bias=False)), _torch(nn.GRU, bias=False)),
    Problem("lstm-3-layers", stack(LSTM_, LSTM_, LSTM_), _torch(nn.LSTM, 3)),
    Problem("gru-2-layers", stack(GRU_, GRU_), _torch(nn.GRU, 2)),
    Problem("gru-2014", GRU2014_),
    Problem("gru-2014-no-bias", _layer(GRU2014, 3, bias=False)),
    *(Problem(name, make) for name, make in FAMILY.items() if name != "lstm-2000"),
    Problem("projected-lstm", stack(projected), _torch(nn.LSTM, proj_size=3)),
    Problem("both-directions", _both_ways(LSTM_, LSTM_)),
    Problem("gru-beside-a-mixed-stack", _both_ways(GRU_, stack(TANH, LSTM_))),
    Problem("masked-stack", _masked(stack(TANH, GRU_, LSTM_))),
    Problem("mixed-stack", stack(TANH, GRU_, LSTM_)),
    Problem("stack-of-generations", stack(FAMILY["fgr"], GRU2014_, FAMILY["cifg"])),
    Problem("linear-lru", LRU_),
    Problem("linear-mlstm", MLSTM_),
    Problem("slstm", SLSTM_),
    Problem("own-mgu", MGU),
    Problem("own-slstm", OWN_SLSTM),
    Problem("own-leaky", LEAKY),
    Problem("stack-with-own", stack(MGU_GATES, LSTM_, LEAKY)),
]

MORE = [
    Problem("linear-min-gru", MINGRU),
    Problem("linear-min-lstm", stack(MINGRU_LOG, MINLSTM)),
    Problem("linear-selective-scan", SELECTIVE),
    Problem("linear-attention", ATTENTION),
    Problem("stack-of-keras", stack(KERAS_LSTM, KERAS_GRU)),
    Problem("keras-gru-reset-before", KERAS_GRU_2014),
    Problem("keras-simple-rnn", KERAS_RNN),
]
"""Cells without a kind of edge or state that PROBLEMS lacks, for the conformance table alone."""
