"""What a person or a script reads: a report is data, and text, page and JSON are views of it."""

from retrograde.report.compare import compare
from retrograde.report.comparison import Comparison
from retrograde.report.diagnose import diagnose
from retrograde.report.growth import Growth, NeededLag
from retrograde.report.horizon_report import HorizonReport
from retrograde.report.layer import Layer
from retrograde.report.report import Report
from retrograde.report.settings import Settings

Horizon = NeededLag  # its earlier name, until 0.2

__all__ = [
    "Comparison",
    "Growth",
    "HorizonReport",
    "Layer",
    "NeededLag",
    "Report",
    "Settings",
    "compare",
    "diagnose",
]
