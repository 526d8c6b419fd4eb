"""Every recurrence of the package as a trainable module, used as torch.nn's are."""

from retrograde.nn.clip_inside import ClippedInside, clip_inside, unclip
from retrograde.nn.initialisation import initialisations, initialise
from retrograde.nn.linear import MinGRU, MinLSTM
from retrograde.nn.modules import GRU, LSTM, RNN
from retrograde.nn.recurrent import AbstractRecurrent

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "AbstractRecurrent",
    "ClippedInside",
    "MinGRU",
    "MinLSTM",
    "clip_inside",
    "initialisations",
    "initialise",
    "unclip",
]
