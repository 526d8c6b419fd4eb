"""The recurrent layers of Keras, recorded where they stand, against their own gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.errors import RecordingError, UnsupportedModelError

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="run `make test-integrations`")

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="needs KERAS_BACKEND=torch"),
]

T, B, I, H = 9, 4, 3, 5  # noqa: E741
layers = keras.layers


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    """Keras' matmul on torch rounds float64 to float32 on its way, but for this table."""
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    from keras.src.backend.common import dtypes

    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(before)


def x(seed=1):
    return torch.randn(B, T, I, generator=torch.Generator().manual_seed(seed)).double()


IDS = torch.tensor([[1, 2, 0, 0, 0], [0, 0, 3, 1, 2], [3, 0, 0, 2, 1], [1, 1, 1, 1, 1]])


def model_of(*parts, shape=(T, I)):
    model = keras.Sequential([keras.Input(shape), *parts])
    for variable in model.trainable_variables:  # a bias of zeros would hide where it is used
        noise = torch.randn(
            variable.shape, generator=torch.Generator().manual_seed(len(variable.path))
        )
        variable.assign(variable.value.detach() + 0.2 * noise.double())
    return model


def recorded(model, given, **call):
    with retrograde.record(model) as recording:
        outputs = keras.tree.flatten(model(given, **call))
        sum((number + 1) * out.square().mean() for number, out in enumerate(outputs)).backward()
    assert recording
    return recording


def exact(recording):
    found = {name: retrograde.decompose(recording[name]).residual for name in recording}
    return all(residual.ok and residual < 1e-12 for residual in found.values())


@pytest.mark.parametrize(
    "part",
    [
        lambda **k: layers.LSTM(H, **k),
        lambda **k: layers.LSTM(H, activation="relu", recurrent_activation="hard_sigmoid", **k),
        lambda **k: layers.GRU(H, **k),
        lambda **k: layers.GRU(H, reset_after=False, **k),
        lambda **k: layers.GRU(H, activation="softsign", use_bias=False, **k),
        lambda **k: layers.GRU(H, reset_after=False, activation="elu", **k),
        lambda **k: layers.SimpleRNN(H, **k),
        lambda **k: layers.SimpleRNN(H, activation="gelu", **k),
        lambda **k: layers.RNN(layers.LSTMCell(H), **k),
        lambda **k: layers.RNN([layers.LSTMCell(H), layers.GRUCell(2)], **k),
        lambda **k: layers.RNN(
            [layers.SimpleRNNCell(H), layers.LSTMCell(2, activation="relu")], **k
        ),
    ],
)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"return_sequences": True},
        {"return_state": True},
        {"return_sequences": True, "return_state": True, "go_backwards": True},
        {"unroll": True, "return_state": True},
    ],
)
def test_every_layer_adds_up_to_its_own_gradient(part, how):
    inputs = keras.Input((T, I))
    model = keras.Model(inputs, part(**how)(inputs))
    assert exact(recorded(model, x()))
    tokens = keras.Input((5,))
    model = keras.Model(tokens, part(**how)(layers.Embedding(4, I, mask_zero=True)(tokens)))
    assert exact(recorded(model, IDS))


