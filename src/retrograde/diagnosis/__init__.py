"""What is wrong, how we know, and what helped: rules over a decomposed pass, remedies tried."""

from retrograde.diagnosis.courses import Course
from retrograde.diagnosis.finding import Evidence, Finding, Severity, Training, Trial
from retrograde.diagnosis.thresholds import Threshold, thresholds

__all__ = [
    "Course",
    "Evidence",
    "Finding",
    "Severity",
    "Threshold",
    "Training",
    "Trial",
    "thresholds",
]
