"""Training on line, against autograd on one network after the other; and in C, against that."""

from copy import deepcopy

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from retrograde.compiled.library import library
from retrograde.studies import online
from retrograde.studies.online import Networks
from retrograde.tasks.blocks import BIASED, SQUASHES, BlockNetwork, Blocks
from retrograde.tasks.reber import Strings
from retrograde.tasks.task import Sequences, Symbols

pytestmark = pytest.mark.usefixtures("unchecked")

PLANS = {
    "1997": Blocks(3, 2, 2, 3, biased="all", spread=0.9),
    "biased gates": Blocks(3, 2, 3, 1, biased="gates", spread=0.9),
    "no bias": Blocks(3, 2, 2, 2, spread=0.9),
    "2000": Blocks(3, 2, 2, 3, True, True, "cells", True, "gates and outputs", spread=0.9),
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


needs_library = pytest.mark.skipif(library() is None, reason="the compiled backend is not in use")
RANGES = st.sampled_from(("identity", *SQUASHES))


@st.composite
def plans(draw: st.DrawFn) -> Blocks:
    """Any plan; with 5 cells and more, lanes fill more than one vector."""
    return Blocks(
        inputs=draw(st.integers(1, 5)),
        outputs=draw(st.integers(1, 11)),
        blocks=draw(st.integers(1, 4)),
        size=draw(st.integers(1, 3)),
        output_gates=draw(st.booleans()),
        forget_gates=draw(st.booleans()),
        seen=draw(st.sampled_from(("all", "cells", "nothing"))),
        skip=draw(st.booleans()),
        biased=draw(st.sampled_from(sorted(BIASED))),
        cell_input=draw(RANGES),
        cell_output=draw(RANGES),
        spread=0.7,
    )


def pool_of(plan: Blocks, count: int, steps: int, symbols: bool, seed: int) -> Strings:
    """Sequences of 3 steps and more, with answers due at some of them and at the last."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    lengths = torch.randint(3, steps + 1, (count,), generator=generator)
    at = torch.arange(steps).unsqueeze(1)
    due = (uniform(steps, count) < 0.4) & (at < lengths) | (at == lengths - 1)
    numbers = torch.randint(plan.inputs, (steps, count), generator=generator) * (at < lengths)
    read = Symbols(numbers, plan.inputs, lengths)
    dense = 2 * uniform(steps, count, plan.inputs) - 1
    possible = uniform(steps, count, plan.outputs) < 0.2
    y = uniform(steps, count, plan.outputs) * due.unsqueeze(2)
    return Strings(read if symbols else dense, y, due, lengths, possible)


def trimmed(stream: Strings) -> Strings:
    """A stream without steps beyond its end."""
    n = int(stream.lengths)
    assert isinstance(stream.read, Symbols)
    read = Symbols(stream.read.numbers[:n], stream.read.count, stream.lengths)
    return Strings(read, stream.y[:n], stream.due[:n], stream.lengths, stream.possible[:n])


def both(networks: Networks, train):
    """What comes of the same training in C and with operations of torch, and the networks."""
    others = deepcopy(networks)
    found = train(networks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "in_use", lambda _: None)
        return found, train(others), others


def doubled(plan: Blocks, count: int, each_step: bool) -> Networks:
    generator = torch.Generator().manual_seed(1)
    drawn = [{n: w.double() for n, w in plan.draw(generator).items()} for _ in range(count)]
    return Networks(plan, drawn, each_step)


CLOSE = {"rtol": 1e-12, "atol": 1e-12}
"""Sums of some dozen terms in another order, over a few sequences."""


@needs_library
@given(plans(), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans())
@example(PLANS["1997"], 3, 3, False, False)
@example(PLANS["2000"], 2, 3, True, True)
def test_training_in_c_is_that_of_torch(
    plan: Blocks, networks: int, count: int, symbols: bool, each_step: bool
):
    pools = [pool_of(plan, count, 4 + row, symbols, row) for row in range(networks)]
    ours = doubled(plan, networks, each_step)
    before = ours.hidden.clone()
    found, expected, theirs = both(ours, lambda each: each.train(pools, 0.3))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    torch.testing.assert_close(ours.hidden, theirs.hidden, **CLOSE)
    torch.testing.assert_close(ours.output, theirs.output, **CLOSE)
    assert not torch.equal(ours.hidden, before)


@needs_library
@given(plans(), st.integers(1, 3), st.booleans())
@example(PLANS["2000"], 2, True)
def test_a_stream_in_c_is_that_of_torch(plan: Blocks, networks: int, each_step: bool):
    """It goes on from its state, until the first answer whose ranks are wrong."""
    ours, rates = doubled(plan, networks, each_step), [0.1, 0.2, 0.4][:networks]

    def follow(each: Networks) -> list[list[int]]:
        ends = list[list[int]]()
        for part in range(3):
            streams = [
                trimmed(pool_of(plan, 1, 9 + row, True, 7 * part + row)) for row in range(networks)
            ]
            ends.append(each.follow(streams, rates))
            if part == 1:
                each.begin(0)
        return ends

    found, expected, theirs = both(ours, follow)
    assert found == expected
    for part in ("hidden", "output"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), **CLOSE)
