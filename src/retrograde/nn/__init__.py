"""Every recurrence of the package as a trainable module, used as torch.nn's are."""

from retrograde.nn.clip_inside import ClippedInside, clip_inside, unclip
from retrograde.nn.initialisation import initialisations, initialise
from retrograde.nn.linear import (
    LRU,
    MLSTM,
    GatedLinearAttention,
    MinGRU,
    MinLSTM,
    SelectiveScan,
)
from retrograde.nn.modules import GRU, LSTM, RNN
from retrograde.nn.recurrent import AbstractRecurrent
from retrograde.nn.slstm import SLSTM

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "MLSTM",
    "RNN",
    "SLSTM",
    "AbstractRecurrent",
    "ClippedInside",
    "GatedLinearAttention",
    "MinGRU",
    "MinLSTM",
    "SelectiveScan",
    "clip_inside",
    "initialisations",
    "initialise",
    "unclip",
]
