"""The conformance table: every cell against every check, and against torch.nn where it has it."""

from contextlib import nullcontext

import pytest
import torch

from retrograde import cells
from retrograde.errors import ArgumentError
from support.conformance import (
    CHECKS,
    EXACT,
    check_autograd_gradcheck,
    check_many_rows_equal_one_at_a_time,
    plain_pass,
    unrolled_and_entries,
)
from support.problems import MORE, PROBLEMS, H
from support.type_checks import unchecked

REPEATED = (check_many_rows_equal_one_at_a_time, check_autograd_gradcheck)
"""They call dozens of times what the others call with the same types."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("problem", [*PROBLEMS, *MORE], ids=lambda problem: problem.name)
def test_conformance(problem, check):
    with unchecked() if check in REPEATED else nullcontext():
        check(problem.make())


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.torch], ids=lambda p: p.name)
def test_states_equal_torch(problem):
    cell, module = problem.make(), problem.torch()
    module.load_state_dict(dict(cell.parameters))
    plain = plain_pass(cell)
    unrolled, _ = unrolled_and_entries(cell, plain)
    given = {
        letter: torch.stack(
            [unrolled.states[0][:, slot] for name, slot in cell.slots.items() if name[0] == letter]
        )
        for letter in ("h", "c")
        if any(name[0] == letter for name in cell.slots)
    }
    hx = tuple(given.values()) if "c" in given else given["h"]
    output, last = module(unrolled.x, hx)
    torch.testing.assert_close(unrolled.output, output.detach(), **EXACT)
    last = last if isinstance(last, tuple) else (last,)
    for letter, theirs in zip(given, last, strict=True):
        ours = [unrolled.states[-1][:, s] for name, s in cell.slots.items() if name[0] == letter]
        torch.testing.assert_close(torch.stack(ours), theirs.detach(), **EXACT)


def test_relu_is_flat_at_zero():
    """torch takes the derivative of relu at 0 to be 0; so does the cell."""
    cell = cells.Elman(torch.zeros(1, 1), torch.ones(1, 1), activation="relu")
    graph = cell.linearise(cell.step(torch.zeros(1, 1), torch.zeros(1, 1)))
    assert float(cells.pull_back(graph, torch.ones(1, 1, 1)).previous()) == 0


def test_a_saturated_forget_gate_carries_the_cell_state_unchanged():
    """f = 1, no recurrent weights: the carousel is the identity on c."""
    bias = torch.zeros(4 * H, dtype=torch.float64)
    bias[H : 2 * H] = 1000.0
    zeros = torch.zeros(4 * H, H, dtype=torch.float64)
    cell = cells.LSTM(zeros, zeros, bias)
    graph = cell.linearise(cell.step(torch.ones(2, H).double(), torch.ones(2, 2 * H).double()))
    delta = torch.randn(3, 2, 2 * H, dtype=torch.float64)
    delta[..., :H] = 0
    assert torch.equal(cells.pull_back(graph, delta).previous(), delta)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: cells.LSTM(torch.zeros(8, 3), torch.zeros(6, 2)),
            r"expected \(8, 3\)|expected \(8",
        ),
        (lambda: cells.GRU(torch.zeros(6, 3), torch.zeros(6, 2), torch.zeros(5)), "bias_ih has"),
        (lambda: cells.Elman(torch.zeros(2), torch.zeros(2, 2)), "expects weight_ih of shape"),
        (
            lambda: cells.Elman(torch.zeros(2, 1), torch.zeros(2, 2), activation="gelu"),
            "one of tanh, relu, sigmoid, identity, .*; got 'gelu'",
        ),
        (
            lambda: cells.MinGRU(torch.zeros(4, 3), torch.zeros(3)),
            r"bias_ih has .* expected \(4,\)",
        ),
        (lambda: cells.MinLSTM(torch.zeros(4, 3)), r"weight_ih has shape \(4, 3\), expected \(3"),
        (lambda: cells.MinGRU(torch.zeros(4)), "too few axes; got weight_ih"),
        (
            lambda: cells.MinGRU(torch.zeros(4, 3), form="exp"),
            "form must be one of linear, log; got 'exp'",
        ),
        (lambda: cells.Stacked(()), "layers must be a tuple of cells"),
        (
            lambda: cells.Stacked(
                (
                    cells.GRU(torch.zeros(6, 3), torch.zeros(6, 2)),
                    cells.GRU(torch.zeros(6, 3), torch.zeros(6, 2)),
                )
            ),
            "must read the 2 outputs of layer 0; it expects 3",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        make()
