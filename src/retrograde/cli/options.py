"""Options that several commands take, and what may be chosen.

Help is given as data, as `python -OO` removes docstrings.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from retrograde import diagnosis
from retrograde.errors import InputError

Html = Annotated[Path | None, typer.Option("--html", help="Write a page that opens offline.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the numbers.")]
Target = Annotated[
    str,
    typer.Argument(
        metavar="FILE.py:FUNCTION", help="Or PACKAGE.MODULE:FUNCTION, as Python imports it."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE", help="Move model and batch there first: cpu, cuda, cuda:1, mps."
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Print nothing but errors; files are still written.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many threads torch computes with; as many as it likes if not.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**32 - 1, metavar="N", help="The same seed gives the same numbers."),
]


class FailOn(StrEnum):
    """From which severity on findings make the exit code 1; in the order of `SEVERITIES`."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    NEVER = "never"


class FailOnChange(StrEnum):
    """What makes the exit code of `compare` 1."""

    WORSE = "worse"
    NEVER = "never"


class Past(StrEnum):
    """What the past is replaced by."""

    ANOTHER_SAMPLE = "another-sample"
    MEAN = "mean"
    ZEROS = "zeros"


class Kind(StrEnum):
    """What is truncated."""

    SLIDING = "sliding"
    CHUNKS = "chunks"
    WINDOW = "window"


class Remedies(StrEnum):
    """What is done with remedies."""

    TRAIN = "train"
    PASS = "pass"
    NONE = "none"


WITH_REMEDIES: dict[Remedies, Literal["train", "pass"] | None] = {
    Remedies.TRAIN: "train",
    Remedies.PASS: "pass",
    Remedies.NONE: None,
}
"""What `retrograde.diagnose` calls them."""


def thresholds(options: Sequence[str]) -> dict[str, float]:
    """NAME=VALUE, many of them, checked before any work is done."""
    changed = {}
    for option in options:
        name, _, text = option.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise InputError(
                f"--threshold takes NAME=VALUE with a number, as in reach_fraction=0.2; got "
                f"{option!r}"
            )
        changed[name.strip()] = value
    diagnosis.limits(changed)
    return changed
