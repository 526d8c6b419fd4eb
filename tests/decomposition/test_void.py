"""A residual beyond what the precision of a pass allows voids what rests on it; no other does."""

import copy
import math
import pickle
import warnings
from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import retrograde
from retrograde import VoidDecompositionWarning
from retrograde.cells import from_function
from retrograde.decomposition import Residual
from retrograde.decomposition import whole as whole_module
from retrograde.decomposition.check import check, fused_gradient
from retrograde.decomposition.residual import Allowance, residual
from retrograde.diagnosis import trials
from retrograde.diagnosis.rules import RULES
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.monitor import monitor as module
from retrograde.recording import Recording
from support.type_checks import unchecked


def recorded_pass(model, x, loss, cast=None):
    with retrograde.record(model) as recording, torch.autocast("cpu", cast, enabled=bool(cast)):
        loss(model(x)[0]).backward()
    model.zero_grad()
    return recording.only()


PRECISIONS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast": (torch.float32, torch.bfloat16),
}
LOSSES = {
    "last": lambda h: h[-1].square().sum(),
    "every step": lambda h: h.square().mean(),
    "classes": lambda h: (h.float() if h.dtype == torch.bfloat16 else h).logsumexp(-1).mean(),
    "signs": lambda h: (h * torch.tensor([1.0, -1.0]).repeat(len(h))[: len(h), None, None]).sum(),
}
drawn = given(
    kind=st.sampled_from([nn.RNN, nn.LSTM, nn.GRU]),
    precision=st.sampled_from(list(PRECISIONS)),
    loss=st.sampled_from(list(LOSSES)),
    steps=st.integers(1, 25),
    batch=st.integers(1, 9),
    hidden=st.integers(1, 6),
    layers=st.integers(1, 2),
    both=st.booleans(),
    scale=st.sampled_from([0.1, 1.0, 30.0]),  # of the input: units may be saturated
    gain=st.sampled_from([0.3, 1.0, 2.0]),  # of the recurrent weights: adjoints may grow
    seed=st.integers(0, 2**16),
)


def draw(kind, precision, loss, steps, batch, hidden, layers, both, scale, gain, seed):
    torch.manual_seed(seed)
    dtype, cast = PRECISIONS[precision]
    model = kind(3, hidden, layers, bidirectional=both)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= gain if name.startswith("weight_hh") else 1
    x = scale * torch.randn(steps, batch, 3)
    return recorded_pass(model.to(dtype), x.to(dtype), LOSSES[loss], cast)


@drawn
@settings(max_examples=20)
def test_a_healthy_pass_is_never_void(**pass_):
    """Also with contributions that cancel, saturated units and adjoints that grow."""
    with unchecked():
        recorded = draw(**pass_)
        flow = retrograde.decompose(recorded)  # a warning would be an error
        found, whole = flow.residual, flow.whole_residual
    assert found.ok and (found != found or found <= found.bound <= 0.5), (found, found.bound)
    assert whole.ok and flow.forward_agrees


@drawn
@settings(max_examples=10)
def test_a_fault_of_a_few_times_the_bound_is_always_void(**pass_):
    """Whatever the precision: the bound is what separates the two."""
    with unchecked():
        recorded = draw(**pass_)
        healthy = retrograde.decompose(recorded).residual
        if healthy.note:  # a gradient outside of its range is no proof
            return
        fault = 1 + 3 * healthy.bound
        planted = {name: g.double() * fault for name, g in recorded.gradients.items()}
        with pytest.warns(VoidDecompositionWarning, match="the parts do not add up to autograd's"):
            flow = retrograde.decompose(replace(recorded, gradients=planted))
    assert not flow.residual.ok and flow.residual > flow.residual.bound and flow.residual.note
    assert not flow.whole_residual.ok


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.5)]
)
def test_the_bound_is_as_tight_as_the_precision(dtype, most):
    torch.manual_seed(0)
    x = torch.randn(30, 4, 3).to(dtype)
    recorded = recorded_pass(nn.LSTM(3, 8).to(dtype), x, LOSSES["every step"])
    bound = retrograde.decompose(recorded).residual.bound
    assert most / 1e3 < bound <= most


