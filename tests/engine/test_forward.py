"""States kept at checkpoints alone: those that are found again from there are the very same."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde import engine
from retrograde.cells import GRU, Elman
from retrograde.engine import forward
from retrograde.engine.forward import Checkpoints
from retrograde.errors import VoidDecompositionWarning
from support.problems import MORE, PROBLEMS

unroll = sys.modules["retrograde.engine.unroll"]
STEPS = 23


@pytest.fixture
def short(monkeypatch):
    """Checkpoints every five steps, for any pass."""
    monkeypatch.setattr(forward, "SEGMENT", 5)
    monkeypatch.setattr(unroll, "KEPT", 0)


def recorded(layer, ragged):
    """Two runs, the second from a part of the state of the first; samples of several lengths."""
    torch.manual_seed(0)
    layer, x = layer.double(), torch.randn(STEPS, 3, 2).double()
    if ragged:
        x = nn.utils.rnn.pack_padded_sequence(x, [STEPS, 14, 10])
    with retrograde.record(layer) as recording:
        state = layer(x)[1]
        state = tuple(0.5 * s for s in state) if isinstance(state, tuple) else 0.5 * state
        output = layer(x, state)[0]
        (output.data if ragged else output).square().sum().backward()
    return recording.only()


def states_of(of_pass, monkeypatch, kept):
    with monkeypatch.context() as patch:
        patch.setattr(unroll, "KEPT", kept)
        return retrograde.decompose(of_pass)


def check(of_pass, monkeypatch):
    whole = states_of(of_pass, monkeypatch, 2**27)
    flow = states_of(of_pass, monkeypatch, 0)
    assert isinstance(flow.unrolled.trajectory, Checkpoints)
    assert isinstance(whole.unrolled.trajectory, torch.Tensor)
    kept, steps = flow.unrolled.trajectory.kept, flow.steps
    assert len(kept) == -(-steps // 5) + 1 < steps / 3
    assert flow.residual.ok and flow.forward_agrees and flow.unrolled.finite
    assert torch.equal(flow.by_time().log2, whole.by_time().log2)
    ends = (0, 0), (0, 4), (0, 5), (4, 6), (5, 5), (5, 10), (9, 21), (steps - 1, steps)
    for first, last in (*ends, (steps, steps)):
        found = flow.unrolled.between(first, last)
        assert torch.equal(found, whole.unrolled.states[first : last + 1])
    assert torch.equal(flow.unrolled.states, whole.unrolled.states)


@pytest.mark.parametrize("backend", ["compiled", "eager"])
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@pytest.mark.parametrize(
    "layer", [nn.LSTM(2, 3, 2), nn.GRU(2, 3, bidirectional=True)], ids=["LSTM", "GRU"]
)
def test_states_found_again_are_those_that_were_there(layer, ragged, backend, short, monkeypatch):
    if backend == "eager":
        monkeypatch.setattr(forward, "library_for", lambda *_: None)
    check(recorded(layer, ragged), monkeypatch)


def test_a_wrong_checkpoint_is_rejected(short, monkeypatch):
    of_pass, true = recorded(nn.LSTM(2, 3), False), Checkpoints.segment
    monkeypatch.setattr(Checkpoints, "segment", lambda self, n: true(self, n).roll(1, 0))
    with pytest.raises((AssertionError, VoidDecompositionWarning)):
        check(of_pass, monkeypatch)


def test_what_is_not_finite_is_found_without_all_states_at_hand(short):
    ramp = Elman(torch.ones(1, 1), torch.full((1, 1), 1e30), activation="identity")
    unrolled = engine.unroll(ramp, torch.ones(STEPS, 1, 1))
    assert not unrolled.finite and "states" not in vars(unrolled)
    assert engine.unroll(ramp, torch.zeros(STEPS, 1, 1)).finite


def of_step(step):
    """All that a step holds, by name; those of layers inside by their numbers."""
    inside = {
        f"{number}.{name}": value
        for number, layer in enumerate(step.layers)
        for name, value in of_step(layer).items()
    }
    own = {"x": step.x, "previous": step.previous, "state": step.state}
    return {**own, **step.activations, **inside}


@pytest.mark.parametrize("problem", PROBLEMS + MORE, ids=lambda problem: problem.name)
def test_steps_that_the_library_handed_out_are_those_that_it_ran(problem):
    torch.manual_seed(0)
    cell = problem.make()
    x, initial = (
        torch.randn(*shape).double() for shape in ((7, 3, cell.input_size), (3, cell.state_size))
    )
    unrolled = engine.unroll(cell, x, initial)
    again = replace(unrolled)
    assert again.run is None
    found, expected = of_step(unrolled.steps(2, 6)), of_step(again.steps(2, 6))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-13)


def test_few_steps_are_handed_out(monkeypatch):
    """Not so many that they would take more memory than what they save, and none by operations."""
    cell, x = GRU(torch.randn(9, 2), torch.randn(9, 3)), torch.randn(7, 4, 2)
    handed_out = retrograde.backend() == "compiled"
    run = engine.unroll(cell, x).run
    assert (run is not None) == handed_out
    if run is not None:
        taken = run.activations["reset"].untyped_storage().nbytes() // 4  # of all, with padding
        for most, few in ((taken, True), (taken - 1, False)):
            monkeypatch.setattr(unroll, "FEW", most)
            assert (engine.unroll(cell, x).run is not None) == few
