"""Retrograde: see how gradients travel back through time in recurrent networks.

with retrograde.record(model) as recording:
    loss = criterion(model(x), y)
    loss.backward()
flow = retrograde.decompose(recording)
flow.reach, flow.half_life, flow.residual
"""

from importlib.metadata import version

from retrograde import cells, clipping, declarations, nn
from retrograde.audits import Audit, audit
from retrograde.compiled import backend
from retrograde.declarations import Declaration
from retrograde.decomposition import Flow, decompose
from retrograde.errors import RetrogradeError, VoidDecompositionWarning
from retrograde.horizons import horizon
from retrograde.monitor import Monitor
from retrograde.recording import Recorded, Recording, load, record, record_cell, save
from retrograde.report import Report, diagnose
from retrograde.spectra import Spectrum, spectrum
from retrograde.truncation import Horizon

__version__ = version("retrograde")

__all__ = [
    "Audit",
    "Declaration",
    "Flow",
    "Horizon",
    "Monitor",
    "Recorded",
    "Recording",
    "Report",
    "RetrogradeError",
    "Spectrum",
    "VoidDecompositionWarning",
    "audit",
    "backend",
    "cells",
    "clipping",
    "declarations",
    "decompose",
    "diagnose",
    "horizon",
    "load",
    "nn",
    "record",
    "record_cell",
    "save",
    "spectrum",
]
