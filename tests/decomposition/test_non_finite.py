"""The first NaN or infinity of a pass: step, layer, gate, route, and the growth that led there."""

import math

import pytest
import torch
from torch import nn

import retrograde
from retrograde.errors import NonFiniteError


def recorded(model, x, loss=lambda out: out[0][-1].sum()):
    with retrograde.record(model) as recording:
        loss(model(x)).backward()
    return recording


def place_of(recording):
    with pytest.raises(NonFiniteError) as error:
        retrograde.decompose(recording)
    assert str(error.value.place) in str(error.value)
    return error.value.place


def filled(model, **values):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(values.get(name, 0.0))
    return model


def test_a_forward_pass_that_doubles_its_exponent():
    """h_k = 2^10 h_{k-1} from h_0 = 1: 2^130 is the first beyond float32, at step 12."""
    model = filled(nn.RNN(1, 1, nonlinearity="relu"), weight_hh_l0=2.0**10, weight_ih_l0=1.0)
    x = torch.zeros(40, 2, 1)
    x[0] = 1
    place = place_of(recorded(model, x))
    assert (place.what, place.step, place.name, place.route) == ("state", 13, "h_l0", "recurrent")
    assert place.growth == pytest.approx(10, abs=1e-6)


def test_the_layer_whose_state_overflows_is_named():
    torch.manual_seed(0)
    model = nn.RNN(2, 3, num_layers=2, nonlinearity="relu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.abs_()
            if name == "weight_hh_l1":
                parameter.mul_(1e20)
    place = place_of(recorded(model, torch.rand(9, 2, 2)))
    assert (place.what, place.name, place.route) == ("state", "h_l1", "recurrent_l1")
    assert "h_l1" in place.sentence and "recurrent_l1" in place.sentence


def test_a_weight_that_is_infinite_is_named_with_its_gate():
    model = filled(nn.LSTM(1, 2))
    with torch.no_grad():
        model.weight_hh_l0[3, 1] = -torch.inf
    place = place_of(recorded(model, torch.ones(5, 1, 1)))
    assert (place.what, place.name, place.gate) == ("weight", "weight_hh_l0", "forget")


def test_a_gate_whose_pre_activation_is_nan_is_named():
    """h is 0, 1/2, 3/4. At step 2 3e38 (h + h) overflows, and a shut reset gate makes that nan.

    So it does in any order, as both terms have one sign; of 3e39 - 3e39 some processors make inf.
    """
    model = filled(nn.GRU(1, 2))
    with torch.no_grad():
        model.bias_ih_l0[:2], model.bias_ih_l0[4:] = -200.0, 20.0
        model.weight_hh_l0[4:] = 3e38
    place = place_of(recorded(model, torch.zeros(5, 1, 1)))
    assert (place.what, place.step, place.gate) == ("state", 2, "candidate")


def test_a_loss_that_gives_nan_back():
    model = nn.GRU(2, 3)
    recording = recorded(model, torch.ones(6, 2, 2), lambda out: (out[0][4] * torch.nan).sum())
    place = place_of(recording)
    assert (place.what, place.step, place.name) == ("loss", 4, "h_l0")


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 7), (torch.float64, 52)])
def test_a_backward_pass_that_overflows_is_followed_to_the_step(dtype, limit):
    """dL/dh_{k-1} = 2^20 dL/dh_k on a state of 0: beyond 2^128 after 7 steps, 2^1024 after 52."""
    model, x = filled(nn.RNN(1, 1, dtype=dtype), weight_hh_l0=2.0**20), torch.zeros(60, 1, 1)
    flow = retrograde.decompose(recorded(model, x.to(dtype)))
    place = flow.non_finite
    assert place is not None and place.what == "adjoint"
    assert (place.step, place.route) == (59 - limit, "recurrent")
    assert place.growth == pytest.approx(20)
    assert "leaves the range" in str(place) and math.isnan(flow.residual)


def test_a_finite_pass_has_no_such_place():
    model = nn.LSTM(2, 3)
    assert retrograde.decompose(recorded(model, torch.ones(4, 1, 2))).non_finite is None


def test_a_report_goes_on_with_the_layers_that_are_finite():
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.GRU(2, 3), "b": nn.GRU(2, 3)})
    with torch.no_grad():
        model["b"].weight_hh_l0[7, 0] = torch.inf
    x = torch.ones(5, 2, 2)
    with retrograde.record(model) as recording:
        (model["a"](x)[0].sum() + model["b"](x)[0].sum()).backward()
    report = retrograde.diagnose(recording)
    assert [layer.name for layer in report.layers] == ["a"]
    (finding,) = [finding for finding in report.findings if finding.layer == "b"]
    assert finding.rule == "non-finite" and not report.ok
    assert "weight_hh_l0 of 'b' is inf first at row 7" in finding.message
