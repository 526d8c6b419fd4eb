"""The weekly CO2 record of Mauna Loa, 1958-2001, with its missing weeks kept in sight.

Source: C. D. Keeling, T. P. Whorf (2004), public domain; see PROVENANCE.md beside this file.
"""

import csv
import math
from dataclasses import dataclass
from datetime import date, datetime
from importlib.resources import files

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class WeeklyCO2:
    """CO2 at Mauna Loa, one value a week.

    Attributes:
        dates: the weeks, 7 days apart.
        ppm: concentration in parts per million; missing weeks are on the straight line between
            their neighbours.
        missing: True where the week has no measurement, so that nobody is scored on the line.
    """

    dates: tuple[date, ...]
    ppm: Float[Tensor, "W"]
    missing: Bool[Tensor, "W"]


def mauna_loa_co2() -> WeeklyCO2:
    """Read the record that ships with the package.

    Example:
        >>> from retrograde.data import mauna_loa_co2
        >>> record = mauna_loa_co2()
        >>> len(record.dates), int(record.missing.sum())
        (2284, 59)
    """
    text = (files("retrograde.data") / "mauna_loa_co2.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    dates = tuple(datetime.strptime(row["date"], "%Y%m%d").date() for row in rows)
    ppm = torch.tensor([float(row["co2"] or math.nan) for row in rows], dtype=torch.float64)
    missing = ppm.isnan()
    return WeeklyCO2(dates, _interpolated(ppm, missing), missing)


def _interpolated(ppm: Float[Tensor, "W"], missing: Bool[Tensor, "W"]) -> Float[Tensor, "W"]:
    known = torch.nonzero(~missing).squeeze(1)
    filled = ppm.clone()
    for week in torch.nonzero(missing).squeeze(1).tolist():
        after = int(torch.searchsorted(known, week))
        left, right = int(known[after - 1]), int(known[after])
        filled[week] = torch.lerp(ppm[left], ppm[right], (week - left) / (right - left))
    return filled
