"""Every cell under test, one row each: a new cell is one more row and gets every check."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrograde.cells import GRU, LSTM, AbstractCell, AbstractLayer, Elman, Stacked

T, B, INPUTS, H = 5, 3, 2, 4  # all different, so that a swapped axis shows


@dataclass(frozen=True)
class Problem:
    name: str
    make: Callable[..., AbstractCell]
    torch: Callable[[], nn.RNNBase] | None = None


def _weights(gates: int, inputs: int, bias: bool, generator: torch.Generator) -> dict[str, Tensor]:
    shapes = {"weight_ih": (gates * H, inputs), "weight_hh": (gates * H, H)}
    if bias:
        shapes |= {"bias_ih": (gates * H,), "bias_hh": (gates * H,)}
    return {
        name: 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def _layer(kind: type[AbstractLayer], gates: int, *, bias: bool = True, **options: str):
    def make(seed: int = 0, inputs: int = INPUTS) -> AbstractLayer:
        generator = torch.Generator().manual_seed(seed)
        return kind(**_weights(gates, inputs, bias, generator), **options)

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
    Problem("mixed-stack", _stack(TANH, GRU_, LSTM_)),
]
