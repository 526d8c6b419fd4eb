"""The tasks on which the claims about recurrent networks rest, and small studies of real networks.

Each task draws its sequences, judges answers as its paper does, and tells the score of guessing.
`forecast` needs the `demo` extra, for Lightning, and `digits` the `study` extra, for scikit-learn.
"""

from retrograde.tasks.copying import Copying
from retrograde.tasks.digits import SequentialDigits
from retrograde.tasks.reber import ContinualReber, EmbeddedReber
from retrograde.tasks.remembered_symbol import DistractedSymbol, FirstSymbol, RememberedSymbol
from retrograde.tasks.task import (
    AbstractClassification,
    AbstractTask,
    Guess,
    Sequences,
)
from retrograde.tasks.temporal_order import ModernTemporalOrder, TemporalOrder
from retrograde.tasks.timing import PeriodicFunction, Spikes
from retrograde.tasks.two_numbers import Adding, ModernAdding, Multiplication
from retrograde.tasks.two_sequences import TwoSequences

__all__ = [
    "AbstractClassification",
    "AbstractTask",
    "Adding",
    "ContinualReber",
    "Copying",
    "DistractedSymbol",
    "EmbeddedReber",
    "FirstSymbol",
    "Guess",
    "ModernAdding",
    "ModernTemporalOrder",
    "Multiplication",
    "PeriodicFunction",
    "RememberedSymbol",
    "Sequences",
    "SequentialDigits",
    "Spikes",
    "TemporalOrder",
    "TwoSequences",
]
