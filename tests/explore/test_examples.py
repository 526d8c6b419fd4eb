"""The worked examples against closed forms, printed numbers and plain autograd."""

import math

import pytest
import torch

from retrograde.explore import examples, proof
from retrograde.explore.examples import by_hand as letters
from retrograde.explore.lesson import Setting, flow_of


@pytest.mark.parametrize("w", [-0.9, 0.5, 1.4])
def test_three_steps_are_the_derivation_by_hand(w):
    states = [letters.S_0]
    for value in letters.INPUTS:
        states.append(letters.W_X * value + w * states[-1] + letters.B_1)
    through = -(letters.Y_3 - (letters.W_O * states[3] + letters.B_2)) * letters.W_O
    found = examples.three_steps(w)
    assert found.through == pytest.approx(through)
    by_hand = [through * states[2], through * w * states[1], through * w * w * states[0]]
    assert found.terms == pytest.approx(by_hand)
    assert f"{sum(by_hand):.3f}$$" in examples.three_steps_in_tex(found)
    assert f"stays at {sum(by_hand):.3f}" in examples.three_steps_in_words(found)


def test_the_printed_numbers():
    assert examples.components() == pytest.approx(list(examples.PRINTED), abs=1e-12, rel=0)
    table = examples.components_in_markdown()
    assert all(f"{number:.15f}" in table for number in examples.PRINTED)
    assert "12.7 times" in examples.components_in_words()


@pytest.mark.parametrize("w", [0.99, 1.0, 1.01])
def test_a_little_over_two_hundred_steps(w):
    assert examples.over_steps(w) == pytest.approx(w**200)


def test_the_carousel_cannot_explode_and_the_gates_can():
    """The factor of each is that of the adjoints of the pass with all other routes cut."""
    explodes = Setting(steps=40, recurrent_scale=6.0, forget_bias=3.0, every_step=False)
    found = examples.growth_by_gate(explodes)
    assert list(found) == [examples.CAROUSEL, *examples.ROUTES.values(), examples.ALL]
    flow = flow_of(explodes)
    others = [route for route in flow.routes if route not in ("carousel", "recurrent.cell")]
    by_cell = found["R_g of the cell input"]
    assert by_cell == pytest.approx(2 ** flow.without(*others).adjoints.rate)
    assert found["all of them"] == pytest.approx(2**flow.adjoints.rate)
    assert found["carousel alone"] < 1 < min(by_cell, found["all of them"])
    assert "the adjoint **explodes**" in examples.growth_in_words(explodes)
    assert f"| {by_cell:.3f} | 2^{39 * math.log2(by_cell):.1f} |" in examples.growth_in_markdown(
        explodes
    )
    quiet = Setting(recurrent_scale=0.0, steps=10, every_step=False)
    assert len({round(rate, 9) for rate in examples.growth_by_gate(quiet).values()}) == 1
    assert "does not explode here" in examples.growth_in_words(quiet)


def test_only_the_recurrent_layer_knows_the_length():
    """Against autograd of the loop h_k = tanh(R h_{k-1} + W x_k) with the very weights."""
    state = torch.random.get_rng_state()
    short, out, recording = examples.long_pass(1.1, 20)
    long, out_long, _ = examples.long_pass(1.1, 40)
    assert torch.equal(state, torch.random.get_rng_state())
    assert out_long == pytest.approx(out, rel=0.01) and long > 5 * short
    made = recording.only()
    w, r = (made.weights[f"weight_{kind}_l0"].clone() for kind in ("ih", "hh"))
    torch.testing.assert_close(r @ r.T, 1.21 * torch.eye(16).double())  # 1.1 times orthogonal
    w.requires_grad_(), r.requires_grad_()
    h = torch.zeros(1, 16, dtype=torch.float64)
    for x_k in made.x:
        h = torch.tanh(x_k @ w.T + h @ r.T)
    grads = torch.autograd.grad((h * made.direct[-1]).sum(), [w, r])
    assert short == pytest.approx(float(sum(g.square().sum() for g in grads)) ** 0.5)
    told, table = examples.lengths_in_words(1.1), examples.lengths_in_markdown(1.1)
    assert "Of 100 trainings" in told and f"| 40 | {long:.3g} | {out_long:.3g} |" in table


def test_the_same_norm_at_the_end_keeps_the_direction_and_inside_does_not():
    found = examples.clipped_where(examples.EXPLODING, 2.0**-5)
    assert found.at_the_end.kept() == pytest.approx(found.kept, rel=1e-4)
    assert found.at_the_end.cosine() == pytest.approx(1)
    assert found.kept < 0.5 and found.inside.cosine() < 0.7
    assert f"**{found.inside.cosine():.3f}**" in examples.clipped_in_words(found)


@pytest.mark.parametrize("name, slope", [("identity", 1), ("tanh", 1), ("sigmoid", 0.25)])
def test_a_step_multiplies_by_weight_times_slope(name, slope):
    for weight in (0.5, 4.0):
        assert examples.factor_per_step(weight, name) == pytest.approx(weight * slope)


def test_eigenvalues_of_zero_double_with_every_step():
    """|J^n| = 2^(n-1) sqrt(200), as J^2 = 2 J."""
    norms = examples.nilpotent((1, 2, 5, 10))
    assert norms == pytest.approx([200**0.5 * 2.0 ** (n - 1) for n in (1, 2, 5, 10)])
    assert "keeps it" in examples.factors_in_words(4.0)
    assert "14.14, 28.28, 226.3, 7241" in examples.factors_in_words(4.0)
    assert "| sigmoid | 0.25 | 1 | 4 |" in examples.factors_in_markdown(4.0)


def test_two_networks_with_one_norm_do_not_reach_alike():
    """The norm is torch's own; the second pass is run with the output layer that was solved for."""
    far, near = proof.with_equal_norms(Setting(forget_bias=5.0), Setting(forget_bias=0.0))
    assert near.norm == pytest.approx(far.norm, rel=1e-12)
    assert far.readout == 1 and near.readout != 1
    assert far.flow.reach == 99 and near.flow.reach < 15
    for one in (far, near):
        whole = one.flow.by_lag("weight_hh_l0").parts().sum(0)
        assert float(whole.norm()) == pytest.approx(one.norm, rel=1e-9)
    low, high = proof.scale_of(far, near)
    sizes = [one.flow.by_time().log2_mean_by_lag for one in (far, near)]
    assert low == min(map(min, sizes)) - 1 and high == max(map(max, sizes)) + 1
    assert f"A reaches 99 of 99 steps, B {near.flow.reach}." in proof.in_words(far, near)
