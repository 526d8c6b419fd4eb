"""Training on line in C, against the same with operations of torch (tests/studies has that)."""

import ctypes
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from retrograde.compiled import library as loading
from retrograde.compiled.library import library
from retrograde.studies import online
from retrograde.studies.online import Networks
from retrograde.tasks.blocks import BIASED, SQUASHES, Blocks
from retrograde.tasks.reber import Strings
from retrograde.tasks.task import Symbols

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(library() is None, reason="the compiled backend is not in use"),
]

OF_1997 = Blocks(3, 2, 2, 3, biased="all", spread=0.9)
OF_2000 = Blocks(3, 2, 2, 3, True, True, "cells", True, "gates and outputs", spread=0.9)
OF_2002 = Blocks(3, 2, 2, 1, True, True, "cells", False, "all", "identity", peepholes=True)
RANGES = st.sampled_from(("identity", *SQUASHES))


@st.composite
def plans(draw: st.DrawFn) -> Blocks:
    """Any plan; with 5 cells and more, lanes fill more than one vector."""
    peepholes = draw(st.booleans())
    return Blocks(
        inputs=draw(st.integers(1, 5)),
        outputs=draw(st.integers(1, 11)),
        blocks=draw(st.integers(1, 4)),
        size=1 if peepholes else draw(st.integers(1, 3)),
        output_gates=peepholes or draw(st.booleans()),
        forget_gates=peepholes or draw(st.booleans()),
        seen=draw(st.sampled_from(("all", "cells", "nothing"))),
        skip=draw(st.booleans()),
        biased=draw(st.sampled_from(sorted(BIASED))),
        cell_input=draw(RANGES),
        cell_output=draw(RANGES),
        output=draw(RANGES),
        spread=0.7,
        peepholes=peepholes,
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
    begins = uniform(steps, count) < 0.2 if count == 1 else None
    return Strings(read if symbols else dense, y, due, lengths, possible, begins)


def trimmed(stream: Strings) -> Strings:
    """A stream without steps beyond its end."""
    n = int(stream.lengths)
    assert isinstance(stream.read, Symbols)
    read = Symbols(stream.read.numbers[:n], stream.read.count, stream.lengths)
    begins = None if stream.begins is None else stream.begins[:n]
    return Strings(read, stream.y[:n], stream.due[:n], stream.lengths, stream.possible[:n], begins)


def both(networks: Networks, train: Callable):
    """What comes of the same training in C and with operations of torch, and the networks."""
    others = deepcopy(networks)
    found = train(networks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "in_use", lambda _: None)
        return found, train(others), others


def doubled(plan: Blocks, count: int, each_step: bool, momentum: float = 0.0) -> Networks:
    generator = torch.Generator().manual_seed(1)
    drawn = [{n: w.double() for n, w in plan.draw(generator).items()} for _ in range(count)]
    return Networks(plan, drawn, each_step, momentum)


CLOSE = {"rtol": 1e-12, "atol": 1e-12}
"""Sums of some dozen terms in another order, over a few sequences."""


LIMITS = st.sampled_from((0.0, 0.5))


@given(plans(), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.booleans(), LIMITS)
@example(OF_1997, 3, 3, False, False, 0.0)
@example(OF_2000, 2, 3, True, True, 0.0)
@example(OF_2002, 2, 3, False, True, 0.5)
def test_training_in_c_is_that_of_torch(
    plan: Blocks, networks: int, count: int, symbols: bool, each_step: bool, limit: float
):
    pools = [pool_of(plan, count, 4 + row, symbols, row) for row in range(networks)]
    pools = [replace(pool, begins=None) for pool in pools]
    momentum = 0.9 if each_step and plan.size == 1 else 0.0
    ours = doubled(plan, networks, each_step, momentum)
    before = ours.hidden.clone()
    found, expected, theirs = both(ours, lambda each: each.train(pools, 0.3, limit))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    for part in ("hidden", "output"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), **CLOSE)
        free = ours._free[part]  # torch gathers gradients of weights that are not there, too
        gathered = (getattr(each, f"by_{part}") * free for each in (ours, theirs))
        torch.testing.assert_close(*gathered, **CLOSE)
    assert not torch.equal(ours.hidden, before)
    assert bool(ours.by_output.any()) == bool(momentum)


@given(plans(), st.integers(1, 3), st.booleans(), st.sampled_from((1.0, 0.8)), LIMITS)
@example(OF_2000, 2, True, 0.8, 0.5)
def test_a_stream_in_c_is_that_of_torch(
    plan: Blocks, networks: int, each_step: bool, decay: float, limit: float
):
    """It goes on from its state, but where it begins anew, until the first wrong answer."""
    ours, rates = doubled(plan, networks, each_step), [0.1, 0.2, 0.4][:networks]

    def follow(each: Networks) -> list[list[int]]:
        ends = list[list[int]]()
        for part in range(3):
            streams = [
                trimmed(pool_of(plan, 1, 9 + row, True, 7 * part + row)) for row in range(networks)
            ]
            ends.append(each.follow(streams, rates, decay, limit))
            if part == 1:
                each.begin(0)
        return ends

    found, expected, theirs = both(ours, follow)
    assert found == expected
    for part in ("hidden", "output"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), **CLOSE)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_every_instruction_set_of_this_processor(dtype: torch.dtype, rtol: float):
    opened = ctypes.CDLL(str(loading.PATH))
    plan, found = OF_2000, list[Tensor]()
    for number in range(len(loading._instruction_sets(opened))):
        narrow = loading._of(opened, number)
        networks = doubled(plan, 2, each_step=True)
        networks.hidden, networks.output = networks.hidden.to(dtype), networks.output.to(dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(online, "in_use", lambda _, narrow=narrow: narrow)
            networks.train([pool_of(plan, 3, 9, True, row) for row in range(2)], 0.3)
        found.append(networks.hidden)
    expected = doubled(plan, 2, each_step=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(online, "in_use", lambda _: None)
        expected.train([pool_of(plan, 3, 9, True, row) for row in range(2)], 0.3)
    for hidden in found:
        torch.testing.assert_close(hidden.double(), expected.hidden, rtol=rtol, atol=rtol)
