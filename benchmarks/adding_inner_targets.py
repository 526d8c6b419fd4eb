"""Do the flat ends of the output unit keep the adding problem of 1997 from its published count?

Experiment 4 asks a logistic output for 0.5 + (X1 + X2) / 4, which comes near 0 and 1, where the
unit is flat. Here the same networks are to give 0.5 + (X1 + X2) / 16 instead, from 0.375 to 0.625,
where it is nearly linear, with an error below 0.01 in place of 0.04. The learning rate of 8 in
place of 0.5 makes up for it: with targets four times nearer to each other, a linear output unit at
rate 0.5 would take the same steps. So this is, to about two percent, experiment 4 with a linear
output.
"""

from dataclasses import replace

import torch
import typer
from _measure import Spread, answer
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.studies.trials import Trials
from retrograde.tasks.experiments import EXPERIMENTS
from retrograde.tasks.task import Sequences, largest_errors
from retrograde.tasks.two_numbers import LIMIT, Adding

NEARER = 4
"""How much nearer to 0.5 the targets are."""


class InnerAdding(Adding):
    """The adding problem with targets, and limits of errors, that many times smaller."""

    def answer(self, first: Float[Tensor, "N"], second: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return 0.5 + (super().answer(first, second) - 0.5) / NEARER

    def right(self, output: Float[Tensor, "T N O"], sequences: Sequences) -> Bool[Tensor, "N"]:
        return largest_errors(output, sequences) < LIMIT / NEARER

    def solved(self, right: Bool[Tensor, "N"], errors: Float[Tensor, "N"]) -> bool:
        return super().solved(right, errors * NEARER)


def main(trials: int = 10, budget: int = 222_000) -> None:
    torch.set_num_threads(1)
    published = EXPERIMENTS["4-100"]
    inner = replace(published, task=InnerAdding(100), rate=published.rate * NEARER**2)
    found = Trials(inner, range(trials)).run(budget)
    needed = [trial.sequences for trial in found if trial.solved]
    row = {
        "trials": trials,
        "solved": len(needed),
        "sequences": Spread.of(needed) if needed else None,
        "mean": round(sum(needed) / len(needed)) if needed else None,
        "published mean": published.published.sequences,
    }
    answer(__file__, "Is the adding problem solved with targets nearer to 0.5?", [row])


if __name__ == "__main__":
    typer.run(main)
