"""Numbers and settings side by side, whatever the two reports are of."""

import difflib
import math
from collections.abc import Iterator
from typing import Any

from retrograde._words import number
from retrograde.report.changes import Difference, Number
from retrograde.report.settings import Settings

ROUNDING = 1e-3
"""Numbers nearer to each other than this share of the larger one show the same three digits."""

RESIDUAL = 10.0
"""Residuals are rounding errors: less than an order of magnitude is noise."""


def judged(
    name: str, unit: str, before: float | None, after: float | None, healthy: str | None
) -> Number:
    """A number before and after, and which way it moved if one is healthy."""
    if _alike(name, before, after):
        return Number(name, unit, before, after, "same")
    if before is None or after is None or missing(before) or missing(after) or healthy is None:
        return Number(name, unit, before, after, "changed")
    better = (after > before) == (healthy == "above")
    return Number(name, unit, before, after, "better" if better else "worse")


def _alike(name: str, before: float | None, after: float | None) -> bool:
    if missing(before) or missing(after):
        return missing(before) and missing(after)
    assert before is not None and after is not None
    if before == after or number(before) == number(after):
        return True
    if name == "residual" and 0 < min(before, after):
        return max(before, after) / min(before, after) < RESIDUAL
    return math.isclose(before, after, rel_tol=ROUNDING)


def missing(value: float | None) -> bool:
    """Whether there is no such number."""
    return value is None or math.isnan(value)


def differ(name: str, before: Any, after: Any) -> Iterator[Difference]:
    """The difference, if there is one."""
    if before != after:
        words = (
            "none" if value is None or value == "" else str(value) for value in (before, after)
        )
        yield Difference(name, *words)


def _models(before: str, after: str) -> Iterator[Difference]:
    """The lines in which the models print themselves differently."""
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    old, new = ([line[2:].strip() for line in lines if line.startswith(mark)] for mark in "-+")
    yield from differ("model", "\n".join(old), "\n".join(new))


def of_settings(before: Settings, after: Settings) -> Iterator[Difference]:
    """What was run differently."""
    for name in dict.fromkeys((*before.versions, *after.versions)):
        yield from differ(f"version of {name}", before.versions.get(name), after.versions.get(name))
    yield from _models(before.model, after.model)
    for name in ("batch", "device", "seed"):
        yield from differ(name, getattr(before, name), getattr(after, name))


def moved_thresholds(
    before: Settings, after: Settings
) -> list[tuple[str, float | None, float | None]]:
    """The thresholds that were not the same: name, value before and after, None for none."""
    old = {row.name: row.value for row in before.thresholds}
    new = {row.name: row.value for row in after.thresholds}
    return [
        (name, old.get(name), new.get(name))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
