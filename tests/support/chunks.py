"""Linearised steps of any cell, drawn at random, for tests of the compiled backend."""

import torch

from retrograde.cells import GRU, GRU2014, LSTM, Elman
from retrograde.cells.base import standard_shapes
from retrograde.cells.generations import TABLE, generations
from retrograde.engine import unroll


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cell_of(kind, inputs, hidden, dtype=torch.float64):
    others = {"gru": (GRU, 3), "gru-2014": (GRU2014, 3), "elman": (Elman, 1)}
    make, gates = others.get(kind, (LSTM, 0))
    shapes = standard_shapes(gates, inputs, hidden)
    if make is LSTM:
        shapes = generations[kind].shapes(inputs, hidden)
    weights = {
        name: 0.7 * drawn(*shape, dtype=dtype, seed=n)
        for n, (name, shape) in enumerate(shapes.items())
    }
    return make(**weights, **({"generation": kind} if make is LSTM else {}))


KINDS = (*(row.name for row in TABLE), "gru", "gru-2014", "elman")


def chunk_of(cell, steps, batch):
    dtype = next(iter(cell.parameters.values())).dtype
    x = drawn(steps, batch, cell.input_size, dtype=dtype, seed=9)
    initial = drawn(batch, cell.state_size, dtype=dtype, seed=8)
    return unroll(cell, x, initial).chunk(0, steps)
