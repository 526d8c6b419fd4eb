"""What several modules of tests share."""

from support import type_checks

__all__ = ["type_checks"]  # named on the command line of pytest, which imports its package alone
