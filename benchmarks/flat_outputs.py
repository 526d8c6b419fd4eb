"""What is wrong with the networks that do not learn experiment 6b of 1997?

They are trained as in `retrograde study 6b`, and then asked about fresh sequences. The output unit
of a class should answer 1 to its sequences. One that answers less than 0.3 to them on average does
not know its class, and its logistic function is flat where its slope y (1 - y) is near 0: what it
is taught is multiplied by that slope.
"""

import torch
import typer
from _measure import answer

from retrograde.studies.online import Networks
from retrograde.studies.outcomes import shipped
from retrograde.tasks.experiments import EXPERIMENTS

ROW = EXPERIMENTS["6b"]
AT_ONCE = 100
"""Sequences that are drawn together; the weights change after each."""


def main(budget: int = 1_000_000) -> None:
    torch.set_num_threads(1)
    results = shipped("6b")
    assert results is not None
    seeds = [trial.seed for trial in results.trials("6b") if not trial.solved]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    networks = Networks(ROW.network, [ROW.network.draw(each) for each in generators])
    lots = [ROW.task.lot(generator) for generator in generators]
    for _ in range(0, budget, AT_ONCE):
        networks.train([lot.training(AT_ONCE) for lot in lots], ROW.rate)
    asked = ROW.task.draw(2000, torch.Generator().manual_seed(99))
    last, sequences = asked.lengths - 1, torch.arange(2000)
    kinds = asked.y[last, sequences].argmax(1)
    rows = []
    for n, seed in enumerate(seeds):
        given = networks.answers(n, asked)[last, sequences]
        own = [given[kinds == kind, kind] for kind in range(ROW.task.outputs)]
        lost = [y for y in own if y.mean() < 0.3]
        rows.append(
            {
                "seed": seed,
                "right": round(float((given.argmax(1) == kinds).double().mean()), 2),
                "outputs below 0.3": len(lost),
                "their slopes": ", ".join(f"{float((y * (1 - y)).median()):.1g}" for y in lost),
            }
        )
    answer(__file__, f"What networks answer that have not learnt by {budget:,}", rows)


if __name__ == "__main__":
    typer.run(main)