def test_the_precision_is_that_of_the_arithmetic_and_not_of_the_gradients():
    """Under autocast the gradients of the weights are float32, and known to 8 bits."""
    model, x = nn.LSTM(3, 8), torch.randn(9, 4, 3)
    recorded = recorded_pass(model, x, LOSSES["every step"], torch.bfloat16)
    assert {gradient.dtype for gradient in recorded.gradients.values()} == {torch.float32}
    assert recorded.rounding == torch.finfo(torch.bfloat16).eps
    assert recorded_pass(model, x, LOSSES["every step"]).rounding == torch.finfo(torch.float32).eps
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert recorded_pass(model, x, LOSSES["every step"]).rounding == 2.0**-10
    finally:
        torch.set_float32_matmul_precision(before)


def last(model, x):
    return model(x)[0][-1].square().mean()


# What goes wrong, and what the note says of it.


def lstm_pass():
    torch.manual_seed(0)
    model = nn.LSTM(3, 5)
    return recorded_pass(model, torch.randn(12, 4, 3), LOSSES["every step"])


def wrong_weights(recorded):
    cell = recorded.cell
    scaled = {name: 1.2 * weight for name, weight in cell.parameters.items()}
    return replace(recorded, cell=cell.with_parameters(scaled))


def wrong_adjoint(recorded):
    return replace(recorded, direct=recorded.direct * torch.linspace(1, 1.01, 12).view(-1, 1, 1))


def wrong_bias(recorded):
    other = {**recorded.gradients, "bias_hh_l0": 1.01 * recorded.gradients["bias_hh_l0"]}
    return replace(recorded, gradients=other)


def no_gradient(recorded):
    zeros = {name: torch.zeros_like(g) for name, g in recorded.gradients.items()}
    return replace(recorded, gradients=zeros)