@settings(max_examples=40, deadline=None, database=None)
@given(drawn=st.data())
def test_whatever_is_set_the_parts_add_up(drawn):
    flag, of = st.booleans(), st.sampled_from
    kind = drawn.draw(of(["LSTM", "GRU", "SimpleRNN"]), "kind")
    names = ("use_bias", "go_backwards", "return_sequences", "return_state", "unroll")
    how = {name: drawn.draw(flag, name) for name in (*names, "zero_output_for_mask")}
    if kind == "GRU":
        how["reset_after"] = drawn.draw(flag, "reset_after")
    if drawn.draw(flag, "another activation"):
        how["activation"] = drawn.draw(of(["relu", "linear", "softsign", "gelu"]), "activation")
    steps, batch = drawn.draw(st.integers(1, 6), "T"), drawn.draw(st.integers(1, 3), "B")
    seed = drawn.draw(st.integers(0, 99), "seed")
    keras.utils.set_random_seed(seed)
    layer = getattr(layers, kind)(drawn.draw(st.integers(1, 3), "H"), **how)
    layer.build((batch, steps, 2))
    for variable in layer.trainable_variables:
        variable.assign(torch.randn(variable.shape).double())
    sequences = torch.randn(batch, steps, 2).double()
    call = {}
    both = how["unroll"] and how["go_backwards"]  # with a mask Keras 3.15 itself fails
    if not both and drawn.draw(flag, "mask"):
        row = st.lists(flag, min_size=steps, max_size=steps).filter(any)
        call["mask"] = torch.tensor([drawn.draw(row) for _ in range(batch)])
    if drawn.draw(flag, "initial"):
        shape, count = (batch, layer.units), 1 + (kind == "LSTM")
        call["initial_state"] = [torch.randn(shape).double() for _ in range(count)]
    with retrograde.record(layer) as recording:
        found = keras.tree.flatten(layer(sequences, **call))
        chosen = [drawn.draw(flag) for _ in found]
        chosen[drawn.draw(st.integers(0, len(found) - 1))] = True
        some = [each for each, wanted in zip(found, chosen, strict=True) if wanted]
        sum((each * torch.randn(each.shape).double()).sum() for each in some).backward()
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and flow.residual < 1e-11
    for name in flow.parameters:
        whole, own = flow.by_lag(name).parts().sum(0), getattr(layer.cell, name).value.grad
        torch.testing.assert_close(whole, own, rtol=1e-9, atol=1e-9)


def test_both_directions_as_one_kernel_are_taken_apart(monkeypatch):
    """Keras does that on a GPU; here a kernel of ours stands in for it."""
    both = layers.Bidirectional(layers.LSTM(H, name="lstm"), name="both")
    model, kind = model_of(both), type(both)
    calls = []
    monkeypatch.setattr(kind, "_call_fused_lstm", lambda *_: calls.append(1) or x()[:, 0, :1])
    model(x())
    assert calls == [1]
    recording = recorded(model, x())
    assert calls == [1] and exact(recording) and len(recording) == 2
    model(x())
    assert calls == [1, 1]


@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave", None])
def test_both_directions_of_a_masked_sequence(merge):
    for sequences in (False, True):
        wrapped = layers.LSTM(H, return_sequences=sequences, zero_output_for_mask=True)
        model = model_of(
            layers.Embedding(4, I, mask_zero=True),
            layers.Bidirectional(wrapped, merge_mode=merge, name="both"),
            shape=(5,),
        )
        recording = recorded(model, IDS)
        assert list(recording) == [
            f"both/{wrapped.name.join(('forward_', ''))}",
            f"both/backward_{wrapped.name}",
        ]
        assert exact(recording)


def test_a_layer_has_the_names_gates_and_layout_of_keras():
    model = model_of(layers.LSTM(H, name="encoder"), layers.Dense(1))
    recording = recorded(model, x())
    flow = retrograde.decompose(recording["encoder"])
    assert flow.parameters == ("kernel", "recurrent_kernel", "bias")
    cell = model.get_layer("encoder").cell
    for name in flow.parameters:
        parts = flow.by_lag(name).parts()
        torch.testing.assert_close(parts.sum(0), getattr(cell, name).value.grad)
    gates = [gate for name, gate in flow.by_parameter().blocks if name == "kernel"]
    assert gates == ["input", "forget", "cell", "output"]
    kernel = flow.by_parameter().parts()[gates.index("cell")][: I * 4 * H].view(I, 4 * H)
    own = cell.kernel.value.grad[:, 2 * H : 3 * H]
    torch.testing.assert_close(kernel[:, 2 * H : 3 * H], own)


def test_an_lstm_of_torch_with_the_same_weights_gives_the_same_parts():
    model = model_of(layers.LSTM(H, return_sequences=True))
    theirs = nn.LSTM(I, H, batch_first=True).double()
    kernel, recurrent, bias = (v.value.detach() for v in model.layers[0].cell.trainable_variables)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(kernel.T), theirs.weight_hh_l0.copy_(recurrent.T)
        theirs.bias_ih_l0.copy_(bias), theirs.bias_hh_l0.zero_()
    with retrograde.record(theirs) as torchs:
        theirs(x())[0].square().mean().backward()
    ours = retrograde.decompose(recorded(model, x()))
    other = retrograde.decompose(torchs)
    for mine, torch_s in zip(
        ("kernel", "recurrent_kernel", "bias"), other.parameters, strict=False
    ):
        for question in ("by_lag", "by_route", "by_crossing"):
            one, two = getattr(ours, question)(mine), getattr(other, question)(torch_s)
            assert one.axes == two.axes
            torch.testing.assert_close(one.log2, two.log2)
            torch.testing.assert_close(one.share, two.share)
    assert ours.reach == other.reach
    policy = retrograde.clipping.PreActivationValue(1e-3)
    one, two = ours.clipped(policy).cosine("kernel"), other.clipped(policy).cosine("weight_ih_l0")
    assert one == pytest.approx(two) and one < 0.999


