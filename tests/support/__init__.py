"""Oracles, models and settings that several test modules share. There are no tests in here."""

from pathlib import Path

from support import type_checks

__all__ = ["ROOT", "type_checks"]  # the latter is named on pytest's command line

ROOT = Path(__file__).parents[2]
"""The folder of the project."""
