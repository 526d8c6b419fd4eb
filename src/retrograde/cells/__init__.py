"""The recurrences: one file each, forward and derivative side by side."""

from retrograde.cells.base import AbstractCell, AbstractLayer, CellAdjoint, CellStep
from retrograde.cells.elman import Elman
from retrograde.cells.gru import GRU
from retrograde.cells.lstm import LSTM
from retrograde.cells.stacked import Stacked

__all__ = [
    "GRU",
    "LSTM",
    "AbstractCell",
    "AbstractLayer",
    "CellAdjoint",
    "CellStep",
    "Elman",
    "Stacked",
]
