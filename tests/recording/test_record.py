"""Recording torch models: what is taken, what is refused by name, and that no trace is left."""

import copy
import gc
import sys
import textwrap
import warnings
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.errors import (
    ArgumentError,
    NonFiniteError,
    RecordingError,
    UnsupportedModelError,
)


class Model(nn.Module):
    """A user's model: two recurrent layers in the middle of other things."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(4, 5, 2, batch_first=True)})
        self.decoder = nn.GRU(5, 2, batch_first=True)
        self.head = nn.Linear(2, 1)

    def forward(self, x):
        return self.head(self.decoder(self.encoder["lstm"](self.embed(x))[0])[0])


def run(model, x):
    return model(x).square().mean()


def recorded(model, x, loss=lambda out: out[0].sum(), hx=None):
    with retrograde.record(model) as recording:
        loss(model(x, hx)).backward()
    return recording


def test_every_recurrent_layer_is_found_by_its_name():
    torch.manual_seed(0)
    model, x = Model(), torch.randn(2, 7, 3)
    with retrograde.record(model) as recording:
        run(model, x).backward()
    assert list(recording) == ["encoder.lstm", "decoder"]
    assert recording["encoder.lstm"].x.shape == (7, 2, 4)  # time first
    for layer in recording.values():
        assert retrograde.decompose(layer).residual < 1e-5
    with pytest.raises(ArgumentError, match=r"2 recurrent layers .* recording\['encoder.lstm'\]"):
        retrograde.decompose(recording)


def test_recorded_holds_what_the_contract_promises():
    torch.manual_seed(0)
    model = nn.LSTM(3, 4, num_layers=2)
    h0, c0 = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    layer = recorded(model, torch.randn(6, 5, 3), hx=(h0, c0)).only()
    assert layer.h0.equal(h0) and layer.c0.equal(c0)
    assert list(layer.weights) == [name for name, _ in model.named_parameters()]
    assert layer.output_adjoint.equal(torch.ones(6, 5, 4))
    for name, parameter in model.named_parameters():
        assert layer.gradients[name].equal(parameter.grad)
    assert recorded(nn.GRU(3, 4), torch.ones(2, 1, 3)).only().c0 is None


def test_a_batch_first_and_an_unbatched_input_mean_the_same():
    torch.manual_seed(0)
    x = torch.randn(6, 1, 3)
    one = nn.GRU(3, 4)
    other = nn.GRU(3, 4, batch_first=True)
    other.load_state_dict(one.state_dict())
    flows = [
        retrograde.decompose(recorded(module, given))
        for module, given in ((one, x), (other, x.transpose(0, 1)), (one, x.squeeze(1)))
    ]
    for flow in flows[1:]:
        for name in flow.parameters:
            assert flow.by_time(name).log2.equal(flows[0].by_time(name).log2)


def test_only_the_gradient_of_this_very_pass_counts():
    """Gradients that were there before are neither counted nor lost."""
    torch.manual_seed(0)
    model, x = nn.LSTM(2, 3), torch.randn(5, 2, 2)
    model(x)[0].sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    recording = recorded(model, x, lambda out: out[0].square().sum())
    assert retrograde.decompose(recording).residual < 1e-5
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, before[name] + recording.only().gradients[name])


def test_an_optimiser_step_inside_the_block_does_not_matter():
    torch.manual_seed(0)
    model = nn.LSTM(2, 3)
    optimiser = torch.optim.SGD(model.parameters(), lr=10.0)
    with retrograde.record(model) as recording:
        model(torch.randn(5, 2, 2))[0].sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    assert retrograde.decompose(recording).residual < 1e-5


def trace(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: p.grad for name, p in model.named_parameters()},
        [p.requires_grad for p in model.parameters()],
        [module.training for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        [len(p._backward_hooks or {}) for p in model.parameters()],
        torch.get_rng_state(),
        torch.get_default_dtype(),
    )


def same(before, after):
    for a, b in zip(before, after, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(x is b[n] or torch.equal(x, b[n]) for n, x in a.items())
        elif isinstance(a, torch.Tensor):
            assert a.equal(b)
        else:
            assert a == b


@pytest.mark.parametrize("fails", ["", "model", "loss", "ours"])
def test_no_trace(fails):
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(2, 7, 3)
    model.decoder.train()
    before = trace(model)
    try:
        with retrograde.record(model) as recording:
            if fails == "model":
                model(torch.ones(2, 7, 9))
            loss = run(model, x)
            if fails == "loss":
                raise KeyError("in the user's loss")
            if fails != "ours":
                loss.backward()
        retrograde.decompose(recording["decoder"])
    except (RuntimeError, KeyError, RecordingError):
        assert fails
    model.zero_grad()
    same(before, trace(model))
    copy.deepcopy(model)


def test_training_is_bit_identical_with_and_without_recording():
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = Model()
        optimiser = torch.optim.Adam(model.parameters())
        for _ in range(5):
            x = torch.randn(2, 7, 3)
            optimiser.zero_grad()
            if watched:
                with retrograde.record(model):
                    run(model, x).backward()
            else:
                run(model, x).backward()
            optimiser.step()
        results.append(trace(model))
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name])
    assert results[0][6].equal(results[1][6])


def test_nothing_of_the_model_is_kept_alive():
    model = nn.LSTM(2, 3)
    recording = recorded(model, torch.ones(4, 1, 2))
    flow = retrograde.decompose(recording)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert flow.residual < 1e-5


@given(
    batch_first=st.booleans(),
    layers=st.integers(1, 2),
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
)
def test_diagnosing_leaves_the_model_alone(batch_first, layers, kind):
    model = kind(2, 3, layers, batch_first=batch_first)
    before = trace(model)
    retrograde.diagnose(model, torch.ones(4, 3, 2), lambda m, x: m(x)[0].sum())
    same(before, trace(model))


X = torch.ones(4, 2, 3)


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})


REFUSED = [
    (lambda: nn.Linear(3, 3), "Linear holds no recurrent layer: expected an nn.LSTM"),
    (scripted, "'0': it is a TorchScript LSTM.*record the module that it was scripted from"),
    (quantised, "'0': it is a quantised LSTM.*before it is quantised"),
    (lambda: nn.LSTM(3, 4, dtype=torch.complex64), "'LSTM': its weights are torch.complex64"),
    (
        lambda: nn.RNN(3, 4).requires_grad_(False),
        "weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0 has requires_grad=False",
    ),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[s[:30] for _, s in REFUSED])
def test_models_that_cannot_be_recorded_are_refused_by_name(make, sentence):
    with pytest.raises(UnsupportedModelError, match=sentence):
        with retrograde.record(make()):
            raise AssertionError("the block must not run")


def test_an_error_of_ours_at_the_start_of_a_backward_pass_stays_out_of_it(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in ours")

    monkeypatch.setattr(sys.modules["retrograde.recording.observation"], "users_of", broken)
    model = nn.LSTM(3, 4)
    with pytest.raises(RecordingError, match="'LSTM': observing the backward pass failed, Zero"):
        with retrograde.record(model):
            model(X)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None


def test_layers_that_share_a_weight_are_refused():
    model = nn.ModuleDict({"a": nn.RNN(3, 4), "b": nn.RNN(3, 4), "c": nn.GRU(3, 4)})
    model["b"].weight_hh_l0 = model["a"].weight_hh_l0
    with retrograde.record(model) as recording:
        (model["a"](X)[0].sum() + model["b"](X)[0].sum() + model["c"](X)[0].sum()).backward()
    assert list(recording) == ["c"]
    with pytest.raises(UnsupportedModelError, match="'a': its weight_hh_l0 is also that of 'b'"):
        recording["a"]


def test_all_complaints_come_at_once():
    model = nn.Sequential(
        nn.GRU(3, 4).requires_grad_(False), nn.GRUCell(3, 4, dtype=torch.complex64)
    )
    with pytest.raises(UnsupportedModelError) as error, retrograde.record(model):
        pass
    for part in ("'0':", "requires_grad", "'1':", "complex64"):
        assert part in str(error.value)


def test_a_layer_that_is_refused_does_not_stop_the_others():
    model = nn.ModuleDict({"a": nn.GRU(3, 4), "b": nn.GRU(4, 2).requires_grad_(False)})
    with retrograde.record(model) as recording:
        model["b"](model["a"](X)[0])[0].sum().backward()
    assert list(recording) == ["a"]
    assert retrograde.decompose(recording).residual < 1e-5
    assert "requires_grad=False" in recording.refused["b"]
    with pytest.raises(UnsupportedModelError, match="'b': .*requires_grad=False"):
        recording["b"]
    with pytest.raises(KeyError):
        recording["c"]


def not_called(model):
    return None


def no_backward(model):
    model(X)


def unused(model):
    model(X)
    torch.ones(1, requires_grad=True).sum().backward()


def without_gradients(model):
    with torch.no_grad():
        model(X)


def by_autograd_grad(model):
    torch.autograd.grad(model(X)[0].sum(), list(model.parameters()))


def no_steps(model):
    model(torch.ones(4, 0, 3))[0].sum().backward()


def changed_unseen(model):
    loss = model(X)[0].sum()
    model.weight_hh_l0.data.mul_(2)
    loss.backward()


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (not_called, "'LSTM': it was not called while the pass was recorded"),
        (
            no_backward,
            r"'LSTM': no backward pass reached it: loss.backward\(\) was not called while",
        ),
        (unused, "'LSTM': .*the loss does not depend on this layer"),
        (without_gradients, "'LSTM': it was called where no gradient can arrive"),
        (by_autograd_grad, r"'LSTM': .*loss.backward\(\) did not start: torch.autograd.grad"),
        (no_steps, r"'LSTM': its input has shape \(4, 0, 3\): there is no step or sample"),
        (changed_unseen, "'LSTM': its weight_hh_l0 was changed in place between the forward and"),
    ],
)
def test_passes_that_cannot_be_recorded_are_named(use, sentence):
    model = nn.LSTM(3, 4)
    with pytest.raises(RecordingError, match=sentence), retrograde.record(model):
        use(model)


def test_a_model_that_is_moved_between_forward_and_backward_is_named():
    """Torch itself refuses the backward pass, in words that do not help; ours come with them."""
    model = nn.LSTM(3, 4)
    with pytest.raises(RuntimeError) as error, retrograde.record(model):
        loss = model(X)[0].sum()
        model.double()
        loss.backward()
    assert any("'LSTM': its weight_ih_l0 was moved" in note for note in error.value.__notes__)


def test_an_optimiser_step_between_forward_and_backward_is_named():
    """Torch notices, and says which tensor by its shape; ours says which layer."""
    model = nn.LSTM(3, 4)
    with pytest.raises(RuntimeError) as error, retrograde.record(model):
        loss = model(X)[0].sum()
        with torch.no_grad():
            model.weight_hh_l0.mul_(2)
        loss.backward()
    assert any("'LSTM': its weight_hh_l0 was changed" in note for note in error.value.__notes__)


def test_a_model_that_is_moved_before_the_forward_pass_is_fine():
    model = nn.LSTM(3, 4)
    with retrograde.record(model) as recording:
        model.double()(X.double())[0].sum().backward()
    assert retrograde.decompose(recording).residual < 1e-12


def test_an_error_in_a_hook_of_ours_stays_out_of_the_users_way(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in ours")

    monkeypatch.setattr(sys.modules["retrograde.recording.readers"], "_tensors_of", broken)
    model = nn.LSTM(3, 4)
    with pytest.raises(RecordingError, match="'LSTM': recording it failed, ZeroDivisionError"):
        with retrograde.record(model):
            model(X)[0].sum().backward()
    assert model.weight_hh_l0.grad is not None


def test_a_recording_is_empty_until_its_block_ends():
    with pytest.raises(RecordingError, match="leave the `with record"):
        model = nn.LSTM(3, 4)
        with retrograde.record(model) as recording:
            model(X)[0].sum().backward()
            retrograde.decompose(recording)


def spoil(model, x, where):
    if where == "weight":
        with torch.no_grad():
            model.weight_hh_l0[2, 1] = torch.nan
    elif where == "input":
        x[3, 1, 0] = torch.inf
    elif where == "state":
        with torch.no_grad():
            model.weight_hh_l0.mul_(1e30)
            model.weight_ih_l0.mul_(1e30)


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("weight", "the weight weight_hh_l0 of 'RNN' is nan first at row 2, column 1"),
        ("input", "the input of 'RNN' is inf first at step 3, sample 1, feature 0"),
        ("state", "the state of 'RNN' is inf first at step 1, sample 0.*weights are too large"),
        ("loss", "dL/dh_l0 of 'RNN' is nan first at step 4, sample 0.*comes from the loss"),
    ],
)
def test_the_first_place_that_is_not_finite_is_named(where, sentence):
    torch.manual_seed(0)
    model, x = nn.RNN(3, 4, nonlinearity="relu"), torch.rand(6, 2, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    spoil(model, x, where)

    def loss(out):
        return out[0][4:].sum() * (torch.nan if where == "loss" else 1)

    recording = recorded(model, x, loss)
    with pytest.raises(NonFiniteError, match=sentence):
        retrograde.decompose(recording)


def test_inference_mode_is_named_where_nothing_has_a_gradient():
    layer, x = nn.LSTM(2, 3), torch.ones(4, 1, 2)
    with torch.inference_mode():
        made_there = nn.GRU(2, 3)
        with pytest.raises(RecordingError, match="inference_mode.. is on"):
            with retrograde.record(layer):
                layer(x)
    with pytest.raises(UnsupportedModelError, match="weights were made under .*inference_mode"):
        with retrograde.record(made_there):
            pass
    with retrograde.record(layer) as recording:
        with torch.inference_mode():
            layer(x)
        layer(x)[0].sum().backward()
    assert retrograde.decompose(recording).residual.ok


def test_a_gradient_that_is_written_into_later_was_kept_as_it_came():
    torch.manual_seed(0)
    model, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    plain = recorded(model, x, lambda out: out[0][-1].sum()).only()
    model.zero_grad(set_to_none=True)
    with retrograde.record(model) as recording:
        output = model(x)[0]
        output[-1].sum().backward()
        for parameter in model.parameters():
            parameter.grad.zero_()
    for name, gradient in recording.only().gradients.items():
        assert gradient.any() and gradient.equal(plain.gradients[name])


def test_the_lines_for_a_recurrence_written_by_hand_work():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Linear(2 + 3, 3)

        def forward(self, x, h):
            return torch.tanh(self.both(torch.cat((x, h), 1)))

    model = nn.Module()
    model.cell = Cell()
    with pytest.raises(UnsupportedModelError, match="written by hand") as refused:
        with retrograde.record(model):
            pass
    lines = str(refused.value).partition(":\n")[2].rpartition("\nA state")[0]
    given = {"torch": torch, "retrograde": retrograde, "model": model, "I": 2, "H": 3}
    given |= {"x": torch.randn(6, 4, 2), "loss_of": lambda h: h[-1].square().mean()}
    exec(textwrap.dedent(lines), given)
    assert retrograde.decompose(given["recorded"]).residual < 1e-6
    h = torch.zeros(4, 3)
    for x in given["x"]:
        h = model.cell(x, h)
    h.square().mean().backward()
    found = given["recorded"].gradients["both.weight"]
    torch.testing.assert_close(found, model.cell.both.weight.grad)
