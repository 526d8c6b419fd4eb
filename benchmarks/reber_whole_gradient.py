"""Does the truncated gradient keep the networks of experiment 1 of 1997 from the Reber grammar?

Three blocks of two cells at a rate of 0.5, as printed, but trained by the whole gradient, which
also flows back through cell inputs and gates. The weights change after each string, since the whole
gradient is only known then. The networks learn side by side, their weights stacked; initial
weights and strings are those of `retrograde study 1`.
"""

from collections.abc import Sequence

import torch
import typer
from _measure import Spread, answer
from torch import Tensor
from torch.nn.functional import pad

from retrograde.tasks.experiments import EXPERIMENTS
from retrograde.tasks.reber import Strings, StringSets
from retrograde.tasks.task import ranked

ROW = EXPERIMENTS["1-3x2-0.5"]
TESTED = 100
"""Strings that a network learns before it is tested."""


def beside(strings: Sequence[Strings], part: str) -> Tensor:
    """A part of the strings of several networks, [networks, T, strings, ...]."""
    longest = max(len(each.y) for each in strings)
    values = [getattr(each, part) for each in strings]
    ends = [(0, 0) * (value.ndim - 1) + (0, longest - len(value)) for value in values]
    return torch.stack([pad(value, end) for value, end in zip(values, ends, strict=True)])


def answers(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of stacked networks to x [networks, T, strings, 7]."""
    networks, steps, strings, _ = x.shape
    plan = ROW.network
    state = {
        "c": x.new_zeros(networks, strings, plan.cells),
        "y": x.new_zeros(networks, strings, plan.fed_back),
    }
    given = []
    for k in range(steps):
        state = plan.step(weights, x[:, k], state)
        given.append(torch.sigmoid(state.pop("h") @ weights["weight_ho"].mT))
    return torch.stack(given, 1)


def main(trials: int = 10, budget: int = 26_000) -> None:
    torch.set_num_threads(1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(trials)]
    drawn = [ROW.network.draw(generator) for generator in generators]
    lots = [StringSets(ROW.task, generator) for generator in generators]
    weights = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
    weights["bias_gates"] = weights["bias_gates"].unsqueeze(1)
    for weight in weights.values():
        weight.requires_grad_()
    tests = [list(lot.tests(256)) for lot in lots]
    needed: dict[int, int] = {}
    for learnt in range(0, budget, TESTED):
        pools = [lot.training(TESTED) for lot in lots]
        parts = {part: beside(pools, part) for part in ("x", "y", "due")}
        lengths = torch.stack([pool.lengths for pool in pools])
        for n in range(TESTED):
            x, y, due = (value[:, : lengths[:, n].max(), n] for value in parts.values())
            error = (y - answers(weights, x.unsqueeze(2)).squeeze(2)) * due.unsqueeze(2)
            found = torch.autograd.grad(error.square().sum() / 2, list(weights.values()))
            with torch.no_grad():
                for weight, gradient in zip(weights.values(), found, strict=True):
                    weight -= ROW.rate * gradient
        with torch.no_grad():
            right = torch.ones(trials, dtype=torch.bool)
            for strings in zip(*tests, strict=True):
                told = ranked(answers(weights, beside(strings, "x")), beside(strings, "possible"))
                right &= (told | ~beside(strings, "due")).flatten(1).all(1)
        for trial in right.nonzero().flatten().tolist():
            needed.setdefault(trial, learnt + TESTED)
    row = {
        "trials": trials,
        "solved": len(needed),
        "sequences": Spread.of(list(needed.values())) if needed else None,
        "mean": round(sum(needed.values()) / len(needed)) if needed else None,
        "published mean": ROW.published.sequences,
    }
    answer(__file__, "Is the embedded Reber grammar learnt by the whole gradient?", [row])


if __name__ == "__main__":
    typer.run(main)
