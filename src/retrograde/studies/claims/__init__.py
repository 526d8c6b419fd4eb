"""The claims of the texts that this project grew from, each measured, with its verdict."""

from retrograde.studies.claims.claim import TEXTS, Claim, Figures, Statement, Text, Verdict
from retrograde.studies.claims.study import STUDY, trials_of
from retrograde.studies.claims.table import CLAIMS

__all__ = [
    "CLAIMS",
    "STUDY",
    "TEXTS",
    "Claim",
    "Figures",
    "Statement",
    "Text",
    "Verdict",
    "trials_of",
]
