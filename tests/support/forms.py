"""Small layers and cells of torch, their sizes, and the passes that tests of recording make."""

import torch
from torch import nn

import retrograde

D = torch.float64
T, B, INPUTS, H = 6, 3, 2, 4
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}
EXACT = 1e-12  # float64, sums of a few dozen products
RESETS = torch.ones(T, B, 1, dtype=D)
RESETS[2, 0] = RESETS[4, 1] = 0


def sequence(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def recorded(model, run):
    with retrograde.record(model) as recording:
        run().backward()
    return recording


def exact(model, run):
    """The flow of the one layer, its residual checked."""
    flow = retrograde.decompose(recorded(model, run))
    assert flow.residual < EXACT
    return flow


def parts_of(state):
    return (state,) if isinstance(state, torch.Tensor) else state
