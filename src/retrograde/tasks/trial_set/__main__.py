"""The command that prints both tables."""

from enum import StrEnum
from typing import Annotated

import torch
import typer

from retrograde.cli.terminal import progress, show
from retrograde.tasks.trial_set import HALVES, half
from retrograde.tasks.trial_set.judging import judge, misses, table_of


class Which(StrEnum):
    """Which half."""

    DEVELOPMENT = "development"
    JUDGEMENT = "judgement"
    BOTH = "both"


def main(
    which: Annotated[Which, typer.Option("--half", help="The half that is judged.")] = Which.BOTH,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds give other models.")] = 0,
) -> None:
    """Say which finding comes first in models that were made sick in known ways."""
    torch.set_num_threads(1)
    halves = [name for name in HALVES if which in (Which.BOTH, name)]
    cases = [(name, case) for name in halves for case in half(name)]
    found = []
    with progress("the first case", quiet=False) as tell:
        for done, (_, case) in enumerate(cases):
            tell(done, len(cases), case.name)
            found.append(judge(case, seed))
    for name in halves:
        of_half = [each for (of, _), each in zip(cases, found, strict=True) if of == name]
        show(table_of(of_half, f"{name} half, {len(of_half)} cases"))
        for line in misses(of_half):
            print(f"- {line}")


if __name__ == "__main__":
    typer.run(main)
