"""Every cell under test, one row each: a new cell is one more row and gets every check."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from retrograde.cells import (
    GRU,
    GRU2014,
    LSTM,
    AbstractCell,
    AbstractLayer,
    Elman,
    Stacked,
    generations,
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


def _stack(*makers: Callable[..., AbstractCell]):
    def make(seed: int = 0) -> Stacked:
        sizes = [INPUTS] + [H] * (len(makers) - 1)
        pairs = enumerate(zip(makers, sizes, strict=True))
        return Stacked(tuple(maker(seed + i, inputs=size) for i, (maker, size) in pairs))

    return make


def _torch(kind: type[nn.RNNBase], layers: int = 1, **options: object):
    return lambda: kind(INPUTS, H, num_layers=layers, **options).double()


TANH = _layer(Elman, 1)
RELU = _layer(Elman, 1, activation="relu")
LSTM_ = _layer(LSTM, 4)
GRU_ = _layer(GRU, 3)
GRU2014_ = _layer(GRU2014, 3)
FAMILY = {row.name: _layer(LSTM, len(row.gates), generation=row.name) for row in TABLE}

PROBLEMS = [
    Problem("elman-tanh", _stack(TANH), _torch(nn.RNN)),
    Problem("elman-relu", _stack(RELU), _torch(nn.RNN, nonlinearity="relu")),
    Problem("elman-sigmoid", _layer(Elman, 1, activation="sigmoid")),
    Problem("elman-identity", _layer(Elman, 1, activation="identity")),
    Problem("lstm", _stack(LSTM_), _torch(nn.LSTM)),
    Problem("lstm-no-bias", _stack(_layer(LSTM, 4, bias=False)), _torch(nn.LSTM, bias=False)),
    Problem("gru", _stack(GRU_), _torch(nn.GRU)),
    Problem("gru-no-bias", _stack(_layer(GRU, 3, bias=False)), _torch(nn.GRU, bias=False)),
    Problem("lstm-3-layers", _stack(LSTM_, LSTM_, LSTM_), _torch(nn.LSTM, 3)),
    Problem("gru-2-layers", _stack(GRU_, GRU_), _torch(nn.GRU, 2)),
    Problem("gru-2014", GRU2014_),
    Problem("gru-2014-no-bias", _layer(GRU2014, 3, bias=False)),
    *(Problem(name, make) for name, make in FAMILY.items() if name != "lstm-2000"),
    Problem("mixed-stack", _stack(TANH, GRU_, LSTM_)),
    Problem("stack-of-generations", _stack(FAMILY["fgr"], GRU2014_, FAMILY["cifg"])),
]
