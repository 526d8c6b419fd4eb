"""The conformance table: every cell against every check, and against torch.nn where it has it."""

from contextlib import nullcontext

import pytest
import torch

from retrograde import cells, nn
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


@pytest.mark.parametrize("a_i", [-1e4, -800.0, -3.0, 0.0, 5.0, 1e4])
def test_the_first_step_of_an_slstm_hangs_on_no_input_gate(a_i):
    """From a zero state h = o tanh(a_z), however small i = exp(a_i) is: it cancels in c / n."""
    a_f, a_z, a_o = torch.tensor([-0.5, 0.3, 0.7], dtype=torch.float64)
    bias = torch.stack((torch.tensor(a_i, dtype=torch.float64), a_f, a_z, a_o))
    zeros = torch.zeros(4, 1, dtype=torch.float64)
    cell, state = cells.SLSTM(zeros, zeros, bias), torch.zeros(1, 4, dtype=torch.float64)
    step = cell.step(zeros[:1], state)
    h, c, n, m = step.state[0]
    torch.testing.assert_close(h, a_o.sigmoid() * a_z.tanh(), **EXACT)
    torch.testing.assert_close(
        torch.stack((c, n, m)), torch.stack((a_z.tanh(), torch.ones_like(m), bias[0])), **EXACT
    )
    delta = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    found = cells.pull_back(cell.linearise(step), delta)
    leaves = [each.requires_grad_() for each in (state.clone(), bias.clone())]
    h = cells.SLSTM(zeros, zeros, leaves[1]).step(zeros[:1], leaves[0]).state[0, 0]
    by_state, by_bias = torch.autograd.grad(h, leaves)
    torch.testing.assert_close(found.previous()[0], by_state, **EXACT)
    assert float(by_bias[0]) == float(by_bias[1]) == 0
    if abs(a_i) < 10:  # as the quotient o (f c + i z) / (f n + i) without a stabiliser
        f, o, i = a_f.sigmoid(), a_o.sigmoid(), bias[0].exp()
        expected = torch.stack((h * 0, o * f / i, -o * a_z.tanh() * f / i, h * 0))
        torch.testing.assert_close(by_state[0], expected, **EXACT)


def test_an_slstm_stays_finite_on_inputs_of_any_size():
    torch.manual_seed(1)
    layer, x = nn.SLSTM(3, 8), 200 * torch.randn(8, 4, 3)
    found = layer(x)[0]
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    torch.testing.assert_close(found.double(), layer.double()(x.double())[0], rtol=0, atol=1e-3)


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
