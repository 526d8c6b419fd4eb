"""Linear recurrences by blocks of steps: against the plain recursion, and where numbers end."""

import mpmath
import pytest
import torch

import retrograde
from retrograde.cells import Stacked
from retrograde.engine import unroll
from retrograde.engine.blocks import FEW, recurrence, slabs
from retrograde.engine.linear_states import by_blocks


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def plain(factors, added, start):
    """One step after the other."""
    states = []
    for k in range(added.shape[1]):
        start = torch.einsum("ijbh,ibh->jbh", factors[:, :, k], start) + added[:, k]
        states.append(start)
    return torch.stack(states, 1)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, FEW, FEW + 1, 64, 300])
def test_states_are_those_of_the_plain_recursion(parts, steps):
    factors = 0.9 * draw(parts, parts, steps, 2, 3) / parts
    added, start = draw(parts, steps, 2, 3, seed=1), draw(parts, 2, 3, seed=2)
    found = recurrence(factors, added, start)
    torch.testing.assert_close(found, plain(factors, added, start), rtol=1e-12, atol=1e-13)


def test_ten_thousand_steps_against_mpmath():
    """Units that forget at once, slowly, never; signs that turn; what is added is 2^-300 to 1."""
    steps = 10_000
    decay = torch.tensor([0.1, 0.999, 1.0, -0.9999], dtype=torch.float64)
    factors = decay * (1 - 1e-4 * draw(steps, 4).abs())
    added = draw(steps, 4, seed=1) * torch.exp2(-300 * draw(steps, 1, seed=2).abs().clamp(max=1))
    found = recurrence(factors.view(1, 1, steps, 1, 4), added.view(1, steps, 1, 4), draw(1, 1, 4))
    with mpmath.workprec(200):
        for unit in range(4):
            state = mpmath.mpf(float(draw(1, 1, 4)[0, 0, unit]))
            size = abs(state)
            for k in range(steps):
                factor = mpmath.mpf(float(factors[k, unit]))
                state = factor * state + mpmath.mpf(float(added[k, unit]))
                size = abs(factor) * size + abs(mpmath.mpf(float(added[k, unit])))
                if k % 997 == 0:
                    error = abs(mpmath.mpf(float(found[0, k, 0, unit])) - state)
                    assert error <= 1e-11 * size


def test_products_that_leave_the_range():
    """2^1000 down to 2^-1000 and up again in eight steps each: exact, as powers of two are."""
    exponent = torch.tensor([-250.0] * 8 + [250.0] * 8, dtype=torch.float64).repeat(6)
    factors = torch.exp2(exponent).view(1, 1, -1, 1, 1).expand(-1, -1, -1, 1, 2)
    start = torch.tensor([[[2.0**1000, 0.0]]], dtype=torch.float64)
    found = recurrence(factors, torch.zeros(1, 96, 1, 2, dtype=torch.float64), start)
    assert torch.equal(found, plain(factors, torch.zeros_like(found), start))
    assert found[0, 7, 0, 0] == 2.0**-1000 and found[0, 95, 0, 0] == 2.0**1000
    growing = torch.full((1, 1, 200, 1, 2), 2.0**30, dtype=torch.float64)
    states = recurrence(growing, torch.zeros(1, 200, 1, 2, dtype=torch.float64), 1 + start)
    assert torch.equal(states, plain(growing, torch.zeros_like(states), 1 + start))


def test_slabs_are_all_steps():
    found = list(slabs(1000, 2**15))
    assert [k for each in found for k in each] == list(range(1000)) and len(found) > 1


LAYERS = {
    "min-gru": lambda: retrograde.nn.MinGRU(3, 4, form="log"),
    "min-lstm": lambda: retrograde.nn.MinLSTM(3, 4, bidirectional=True),
    "lru": lambda: retrograde.nn.LRU(3, 4),
    "selective": lambda: retrograde.nn.SelectiveScan(3, 4),
    "attention": lambda: retrograde.nn.GatedLinearAttention(3, 4, key_size=2),
    "mlstm": lambda: retrograde.nn.MLSTM(3, 4, key_size=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_computes_what_its_step_does(name, monkeypatch):
    """Outputs, last state and all gradients, over several slabs, against autograd on the step."""
    monkeypatch.setattr("retrograde.engine.blocks.TOGETHER", 2000)
    torch.manual_seed(0)
    layer, x = LAYERS[name]().double(), draw(150, 2, 3).requires_grad_()
    assert by_blocks(layer.cells()[0], x)
    _, state = layer(x[:5])
    state = state if isinstance(state, tuple) else (state,)
    state = tuple(part.detach().requires_grad_() for part in state)
    output, last = layer(x, state if len(state) > 1 else state[0])
    last = last if isinstance(last, tuple) else (last,)
    outputs, ends = [], []
    for number, cell in enumerate(layer.cells()):
        s, along = torch.cat([part[number] for part in state], -1), x.flip(0) if number else x
        states = []
        for x_k in along:
            s = cell.step(x_k, s).state
            states.append(s)
        h = torch.stack(states)[..., cell.output]
        outputs.append(h.flip(0) if number else h)
        ends.append(s)
    ours = [torch.cat([part[number] for part in last], -1) for number in range(len(ends))]
    by_step = torch.cat(outputs, -1)
    given = [draw(*each.shape, seed=seed) for seed, each in enumerate([by_step, *ends])]
    leaves = [x, *state, *layer.parameters()]
    found, exact = (
        torch.autograd.grad(
            sum((g * e).sum() for g, e in zip(given, every, strict=True)), leaves, allow_unused=True
        )
        for every in ([output, *ours], [by_step, *ends])
    )
    torch.testing.assert_close(output, by_step, rtol=1e-11, atol=1e-12)
    for one, other in zip(found, exact, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_a_stack_runs_layer_by_layer():
    layer = retrograde.nn.MinGRU(3, 4, num_layers=2, dtype=torch.float64)
    cell, x, initial = Stacked(layer.cells()), draw(100, 2, 3), draw(2, 8)
    found = unroll(cell, x, initial).states
    for k in range(100):
        initial = cell.step(x[k], initial).state
        torch.testing.assert_close(found[k + 1], initial, rtol=1e-12, atol=1e-13)
