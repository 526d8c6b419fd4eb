"""What is wrong, how we know, and what helps: rules over a decomposed pass, remedies tried.

A pass is run (run.py) and each of its layers becomes a subject (subject.py: the decomposition, the
gates in activity.py, the lag that matters in need.py). Rules (rules/) measure one number each and
compare it with the table (thresholds.py); what crosses becomes a finding (finding.py). Remedies
(remedies/) are applied to copies and measured again (trials.py), or trained (training.py).
"""

from retrograde.diagnosis.explain import explain
from retrograde.diagnosis.finding import (
    Check,
    Evidence,
    Finding,
    NotApplicable,
    Severity,
    Spread,
    Training,
    Trial,
)
from retrograde.diagnosis.gate_series import GateSeries
from retrograde.diagnosis.rules import RULES, Rule
from retrograde.diagnosis.thresholds import Threshold, limits

Course = GateSeries  # its earlier name, until 0.2

__all__ = [
    "RULES",
    "Check",
    "Evidence",
    "Finding",
    "GateSeries",
    "NotApplicable",
    "Rule",
    "Severity",
    "Spread",
    "Threshold",
    "Training",
    "Trial",
    "explain",
    "limits",
]