FAULTS = {
    "weights": (wrong_weights, "ends in another state"),
    "adjoint": (wrong_adjoint, "a hook that changes gradients on their way back"),
    "one": (wrong_bias, "only the gradient of bias_hh_l0 differs"),
    "zero": (no_gradient, "a hook that changes gradients"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_with_its_likely_reason(fault):
    plant, reason = FAULTS[fault]
    with pytest.warns(VoidDecompositionWarning, match=reason):
        flow = retrograde.decompose(plant(lstm_pass()))
    assert not flow.residual.ok and reason in flow.residual.note
    assert flow.forward_agrees is (fault != "weights")


class Straight(torch.autograd.Function):
    """Passes gradients through a rounding, which is not its derivative."""

    @staticmethod
    def forward(context, h):
        return h.round(decimals=1)

    @staticmethod
    def backward(context, gradient):
        return 3 * gradient


def test_a_function_of_the_users_own_after_the_layer_is_part_of_the_loss():
    model = nn.GRU(3, 5)
    recorded = recorded_pass(model, torch.randn(9, 4, 3), lambda h: Straight.apply(h).sum())
    assert retrograde.decompose(recorded).residual.ok


def test_chaos_is_void_for_another_reason(unchecked):
    torch.manual_seed(3)
    model = nn.RNN(2, 24)
    with torch.no_grad():
        model.weight_hh_l0 *= 6
    recorded = recorded_pass(model, torch.randn(100, 2, 2), LOSSES["last"])
    with pytest.warns(VoidDecompositionWarning, match=r"rounding alone decides.*by 2\^\d\d"):
        retrograde.decompose(recorded)


def test_what_explodes_is_said_where_rounding_decides(unchecked):
    """Growth is true of both passes, reach and shares are of neither."""
    torch.manual_seed(3)
    model, x = nn.RNN(2, 24), torch.randn(100, 2, 2)
    with torch.no_grad():
        model.weight_hh_l0 *= 6
    report = retrograde.diagnose(model, x, last, remedies=False, needs_lag=99)
    rules = [finding.rule for finding in report.findings]
    assert rules[0] == "exploding" and "rounding-decides" in rules and "void" not in rules
    assert not {"vanishing", "near-lags-dominate", "conflicting-lags"} & set(rules)
    assert report.layers[0].void and "void" in report.sentences[0]
    exact = retrograde.diagnose(model.double(), x.double()[:20], last, remedies=False)
    assert "rounding-decides" not in {finding.rule for finding in exact.findings}


def test_saturated_units_are_measured_before_they_are_condemned():
    """1 - h^2 of a saturated unit has few digits, here and in autograd, and not the same ones."""
    measured = 0
    for seed in range(12):
        torch.manual_seed(seed)
        recorded = recorded_pass(nn.LSTM(1, 1), 100 * torch.randn(2, 3, 1), LOSSES["last"])
        found = retrograde.decompose(recorded).residual
        assert found.ok
        measured += found > 1e-5
    assert measured


def test_most_passes_need_no_measurement(monkeypatch):
    def refuse(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(whole_module, "moved_by_rounding", refuse)
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        for seed in range(4):
            torch.manual_seed(seed)
            recorded = recorded_pass(kind(3, 6), torch.randn(25, 4, 3), LOSSES["every step"])
            flow = retrograde.decompose(recorded)
            assert flow.residual.ok and flow.whole_residual.ok


FUSED = {
    "LSTM": (nn.LSTM(3, 4).double(), True),
    "GRU": (nn.GRU(3, 4, 2).double(), True),
    "RNN": (nn.RNN(3, 4, bidirectional=True, num_layers=2).double(), True),
    "relu": (nn.RNN(3, 4, nonlinearity="relu", bias=False).double(), True),
    "LSTM both ways": (nn.LSTM(3, 4, 2, bidirectional=True).double(), True),
    "projected": (nn.LSTM(3, 4, proj_size=2).double(), False),
    "peephole": (retrograde.nn.LSTM(3, 4, generation="peephole").double(), False),
    "dropout": (nn.LSTM(3, 4, 2, dropout=0.5).double(), False),
}


@pytest.mark.parametrize("kind", FUSED)
def test_torchs_own_layers_check_a_recording(kind):
    """They find the gradient where they serve, and see what is wrong; what they lack is left."""
    torch.manual_seed(0)
    model, serves = FUSED[kind]
    x, lengths = torch.randn(7, 3, 3, dtype=torch.float64), torch.tensor([7, 5, 2])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
    for given_ in (x, packed):
        with retrograde.record(model) as recording:
            output = model(given_)[0]
            (output if given_ is x else output.data).square().sum().backward()
        model.zero_grad()
        recorded = recording.only()
        found = fused_gradient(recorded)
        assert (found is not None) == serves
        for name, gradient in (found or {}).items():
            torch.testing.assert_close(gradient, recorded.gradients[name])
        assert check(recorded).ok
        wrong = replace(recorded, direct=recorded.direct * torch.linspace(1, 2, 7).view(-1, 1, 1))
        assert not check(wrong).ok and check(wrong).note


def test_torchs_layers_are_given_no_cell_state_on_the_way():
    recorded = lstm_pass()
    direct = recorded.direct.clone()
    direct[3, :, recorded.cell.slots["c_l0"]] = 1.0
    assert fused_gradient(recorded) is not None
    assert fused_gradient(replace(recorded, direct=direct)) is None


def test_a_parameter_that_cancels_to_rounding_tells_nothing():
    """Its gradient is 0 but for rounding, and those of the others are as good as ever."""
    torch.manual_seed(0)
    cell = from_function(
        lambda w, x, h: torch.tanh(x @ w["in"] + h @ w["r"] + w["bias"]),
        {"in": torch.randn(3, 4), "r": torch.eye(4) / 2, "bias": torch.zeros(4)},
        input_size=3,
        state=4,
    )
    x = torch.randn(9, 2, 3)
    x[:, 1] = -x[:, 0]  # tanh is odd: what the two samples give to the bias cancels
    recorded = retrograde.record_cell(cell, x, lambda h, s: (h[:, 0] - h[:, 1]).sum())
    flow = retrograde.decompose(recorded)
    assert float(flow.gradient["bias"].plain().norm()) < 1e-5
    assert flow.residual.ok and flow.residual < 1e-5


def test_a_residual_is_a_float_that_knows_whether_it_holds():
    found = Residual(1e-3, "why", 1e-4, "the gradients that were given")
    assert not found.ok and Residual(1e-5, "", 1e-4).ok and Residual(math.nan, "none", 1.0).ok
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (other, other.note, other.bound, other.against) == (
            found,
            found.note,
            found.bound,
            found.against,
        )
    assert not found.sensitive and Residual(1.0, "", 0.5, sensitive=True).sensitive


# The diagnosis


def void_recording(plant=wrong_adjoint):
    recording = retrograde.Recording()
    recording.fill("LSTM", lambda: plant(lstm_pass()))
    return recording


def test_void_comes_first_and_silences_what_rests_on_it(unchecked):
    report = retrograde.diagnose(void_recording(), needs_lag=11)
    first = report.findings[0]
    assert (first.rule, first.severity, first.layer) == ("void", "error", "LSTM")
    assert "a hook that changes gradients" in first.causes[0]
    rest = {finding.rule for finding in report.findings[1:]}
    assert all(RULES[rule].rests_on != "parts" for rule in rest) and "vanishing" not in rest
    assert "forget-gate-too-short" in rest  # the forward pass agrees, and this rests on it
    void = [check for check in report.checks if "gradient are void" in check.reason]
    assert "no-gradient" in {check.name for check in void}
    assert {check.status for check in void} == {"not applicable"}
    rows = {name: (result, why) for _, name, result, _, why in report.checked}
    assert rows["vanishing"] == ("not applicable", "the parts of its gradient are void")
    assert rows["exploding"] == rows["no-gradient"] == rows["vanishing"]
    healthy = retrograde.diagnose(retrograde_recording(), needs_lag=11)
    assert "vanishing" in {finding.rule for finding in healthy.findings}


def retrograde_recording():
    return void_recording(lambda recorded: recorded)


def test_where_the_forward_pass_is_another_its_rules_are_silent_too(unchecked):
    report = retrograde.diagnose(void_recording(wrong_weights), needs_lag=11)
    assert {RULES[finding.rule].rests_on for finding in report.findings} == {"given"}
    assert not report.layers[0].gate_series


def test_every_view_of_a_report_says_void_first(tmp_path, unchecked):
    report = retrograde.diagnose(void_recording(), needs_lag=11)
    layer = report.layers[0]
    assert layer.void and layer.residual > layer.residual_bound and not report.ok
    assert report.summary.startswith("Its parts do not add up to autograd's gradient")
    assert "void" in report.sentences[0] and "reaches back" not in report.sentences[0]
    assert set(report.scalars()) == {"retrograde/LSTM/residual", "retrograde/LSTM/findings"}
    text = str(report)
    assert text.index("error  void") < text.index("forget-gate-too-short")
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.index("Its parts do not add up") < page.index("What was found")
    assert '"0-lags"' not in page and '"0-gates"' in page
    report.to_json(tmp_path / "report.json")
    assert retrograde.Report.from_json(tmp_path / "report.json") == report


def test_a_remedy_that_leaves_void_numbers_never_counts(monkeypatch, unchecked):
    torch.manual_seed(0)
    model, x = nn.LSTM(2, 4), torch.randn(16, 3, 2)
    plain = retrograde.diagnose(model, x, last, needs_lag=12, remedies="pass")
    closer = [t for f in plain.findings for t in f.trials if t.closer]
    assert closer
    original = trials.run

    def treated(*args, **kwargs):
        done = original(*args, **kwargs)
        recorded = done.recording["LSTM"]
        wrong = replace(recorded, direct=recorded.direct * torch.linspace(1, 2, 16).view(-1, 1, 1))
        done.recording._made["LSTM"] = wrong
        return done

    monkeypatch.setattr(trials, "run", treated)
    void = retrograde.diagnose(model, x, last, needs_lag=12, remedies="pass")
    tried = [t for f in void.findings for t in f.trials if t.residual is not None]
    assert tried and not any(t.closer or t.healthy for t in tried)
    assert all("what is left is void" in t.note for t in tried)


# The monitor


def changed(change):
    """What a monitor's pass closes with, each layer changed."""
    close = module.WatchedPass.close

    def closed(self):
        found, other = close(self), Recording()
        for name in found:
            other.fill(name, partial(change, found[name]))
        return other

    return closed


def test_the_monitor_logs_nothing_of_void_numbers(monkeypatch):
    """The whole pass is checked, not the part that is looked at."""
    torch.manual_seed(0)
    model, x = nn.LSTM(2, 6), torch.randn(20, 9, 2)
    monitor = retrograde.Monitor(model, every=1)

    def block():
        with monitor:
            model(x)[0].square().mean().backward()

    def doubled(recorded):
        direct = recorded.direct.clone()
        direct[:, -1] *= 2  # of the last sample, which is not among those looked at
        return replace(recorded, direct=direct)

    with monkeypatch.context() as patched:
        patched.setattr(module.WatchedPass, "close", changed(doubled))
        with pytest.warns(UserWarning, match="the parts do not add up"):
            block()
    assert monitor.scalars["retrograde/unrecorded"] == 1
    assert "a hook that changes gradients" in monitor.problems["LSTM"]
    of_layer = {name for name in monitor.scalars if "/LSTM/" in name}
    assert of_layer == {"retrograde/LSTM/gradient_norm", "retrograde/LSTM/nonfinite"}
    block()  # held against its gradient again, since that failed
    assert monitor.scalars["retrograde/unrecorded"] == 0 and not monitor.problems


@pytest.mark.parametrize(("log2", "lost"), [(-131, True), (-90, False)])
def test_a_gradient_of_0_is_an_underflow_only_near_the_smallest_normal_number(log2, lost):
    """The compiled backward pass takes what is below it as 0; farther away it is a fault."""
    parts = {"w": Scaled(torch.full((1, 1), 0.5), torch.tensor([log2 + 1]))}
    allowance = Allowance(2.0**-24, 9, {}, lambda: {"w": 0.0}, lambda *_: "a fault")
    found = residual(parts, {"w": torch.zeros(1)}, allowance)
    assert found.ok == lost
    assert found.note == (
        "autograd's gradient of w is 0 in its data type, where the exact one has norm 2^-131"
        if lost
        else "a fault"
    )


# Lags that end


def test_a_reach_that_may_be_longer_is_said_to_be_one(tmp_path, unchecked):
    recorded = replace(lstm_pass(), lags_end=(4, 8))
    flow = retrograde.decompose(recorded)
    assert flow.reach_is_lower_bound and not retrograde.decompose(lstm_pass()).reach_is_lower_bound
    assert recorded.part(2).lags_end == (4, 8)
    assert retrograde.decompose(recorded.part(2)).reach_is_lower_bound
    report = retrograde.diagnose(recorded, needs_lag=11)
    assert not {"vanishing", "near-lags-dominate"} & {f.rule for f in report.findings}
    assert "vanishing" in {f.rule for f in retrograde.diagnose(lstm_pass(), needs_lag=11).findings}
    assert any("lags end before steps 4, 8" in note for note in report.notes)
    assert f"at least {flow.reach} of 11" in str(report)
    assert f"at least {flow.reach} steps" in report.sentences[0]
    assert "cannot tell" in report.sentences[0]
    assert report.scalars()["retrograde/LSTM/lower_bound"] == 1
    report.to_html(tmp_path / "page.html")
    assert f"at least {flow.reach} of 11" in (tmp_path / "page.html").read_text()
    report.to_json(tmp_path / "report.json")
    assert retrograde.Report.from_json(tmp_path / "report.json").layers[0].reach_is_lower_bound


def test_the_monitor_marks_a_lower_bound(monkeypatch):
    model, x = nn.LSTM(2, 6), torch.randn(9, 4, 2)
    for ends in ((), (3,)):
        monitor = retrograde.Monitor(model)
        with monkeypatch.context() as patched, monitor:
            planted = changed(partial(replace, lags_end=ends))
            patched.setattr(module.WatchedPass, "close", planted)
            model(x)[0].square().mean().backward()
        assert ("retrograde/LSTM/lower_bound" in monitor.scalars) == bool(ends)


# Cells of one's own


class Hidden(nn.Module):
    """Keeps its weights in a dictionary, where functional_call cannot swap them."""

    def __init__(self, hide=("w", "b")):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 4) / 2), nn.Parameter(torch.zeros(4))
        self.hidden = {name: getattr(self, name) for name in hide}

    def forward(self, x, h):
        w, b = (self.hidden.get(name, getattr(self, name)) for name in ("w", "b"))
        return torch.tanh(x + h @ w + b)


def cell_of(module, **options):
    def step(weights, x, h):
        return torch.func.functional_call(module, weights, (x, h))

    return from_function(step, dict(module.named_parameters()), input_size=4, state=4, **options)


def test_parameters_without_an_effect_are_refused_by_name():
    with pytest.raises(ArgumentError, match="does not depend on 'w', 'b'.*functional_call"):
        cell_of(Hidden())
    with pytest.raises(ArgumentError, match="does not depend on 'b': no gradient comes back to it"):
        cell_of(Hidden(("b",)))
    assert cell_of(Hidden(())).parameters.keys() == {"w", "b"}


@pytest.mark.parametrize(
    "step",
    [
        lambda w, x, h: torch.relu(x + h @ w["r"] + w["bias"]),  # dead at first
        lambda w, x, h: torch.tanh(x + h @ (w["r"] * w["bias"].clamp(min=0))),  # shut at first
        lambda w, x, h: x * torch.sigmoid(1e4 * w["bias"]) + h @ w["r"],  # saturated
    ],
)
def test_a_parameter_whose_gradient_is_0_here_alone_is_taken(step):
    weights = {"r": torch.zeros(3, 3), "bias": torch.full((3,), -9.0)}
    assert from_function(step, weights, input_size=3, state=3).parameters.keys() == weights.keys()


def test_a_recorded_cell_says_what_it_is_compared_with():
    """Its own step by default; with the module's gradients, what the module itself does."""
    torch.manual_seed(0)
    module, x = Hidden(()), torch.randn(6, 2, 4)
    cell = cell_of(module)

    def run(loop):
        h, hs = torch.zeros(2, 4), []
        for x_k in x:
            h = loop(x_k, h)
            hs.append(h)
        torch.stack(hs).square().mean().backward()

    def recorded(**options):
        return retrograde.record_cell(cell, x, lambda h, s: h.square().mean(), **options)

    own = recorded()
    found = retrograde.decompose(own).residual
    assert found.ok and found.against == "autograd's gradient of the cell's own step"
    assert any("gradients=module" in note for note in own.notes)

    run(module)
    for given_ in (module, {name: p.grad for name, p in module.named_parameters()}):
        found = retrograde.decompose(recorded(gradients=given_)).residual
        assert found.ok and found.against == "the gradients that were given"

    module.zero_grad()
    run(lambda x_k, h: module(x_k, 0.9 * h))  # not what the cell does
    with pytest.warns(VoidDecompositionWarning, match="its step differs"):
        retrograde.decompose(recorded(gradients=module))

    grads = {name: p.grad for name, p in module.named_parameters()}
    for wrong, words in (
        ({"w": grads["w"]}, "none of 'b'"),
        ({**grads, "c": grads["b"]}, "gradients holds 'c'"),
        ({**grads, "b": grads["w"]}, r"shape \(4,\)"),
        (Hidden(()), "call backward"),
        (3, "got int"),
    ):
        with unchecked(), pytest.raises(ArgumentError, match=words):
            recorded(gradients=wrong)


def test_a_recorded_cell_is_diagnosed():
    """Rules that apply find what they find in torch's layer; the others say why not."""
    module = Hidden(())
    with torch.no_grad():
        module.w.copy_(torch.eye(4) / 4)
    cell = cell_of(module)
    recorded = retrograde.record_cell(cell, torch.randn(30, 2, 4), lambda h, s: h[-1].sum())
    report = retrograde.diagnose(recorded, needs_lag=25)
    assert "vanishing" in {finding.rule for finding in report.findings}
    rows = {name: (result, where, why) for _, name, result, where, why in report.checked}
    nothing = "the activations of its step are not known"
    assert rows["saturated"] == ("not applicable", "cell", nothing)
    assert rows["double-bias"][2] == "it has no forget gate with two biases"
    assert {check.status for check in report.checks if check.name == "saturated"} == {
        "not applicable"
    }
    retrograde.diagnose(recorded, layer="cell")
    with pytest.raises(ArgumentError, match="no layer 'rnn'"):
        retrograde.diagnose(recorded, layer="rnn")


def test_a_bare_lstm_is_diagnosed_as_the_layer_is(unchecked):
    torch.manual_seed(0)
    model, x = nn.LSTM(3, 5), torch.randn(30, 4, 3)
    with retrograde.record(model) as recording:
        LOSSES["last"](model(x)[0]).backward()
    layer = recording.only()
    bare = retrograde.record_cell(
        layer.cell, x, lambda h, s: LOSSES["last"](h), gradients=layer.gradients
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = retrograde.diagnose(recording), retrograde.diagnose(bare)
    assert [f.rule for f in one.findings] == [f.rule for f in other.findings]
    assert one.layers[0].reach == other.layers[0].reach