def test_a_dropout_of_the_input_is_seen_and_one_of_the_state_is_refused():
    recording = recorded(model_of(layers.LSTM(H, dropout=0.4)), x(), training=True)
    assert exact(recording)
    model = model_of(layers.GRU(H, recurrent_dropout=0.4))
    assert exact(recorded(model, x(), training=False))
    with pytest.raises(RecordingError, match="recurrent_dropout=0.4 multiplies the state by masks"):
        recorded(model, x(), training=True)


def test_a_stateful_layer_goes_on_from_its_last_state():
    # With use_cudnn="auto" Keras 3.15 itself fails: its loop keeps the state that it overwrites.
    gru = layers.GRU(H, stateful=True, use_cudnn=False, name="gru")
    model = keras.Sequential([keras.Input(batch_shape=(B, T, I)), gru, layers.Dense(1)])
    model(x(2))
    recording = recorded(model, x())
    assert exact(recording)
    assert recording["gru"].initial.any()


def test_a_model_that_is_not_built_says_so():
    model = keras.Sequential([layers.LSTM(H)])
    with pytest.raises(UnsupportedModelError, match="no weights, as a lazy layer before its first"):
        recorded(model, x())
    model(x())
    assert exact(recorded(model, x()))


def test_a_mask_that_skips_a_whole_sample_is_refused():
    model = model_of(layers.Embedding(4, I, mask_zero=True), layers.LSTM(H), shape=(5,))
    with pytest.raises(RecordingError, match="skips every step of sample 2"):
        recorded(model, IDS * torch.tensor([[1], [1], [0], [1]]))


def test_layers_inside_models_of_models_and_torch_modules():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([layers.GRU(H, name="inner")], name="encoder")
            self.head = layers.Dense(1)

        def call(self, x):
            return self.head(self.encoder(x))

    model = Net()
    model(x())
    recording = recorded(model, x())
    assert list(recording) == ["encoder/inner"] and exact(recording)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.keras, self.torch = layers.LSTM(H, return_sequences=True), nn.GRU(H, 2).double()

        def forward(self, x):
            return self.torch(self.keras(x))[0]

    mixed = Mixed()
    mixed(x())
    recording = recorded(mixed, x())
    assert sorted(recording) == ["keras", "torch"] and exact(recording)


