"""Data that ships with the package, each file with its provenance beside it."""

from retrograde.data.mauna_loa import WeeklyCO2, mauna_loa_co2

__all__ = ["WeeklyCO2", "mauna_loa_co2"]
