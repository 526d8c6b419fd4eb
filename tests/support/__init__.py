"""Oracles, models and settings that several test modules share. There are no tests in here."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder of the project."""
