"""A cell that the package has never seen: equations, gates and edges are all that it has to give.

The unit of support/gated_unit.py, written there and nowhere else, gets everything that the package
does.
"""

import pytest
import torch
from torch import nn

import retrograde
from retrograde.cells import Stacked, pull_back, truncated
from retrograde.cells.base import standard_shapes
from retrograde.clipping import PreActivationValue, StateNorm
from retrograde.nn import AbstractRecurrent
from support.gated_unit import Unit

EXACT = {"rtol": 1e-9, "atol": 1e-12}


class Units(AbstractRecurrent):
    """The unit as a module."""

    def _shapes(self, inputs, hidden):
        return standard_shapes(2, inputs, hidden)

    def _layer(self, weights):
        return Unit(**weights)


def loop(weights, x, layers=1, cut=False):
    """The equations once more, for autograd; with `cut` nothing comes back through weights."""
    for layer in range(layers):
        w, r, b, c = (weights[f"{name}_l{layer}"] for name in standard_shapes(2, 1, 1))
        h, outputs = x.new_zeros(x.shape[1], r.shape[1]), []
        for x_k in x:
            f, n = (x_k @ w.T + b + (h.detach() if cut else h) @ r.T + c).chunk(2, -1)
            h = f.sigmoid() * h + (1 - f.sigmoid()) * n.tanh()
            outputs.append(h)
        x = torch.stack(outputs)
    return x


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(12, 3, 2, dtype=torch.float64)


@pytest.fixture
def recording(x):
    module = Units(2, 4, dtype=torch.float64)
    with retrograde.record(module) as recording:
        module(x)[0].square().sum().backward()
    return recording


@pytest.mark.parametrize(("layers", "cut"), [(1, False), (2, False), (1, True)])
def test_it_trains_as_a_module(x, layers, cut):
    module = Units(2, 4, layers, truncated=cut, dtype=torch.float64)
    output, _ = module(x)
    output.square().sum().backward()
    weights = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    expected = loop(weights, x, layers, cut)
    torch.testing.assert_close(output, expected, **EXACT)
    expected.square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, **EXACT)


def test_its_gradient_is_taken_apart(recording):
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and flow.residual < 1e-12
    assert flow.routes == ("recurrent.keep", "recurrent.new", "carousel")
    for name in flow.parameters:
        of_each = (flow.by_route, flow.by_crossing, flow.by_lag, flow.by_unit)
        for parts in (by(name) for by in of_each):
            assert float(parts.share.sum()) == pytest.approx(1)
    assert flow.clipped(PreActivationValue(1e-3)).kept() < 1
    both = flow.without("recurrent.keep", "recurrent.new").gradient
    cut = retrograde.decompose(recording.only()).by_crossing(max_crossings=1)
    assert all(bool(gradient.plain().isfinite().all()) for gradient in both.values())
    assert 0 < float(cut.share[0].sum()) < 1


def test_its_spectrum_and_the_bounds_of_its_matrices(recording):
    spectrum = retrograde.spectrum(recording)
    assert spectrum.exponents.each.shape == (3, 4) and spectrum.without_bounds == ()
    assert {bound.route: bound.threshold for bound in spectrum.bounds} == {
        "recurrent.keep": 4.0,
        "recurrent.new": 1.0,
    }
    assert list(spectrum.memory.time_constants) == ["h_l0"]


def test_weights_of_another_layer_are_refused_with_the_shapes_it_has():
    with pytest.raises(RuntimeError, match=r"A layer has weight_ih \[8, 2\], weight_hh \[8, 4\]"):
        Units(2, 4).load_state_dict(nn.LSTM(2, 4).state_dict())


@pytest.mark.parametrize("policy", [StateNorm(1e-3), PreActivationValue(1e-3)])
def test_it_is_clipped_inside_its_back_propagation(x, policy):
    module = Units(2, 4, dtype=torch.float64)
    module(x)[0].square().sum().backward()
    plain = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    retrograde.nn.clip_inside(module, policy)
    module(x)[0].square().sum().backward()
    clipped = [parameter.grad for parameter in module.parameters()]
    assert all(float(c.norm()) < float(p.norm()) for c, p in zip(clipped, plain, strict=True))


def test_it_is_stacked_and_cut_like_any_other(x):
    lower, upper = Units(2, 4, dtype=torch.float64), Units(4, 4, dtype=torch.float64)
    cell = Stacked((*lower.cells(), *upper.cells()))
    recorded = retrograde.record_cell(cell, x, lambda h, s: h.square().sum())
    flow = retrograde.decompose(recorded)
    assert flow.residual < 1e-12 and "carousel_l1" in flow.routes
    left = flow.without(*flow.unrolled.cell.recurrent_routes).gradient
    assert float(left["weight_hh_l0"].plain().norm()) > 0
    with torch.no_grad():
        step = cell.step(x[0], x.new_ones(3, 8))
        graph = truncated(cell).linearise(step)
        kept = pull_back(graph, torch.ones_like(step.state).unsqueeze(0)).previous()
    upper_keeps = step.layers[1].activations["keep"]
    torch.testing.assert_close(kept[0][..., 4:], upper_keeps, **EXACT)


def test_it_is_diagnosed_with_remedies_that_have_a_place_in_it():
    torch.manual_seed(0)
    model = nn.ModuleDict({"unit": Units(2, 6), "head": nn.Linear(6, 1)})
    with torch.no_grad():
        model["unit"].bias_ih_l0[6:] = 9.0

    def loss_fn(model, x):
        return model["head"](model["unit"](x)[0][-1]).square().mean()

    report = retrograde.diagnose(
        model, torch.randn(30, 4, 2), loss_fn, needs_lag=20, remedies="pass"
    )
    status = {check.name: check.status for check in report.checks}
    assert status["saturated"] == "found" and status["misleading-radius"] == "not applicable"
    (finding,) = (each for each in report.findings if each.rule == "saturated")
    assert finding.gate == "new"
    assert any(trial.after is not None for each in report.findings for trial in each.trials)
