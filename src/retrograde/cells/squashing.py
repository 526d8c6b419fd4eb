"""Squashing functions by name, each with its derivative in terms of its own value.

The last two are those of Hochreiter and Schmidhuber (1997), appendix equations 4 and 5: the cell
input is squashed into [-2, 2], the cell state into [-1, 1].
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SQUASHING: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # name: (y = phi(a), phi'(a) written in terms of y)
    "tanh": (torch.tanh, lambda y: 1 - y * y),
    "relu": (torch.relu, lambda y: (y > 0).to(y.dtype)),
    "sigmoid": (torch.sigmoid, lambda y: y * (1 - y)),
    "identity": (lambda a: a, torch.ones_like),
    "4*sigmoid-2": (lambda a: 4 * torch.sigmoid(a) - 2, lambda y: 1 - y * y / 4),
    "2*sigmoid-1": (lambda a: 2 * torch.sigmoid(a) - 1, lambda y: (1 - y * y) / 2),
}

STEEPEST: Mapping[str, float] = {
    "tanh": 1.0,
    "relu": 1.0,
    "sigmoid": 1 / 4,
    "identity": 1.0,
    "4*sigmoid-2": 1.0,
    "2*sigmoid-1": 1 / 2,
}
"""gamma, the largest slope of each."""
