"""The recurrences: one file each, forward and derivative side by side."""

from retrograde.cells.base import AbstractCell, AbstractLayer, CellStep
from retrograde.cells.carrying import Carrying, stepping
from retrograde.cells.clipped import Clipped, clipped, policy_of, unclipped
from retrograde.cells.cut import Cut, truncated
from retrograde.cells.elman import Elman
from retrograde.cells.from_function import from_function
from retrograde.cells.gates import ACTIVATIONS, Activation, Gate
from retrograde.cells.generations import Generation, generations
from retrograde.cells.graph import Graph
from retrograde.cells.gru import GRU, GRU2014
from retrograde.cells.keras import KerasCell, keras_cell
from retrograde.cells.linear import AbstractLinear
from retrograde.cells.lru import LRU
from retrograde.cells.lstm import LSTM
from retrograde.cells.marks import gate
from retrograde.cells.matrix_memory import MLSTM, GatedLinearAttention
from retrograde.cells.minimal import MinGRU, MinLSTM
from retrograde.cells.position import Position
from retrograde.cells.projected import ProjectedLSTM
from retrograde.cells.reverse_mode import CellAdjoint, pull_back
from retrograde.cells.selective import SelectiveScan
from retrograde.cells.side_by_side import SideBySide
from retrograde.cells.slstm import SLSTM
from retrograde.cells.stacked import Stacked

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "GRU2014",
    "LRU",
    "LSTM",
    "MLSTM",
    "SLSTM",
    "AbstractCell",
    "AbstractLayer",
    "AbstractLinear",
    "Activation",
    "Carrying",
    "CellAdjoint",
    "CellStep",
    "Clipped",
    "Cut",
    "Elman",
    "Gate",
    "GatedLinearAttention",
    "Generation",
    "Graph",
    "KerasCell",
    "MinGRU",
    "MinLSTM",
    "Position",
    "ProjectedLSTM",
    "SelectiveScan",
    "SideBySide",
    "Stacked",
    "clipped",
    "from_function",
    "gate",
    "generations",
    "keras_cell",
    "policy_of",
    "pull_back",
    "stepping",
    "truncated",
    "unclipped",
]
