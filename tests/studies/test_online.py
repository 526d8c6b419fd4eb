"""Training on line, all networks at once, against autograd on one network after the other."""

import pytest
import torch

from retrograde.studies.online import Networks
from retrograde.tasks.blocks import BlockNetwork, Blocks
from retrograde.tasks.task import Sequences

pytestmark = pytest.mark.usefixtures("unchecked")

PLANS = {
    "1997": Blocks(3, 2, 2, 3, biased="all", spread=0.9),
    "biased gates": Blocks(3, 2, 3, 1, biased="gates", spread=0.9),
    "no bias": Blocks(3, 2, 2, 2, spread=0.9),
    "2000": Blocks(3, 2, 2, 3, True, True, "cells", True, "gates and outputs", spread=0.9),
    "2002": Blocks(
        3,
        2,
        3,
        forget_gates=True,
        seen="cells",
        biased="all",
        cell_input="identity",
        cell_output="identity",
        spread=0.9,
        peepholes=True,
    ),
    "2a": Blocks(
        3, 2, 2, 2, False, False, "nothing", True, "none", "[0, 1]", "identity", spread=0.9
    ),
}


def drawn(dense: bool) -> Sequences:
    """Sequences of 4, 6 and 7 steps; answers are due at the end, or at every step."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4, 7, 6])
    steps = torch.arange(7).unsqueeze(1)
    due = steps < lengths if dense else steps == lengths - 1
    x = torch.randn(7, 3, 3, dtype=torch.float64, generator=generator)
    y = torch.rand(7, 3, 2, dtype=torch.float64, generator=generator) * due.unsqueeze(2)
    return Sequences(x, y, due, lengths)


@pytest.mark.parametrize("dense", (False, True))
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_step_is_that_of_autograd(plan: Blocks, dense: bool):
    sequences, rate = drawn(dense), 0.3
    models = [
        BlockNetwork(plan, plan.draw(torch.Generator().manual_seed(seed)), truncated=True).double()
        for seed in range(3)
    ]
    named = [
        {name.rpartition(".")[2]: weight for name, weight in model.named_parameters()}
        for model in models
    ]
    networks = Networks(plan, [{n: w.detach() for n, w in each.items()} for each in named])
    for _ in range(2):  # the second step starts from what the first one changed
        answers = networks.learn(sequences, rate)
        for n, (model, weights) in enumerate(zip(models, named, strict=True)):
            output = model(sequences.x[:, n : n + 1])[:, 0]
            due = sequences.due[:, n]
            (0.5 * (output - sequences.y[:, n])[due].square().sum()).backward()
            torch.testing.assert_close(answers[due, n], output[due].detach())
            assert not answers[~due, n].any()
            with torch.no_grad():
                for weight in weights.values():
                    weight -= rate * weight.grad
                    weight.grad = None
            trained = networks.weights(n)
            assert trained.keys() == weights.keys()
            for name, weight in weights.items():
                torch.testing.assert_close(trained[name], weight.detach(), rtol=1e-11, atol=1e-14)


def test_looking_changes_nothing_and_some_can_be_let_go():
    plan = PLANS["1997"]
    weights = [plan.draw(torch.Generator().manual_seed(seed)) for seed in range(3)]
    networks = Networks(plan, weights)
    sequences = drawn(dense=False)
    narrow = Sequences(sequences.x.float(), sequences.y.float(), sequences.due, sequences.lengths)
    networks.learn(narrow, rate=0.0)
    assert all(torch.equal(networks.weights(1)[name], weights[1][name]) for name in weights[1])
    networks.only([2, 0])
    assert len(networks) == 2
    assert torch.equal(networks.weights(0)["weight_ih"], weights[2]["weight_ih"])
