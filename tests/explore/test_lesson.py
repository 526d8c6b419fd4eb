"""The lecture's network against a loop of its own and autograd."""

import pytest
import torch

from retrograde.errors import ArgumentError
from retrograde.explore.lesson import GENERATIONS, KNOBS, Setting, cell_of, flow_of, recorded

SMALL = {"steps": 6, "hidden": 3}


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_a_pass_is_that_of_a_plain_loop(generation):
    """The gradient by autograd, of a loop over the cell's step that records nothing."""
    setting = Setting(generation, **SMALL, recurrent_scale=1.7, forget_bias=0.8, input_bias=-0.5)
    made, flow = recorded(setting), flow_of(setting)
    weights = {n: w.clone().requires_grad_() for n, w in made.cell.parameters.items()}
    cell = made.cell.with_parameters(weights)
    state, loss = torch.zeros(1, cell.state_size, dtype=torch.float64), 0.0
    for x_k, given in zip(made.x, made.direct, strict=True):
        state = cell.step(x_k, state).state
        loss = loss + (given[:, cell.output] * state[:, cell.output]).sum()
    loss.backward()
    for name, weight in weights.items():
        torch.testing.assert_close(flow.by_lag(name).parts().sum(0), weight.grad)


def test_the_recurrent_scale_scales_recurrent_weights_alone():
    one, two = cell_of(Setting(**SMALL)), cell_of(Setting(**SMALL, recurrent_scale=2.0))
    for name, weight in one.parameters.items():
        factor = 2 if name == "weight_hh" else 1
        assert torch.equal(two.parameters[name], factor * weight)


@pytest.mark.parametrize("generation", GENERATIONS.values())
def test_each_bias_moves_the_rows_of_its_gate_and_no_others(generation):
    plain = Setting(generation, **SMALL)
    names = [gate.name for gate in plain.gates]
    for knob in KNOBS.values():
        turned = cell_of(Setting(generation, **SMALL, **{knob: 1.5})).parameters["bias_ih"]
        moved = (turned - cell_of(plain).parameters["bias_ih"]).view(len(names), 3)
        expected = [1.5 if name == plain.knobs.get(knob) else 0.0 for name in names]
        torch.testing.assert_close(moved, torch.tensor(expected).double()[:, None].expand(-1, 3))


def test_a_smaller_network_is_cut_from_a_larger_one():
    small, large = cell_of(Setting(hidden=4)), cell_of(Setting(hidden=16))
    part = large.parameters["weight_hh"].view(4, 16, 16)[:, :4, :4] * 2  # 1/sqrt(H)
    torch.testing.assert_close(small.parameters["weight_hh"].view(4, 4, 4), part)
    short, long = recorded(Setting(steps=5)), recorded(Setting(steps=9))
    assert torch.equal(short.x, long.x[:5])


def test_the_loss_enters_where_it_is_said_to():
    every, last = recorded(Setting(**SMALL)), recorded(Setting(**SMALL, every_step=False))
    assert every.direct.flatten(1).any(1).all()
    assert last.direct.flatten(1).any(1).tolist() == [False] * 5 + [True]
    assert torch.equal(every.direct[-1], last.direct[-1])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"generation": "lstm-2001"}, "lstm-2002"),
        ({"steps": 201}, "steps"),
        ({"hidden": 0}, "hidden"),
        ({"recurrent_scale": float("nan")}, "recurrent_scale"),
        ({"forget_bias": "1"}, "forget_bias"),
    ],
)
def test_a_setting_that_is_none_is_refused(wrong, said):
    with pytest.raises(ArgumentError, match=said):
        Setting(**wrong)
