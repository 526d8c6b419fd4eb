"""Audits: is the gradient that a recurrent layer's code computes the true one, and if not, from
which step and along which route on? The tolerance bands (bands.py) are a published contract.
"""

from retrograde.audits.audit import Audit, Difference, audit
from retrograde.audits.check import Check

__all__ = ["Audit", "Check", "Difference", "audit"]