def test_the_page_runs_and_prints_what_it_shows(tmp_path):
    """The docs are built without Keras: its blocks are marked py and none, which run nowhere."""
    root = Path(__file__).parents[2]
    page, run = tmp_path / "page.md", root / "scripts" / "run_pages.py"
    text = (root / "docs" / "with-keras.md").read_text()
    page.write_text(text.replace("```py\n", "```python\n").replace("```none\n", "```text\n"))
    done = subprocess.run(
        [sys.executable, run, "--check", tmp_path, page], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def compiled(*parts):
    keras.config.set_floatx("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((T, I)), *(p() for p in parts), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def data(samples=32):
    drawn = torch.randn(samples, T, I, generator=torch.Generator().manual_seed(2))
    return drawn.numpy(), drawn[:, :1, 0].numpy()


def test_fit_with_the_callback_trains_the_same_and_tells_its_history():
    from retrograde.integrations.keras import MonitorCallback

    seen, results = {}, []
    callbacks = [
        [],
        [MonitorCallback(every=3, log=lambda scalars, block: seen.update({block: scalars}))],
        [MonitorCallback(every=3, in_logs=True)],
    ]
    for some in callbacks:
        model = compiled(lambda: layers.Bidirectional(layers.LSTM(H), name="both"))
        first = model.layers[0].forward_layer
        history = model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=some)
        random = torch.get_rng_state()
        results.append((model.get_weights(), history.history["loss"], random))
        if some:
            reach = history.history[f"retrograde/both/{first.name}/reach"]
            assert len(reach) == 2 and all(0 < steps < T for steps in reach)
            assert history.history["retrograde/unrecorded"] == [0, 0]
            assert f"both/{first.name}" in some[0].monitor.history.layers
        assert not any(module._forward_hooks for module in model.modules())
    assert list(seen) == [0, 3, 6]
    for weights, losses, random in results[1:]:
        assert all((one == two).all() for one, two in zip(weights, results[0][0], strict=True))
        assert losses == results[0][1] and random.equal(results[0][2])


@keras.saving.register_keras_serializable("retrograde")
class OverSamples(layers.Layer):
    """A wrong one: it takes the axis of the samples for another."""

    def call(self, x):
        return x + x.mean(0, keepdim=True)


def test_the_wiring_of_a_keras_model_is_looked_at():
    from retrograde.integrations.keras import compiled_loss

    first, last = lambda: layers.LSTM(H, return_sequences=True), lambda: layers.LSTM(H)
    for part, found in ((layers.ReLU, set()), (OverSamples, {"samples-mixed"})):
        model = compiled(first, part, last)
        report = retrograde.diagnose(model, data(), compiled_loss, remedies=None)
        wiring = {finding.rule for finding in report.findings} & {"samples-mixed", "no-time"}
        assert wiring == found
        looked = {check.name: check.status for check in report.checks}
        assert looked["no-time"] == "passed" and looked["samples-mixed"] != "not applicable"


def test_a_compiled_model_is_diagnosed_by_its_own_loss():
    from retrograde.integrations.keras import compiled_loss

    shut = keras.initializers.Constant(-4.0)
    how = {"unit_forget_bias": False, "bias_initializer": shut, "name": "memory"}
    model = compiled(lambda: layers.LSTM(H, **how))
    before = model.get_weights()
    report = retrograde.diagnose(model, data(), compiled_loss, needs_lag=T - 1, remedies="pass")
    assert {"vanishing", "forget-gate-too-short"} <= {each.rule for each in report.findings}
    assert {each.layer for each in report.findings} == {"memory"}
    assert "could not be tried" not in str(report)
    assert all((one == two).all() for one, two in zip(before, model.get_weights(), strict=True))
    batches = [tuple(part[n : n + 8] for part in data()) for n in range(0, 32, 8)]
    horizon = retrograde.horizon(model, iter(batches), compiled_loss)
    assert horizon.reach is not None and len(horizon.bias) == T
    with pytest.raises(UnsupportedModelError, match="it only runs inside its model"):
        retrograde.audit(model, data(), compiled_loss)
    with pytest.raises(retrograde.errors.ArgumentError, match="compile it"):
        compiled_loss(keras.Sequential([layers.Dense(1)]), data())


class Torchs(nn.Module):
    """The same model of torch's layers, with the weights of one of Keras."""

    def __init__(self, theirs, flipped=False):
        super().__init__()
        *before, last, dense = theirs.layers
        both = hasattr(last, "forward_layer")
        self.before = nn.ModuleList(torchs_lstm(layer) for layer in before)
        self.last = torchs_lstm(*((last.forward_layer, last.backward_layer) if both else (last,)))
        self.out, self.flipped = nn.Linear(dense.kernel.shape[0], 1), flipped
        with torch.no_grad():
            self.out.weight.copy_(dense.kernel.value.T), self.out.bias.copy_(dense.bias.value)

    def forward(self, x):
        x = torch.as_tensor(x).flip(1) if self.flipped else torch.as_tensor(x)
        for layer in self.before:
            x = layer(x)[0]
        return self.out(torch.cat(tuple(self.last(x)[1][0]), -1))


def torchs_lstm(*directions):
    """An LSTM of torch with the weights of Keras' for each direction."""
    inputs, units = directions[0].cell.kernel.shape[0], directions[0].units
    made = nn.LSTM(inputs, units, batch_first=True, bidirectional=len(directions) > 1)
    with torch.no_grad():
        for layer, suffix in zip(directions, ("", "_reverse"), strict=False):
            kernel, recurrent, bias = (v.value for v in layer.cell.trainable_variables)
            made.get_parameter(f"weight_ih_l0{suffix}").copy_(kernel.T)
            made.get_parameter(f"weight_hh_l0{suffix}").copy_(recurrent.T)
            made.get_parameter(f"bias_ih_l0{suffix}").copy_(bias)
            made.get_parameter(f"bias_hh_l0{suffix}").zero_()
    return made


@pytest.mark.parametrize(
    ("parts", "far"),
    [
        ([lambda: layers.Bidirectional(layers.LSTM(H))], False),
        (
            [
                lambda: layers.LSTM(H, return_sequences=True),
                lambda: layers.Bidirectional(layers.LSTM(H)),
            ],
            False,
        ),
        ([lambda: layers.LSTM(H)], True),
        ([lambda: layers.LSTM(H, go_backwards=True)], True),
    ],
)
def test_a_model_is_told_what_one_of_torch_with_its_weights_is_told(parts, far):
    """Both directions are one layer in torch and two in Keras, and each reads what is given."""
    from retrograde.integrations.keras import compiled_loss

    model = compiled(*parts)
    x = torch.randn(32, 60, I, generator=torch.Generator().manual_seed(2))
    batch = x, x[:, :1, 0]
    backwards = getattr(model.layers[-2], "go_backwards", False)
    torchs = Torchs(model, backwards)
    torch.testing.assert_close(torchs(x), model(x), rtol=1e-5, atol=1e-6)

    def mse(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    told = []
    for each, loss in ((model, compiled_loss), (torchs, mse)):
        report = retrograde.diagnose(each, batch, loss, needs_lag=59, remedies=None)
        memory = {"vanishing", "forget-gate-too-short", "near-lags-dominate", "exploding"}
        checks = {(c.name, c.status, c.reason) for c in report.checks if c.name in memory}
        told.append(({each.rule for each in report.findings}, checks))
    assert told[0] == told[1]
    assert ("vanishing" in told[0][0]) == far


@pytest.mark.parametrize("how", [{}, {"go_backwards": True}])
def test_what_a_model_uses_is_what_one_of_torch_with_its_weights_uses(how):
    from retrograde.integrations.keras import compiled_loss

    model = compiled(lambda: layers.LSTM(H, **how))
    torchs = Torchs(model, bool(how))
    batch = tuple(map(torch.as_tensor, data()))

    def mse(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    one = retrograde.horizon(model, batch, compiled_loss)
    other = retrograde.horizon(torchs, batch, mse)
    assert one.used is not None and one.used.steps == other.used.steps
    torch.testing.assert_close(one.used.losses, other.used.losses, rtol=1e-5, atol=1e-6)
    assert one.used.losses.std() > 1e-3
    first = lambda: layers.GRU(H, return_sequences=True, name="first")  # noqa: E731
    model = compiled(first, lambda: layers.Bidirectional(layers.GRU(H, name="gru"), name="both"))
    assert retrograde.horizon(model, batch, compiled_loss, layer="first").used is not None
    found = retrograde.horizon(model, batch, compiled_loss, layer="both/forward_gru")
    assert found.used is None and "reads the sequence both ways" in str(found)


def test_both_rows_of_a_bias_are_told_apart():
    """A GRU with reset_after=True has two biases, and an initialiser fills both."""
    from retrograde.integrations.keras import compiled_loss

    ones = keras.initializers.Constant(1.0)
    model = compiled(lambda: layers.GRU(H, bias_initializer=ones, name="memory"))
    report = retrograde.diagnose(model, data(), compiled_loss, remedies=None)
    (finding,) = (each for each in report.findings if each.rule == "double-bias")
    assert "bias[0] and bias[1] hold the same, and Keras adds the two" in finding.message
    assert finding.gate == "update" and [each.value for each in finding.evidence[:2]] == [1, 2]
    recording = recorded(model, torch.as_tensor(data()[0]))
    blocks = retrograde.decompose(recording).by_parameter()
    assert blocks.blocks[6:] == tuple(
        (f"bias[{row}]", gate) for row in (0, 1) for gate in ("update", "reset", "candidate")
    )
    assert blocks.select(parameter="bias[1]").share.sum() > 0


def test_remedies_do_to_a_keras_model_what_they_do_to_one_of_torch():
    """The same random numbers, in Keras' layout; and the code that is printed does it."""
    from retrograde.integrations.keras import compiled_loss

    model = compiled(lambda: layers.LSTM(H, name="memory"))
    x = torch.randn(32, 60, I, generator=torch.Generator().manual_seed(2))
    batch, before = (x, x[:, :1, 0]), model.get_weights()

    def mse(model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    how = {"needs_lag": 59, "remedies": "pass"}
    report = retrograde.diagnose(model, batch, compiled_loss, **how)
    others = retrograde.diagnose(Torchs(model), batch, mse, **how)
    assert all((one == two).all() for one, two in zip(before, model.get_weights(), strict=True))
    tried, same = (
        {(f.rule, t.remedy): t for f in each.findings for t in f.trials}
        for each in (report, others)
    )
    known = {"forget-bias", "chrono", "orthogonal", "spectral-radius"}
    assert {remedy for _, remedy in tried} == known
    for pair, trial in tried.items():
        assert trial.after == pytest.approx(same[pair].after, rel=1e-3)
    assert "Not tried on memory, a layer of Keras: identity, no-forget-gate, lstm; each" in str(
        report.notes
    )
    for trial in tried.values():
        changed = keras.models.clone_model(model)
        changed.set_weights(before)
        exec(trial.code, {"model": changed, "torch": torch, "retrograde": retrograde})
        assert any(
            (one != two).any() for one, two in zip(before, changed.get_weights(), strict=True)
        )


@pytest.mark.parametrize(
    ("part", "torchs", "name"),
    [
        (lambda: layers.LSTM(H), nn.LSTM, "chrono"),
        (lambda: layers.LSTM(H), nn.LSTM, "torch"),
        (lambda: layers.GRU(H), nn.GRU, "forget-bias"),
        (lambda: layers.GRU(H, reset_after=False), nn.GRU, "uniform-gate"),
        (lambda: layers.GRU(H, use_bias=False), nn.GRU, "orthogonal"),
        (lambda: layers.SimpleRNN(H, activation="relu"), nn.RNN, "identity"),
    ],
)
def test_an_initialisation_finds_gates_where_keras_has_them(part, torchs, name):
    layer = part()
    model_of(layer)
    before = {v.name: v.value.detach().clone() for v in layer.trainable_variables}
    options = {"value": 2.5, "horizon": 20, "generator": torch.Generator().manual_seed(3)}
    retrograde.nn.initialise(layer, name, **options)
    cell = retrograde.decompose(recorded(keras.Sequential([layer]), x())).recorded.cell.cell
    if name == "torch":
        assert all((v.value.abs() <= H**-0.5).all() for v in layer.trainable_variables)
    if name in ("chrono", "forget-bias", "uniform-gate"):  # torch's order i, f, g, o and r, z, n
        second = slice(H, 2 * H)
        total = cell.bias_ih[second] + (0 if cell.bias_hh is None else cell.bias_hh[second])
        if name == "forget-bias":
            assert (total == 2.5).all()
        else:
            reference = torchs(I, H, dtype=total.dtype)
            options["generator"] = torch.Generator().manual_seed(3)
            retrograde.nn.initialise(reference, name, **options)
            torch.testing.assert_close(total, reference.bias_ih_l0[second])
    if name == "orthogonal":
        for gate in cell.weight_hh.chunk(3):
            torch.testing.assert_close(gate @ gate.T, torch.eye(H).to(gate))
    if name == "identity":
        assert cell.weight_hh.equal(torch.eye(H).to(cell.weight_hh))
    kernel = layer.cell.kernel.value
    assert kernel.equal(before["kernel"]) == (name not in ("torch", "identity"))


def test_a_layer_is_written_as_keras_has_it():
    from retrograde.declarations.keras import expression_of

    inner = keras.Sequential([keras.Input((T, I)), layers.GRU(H, name="gru")], name="inner")
    both = layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")
    model = keras.Sequential(
        [keras.Input((T, I)), layers.LSTM(I, return_sequences=True, name="a"), both]
    )
    assert expression_of(model, both.backward_layer) == "model.get_layer('both').backward_layer"
    assert eval(expression_of(model, both.backward_layer), {"model": model}) is both.backward_layer
    outer = keras.Sequential([keras.Input((T, I)), inner])
    gru = inner.get_layer("gru")
    assert expression_of(outer, gru) == "model.get_layer('inner').get_layer('gru')"
