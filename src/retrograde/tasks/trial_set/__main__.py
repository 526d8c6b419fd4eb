"""The command that prints both tables."""

from enum import StrEnum
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from retrograde._terminal import as_text
from retrograde.tasks.trial_set import HALVES, half
from retrograde.tasks.trial_set.judging import judge, misses, table_of


class Which(StrEnum):
    """Which half."""

    DEVELOPMENT = "development"
    JUDGEMENT = "judgement"
    BOTH = "both"


def main(
    which: Annotated[Which, typer.Option("--half", help="The half that is judged.")] = Which.BOTH,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other models.")] = 0,
) -> None:
    """Say which finding comes first in models that were made sick in known ways."""
    torch.set_num_threads(1)
    for name in HALVES:
        if which not in (Which.BOTH, name):
            continue
        cases = track(half(name), name, console=Console(stderr=True), transient=True)
        found = [judge(case, seed) for case in cases]
        print(as_text(table_of(found, f"{name} half, {len(found)} cases")))
        print("\n".join(misses(found)))


if __name__ == "__main__":
    typer.run(main)
