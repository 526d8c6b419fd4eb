"""Recurrences that other packages wrote by hand, recorded by the declarations that ship."""

import sys
import types

import pytest
import torch

import retrograde
from retrograde.errors import RecordingError

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

T, B, I, H = 10, 4, 3, 5  # noqa: E741
WHY = "run `make test-integrations`"


@pytest.fixture(autouse=True)
def _in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def residuals(model, loss):
    """The residual of every layer, against the model's own gradients."""
    with retrograde.record(model) as recording:
        loss(model).backward()
    assert recording
    return {name: retrograde.decompose(recording[name]).residual for name in recording}


def exact(model, loss):
    found = residuals(model, loss)
    return all(residual.ok and residual < 1e-13 for residual in found.values())


def x(batch_first=False, seed=1):
    drawn = torch.randn(T, B, I, generator=torch.Generator().manual_seed(seed))
    return drawn.transpose(0, 1) if batch_first else drawn


def test_every_cell_of_torchrecurrent():
    package = pytest.importorskip("torchrecurrent", reason=WHY)
    layers = [
        getattr(package, name.removesuffix("Cell"))
        for name in dir(package)
        if name.endswith("Cell")
    ]
    delayed = {"tauGRU"}  # which keeps states of earlier steps to itself
    assert len(layers) >= 40
    for kind in layers:
        torch.manual_seed(0)
        hidden = I if kind.__name__ == "IntersectionRNN" else H
        model = kind(I, hidden).double()
        if kind.__name__ in delayed:
            with pytest.raises(RecordingError, match="part at step 2"):
                residuals(model, lambda m: m(x())[0].square().mean())
        else:
            assert exact(model, lambda m: m(x())[0].square().mean()), kind.__name__


def test_liquid_and_closed_form_cells():
    package = pytest.importorskip("ncps.torch", reason=WHY)
    from ncps.wirings import AutoNCP

    for model in (
        *(
            package.CfC(I, 6, mode=mode, backbone_units=8)
            for mode in ("default", "pure", "no_gate")
        ),
        package.CfC(I, AutoNCP(12, 3)),
        package.LTC(I, AutoNCP(12, 3)),
        package.LTC(I, 6),
    ):
        assert exact(model.double(), lambda m: m(x(batch_first=True))[0].square().mean())


@pytest.mark.parametrize("kind", ["DPLSTM", "DPGRU", "DPRNN"])
def test_layers_for_differential_privacy_have_torchs_routes(kind):
    layers = pytest.importorskip("opacus.layers", reason=WHY)
    model = getattr(layers, kind)(I, H, num_layers=2, bidirectional=True)
    assert exact(model, lambda m: m(x())[0].square().mean())
    with retrograde.record(model) as recording:
        model(x())[0].square().mean().backward()
    theirs = getattr(torch.nn, kind.removeprefix("DP"))(I, H, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(getattr(model, name))
    with retrograde.record(theirs) as torchs:
        theirs(x())[0].square().mean().backward()
    ours, other = (retrograde.decompose(each).by_route() for each in (recording, torchs))
    assert ours.labels == other.labels
    torch.testing.assert_close(ours.share, other.share, rtol=1e-10, atol=1e-12)


def test_the_layers_of_an_xlstm():
    blocks = pytest.importorskip("xlstm.blocks", reason=WHY)
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    assert blocks
    torch.manual_seed(0)
    size = {"embedding_dim": 8, "num_heads": 2}
    for width in (0, 4):
        layer = sLSTMLayer(sLSTMLayerConfig(backend="vanilla", conv1d_kernel_size=width, **size))
        _check_of_xlstm(layer)
        with retrograde.record(layer.double()) as recording:
            layer(torch.randn(B, T, 8)).square().mean().backward()
        assert "recurrent.forget" in retrograde.decompose(recording).routes
    _check_of_xlstm(mLSTMLayer(mLSTMLayerConfig(context_length=T, **size)))


def _check_of_xlstm(layer):
    layer.reset_parameters()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    drawn = torch.randn(B, T, 8)
    model = torch.nn.Sequential(layer.double())
    (residual,) = residuals(model, lambda m: m(drawn).square().mean()).values()
    assert residual.ok and residual < 1e-12  # all steps of an mLSTM are summed in another order


def test_the_recurrent_layer_of_a_transducer():
    rnnt = _in_torchaudio()
    for layer_norm in (False, True):
        assert exact(rnnt._CustomLSTM(I, H, layer_norm), lambda m: m(x(), None)[0].square().mean())


def _in_torchaudio():
    try:
        import torchaudio.models.rnnt as rnnt
    except (ImportError, OSError):
        pytest.skip("torchaudio does not load beside this torch")
    return rnnt


def test_light_gated_units():
    pytest.importorskip("hyperpyyaml", reason=WHY)
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):  # as in test_speechbrain.py
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__version__ = "2.11.0"
    package = pytest.importorskip("speechbrain.nnet.RNN", reason=WHY)
    shape = {"hidden_size": H, "input_shape": (B, T, I), "num_layers": 2}
    for model in (
        package.LiGRU(normalization="layernorm", **shape),
        package.LiGRU(normalization="batchnorm", **shape).eval(),
        package.SLiGRU(**shape).eval(),
    ):
        assert exact(model.double(), lambda m: m(x(batch_first=True))[0].square().mean())
    with pytest.raises(RecordingError, match="batch norm mixes samples and steps in training mode"):
        model = package.LiGRU(normalization="batchnorm", **shape).double()
        residuals(model, lambda m: m(x(batch_first=True))[0].square().mean())


def test_the_lstm_whose_input_gate_is_that_of_the_basin():
    modelzoo = pytest.importorskip("neuralhydrology.modelzoo.ealstm", reason=WHY)

    class Embedding(torch.nn.Module):
        def forward(self, data, concatenate_output=False):
            return torch.cat(list(data["x_d"].values()), -1).transpose(0, 1), data["x_s"]

    class Head(torch.nn.Linear):
        def forward(self, h):
            return {"y_hat": super().forward(h)}

    model = modelzoo.EALSTM.__new__(modelzoo.EALSTM)  # its constructor reads a file of settings
    torch.nn.Module.__init__(model)
    settings = types.SimpleNamespace(hidden_size=H, initial_forget_bias=3)
    model._hidden_size, model.embedding_net = H, Embedding()
    model.input_gate = torch.nn.Linear(2, H)
    model.dynamic_gates = modelzoo._DynamicGates(settings, I).double()
    model.dropout, model.head = torch.nn.Dropout(0.0), Head(H, 1)
    dynamic = x(batch_first=True)
    data = {"x_d": {"a": dynamic[..., :1], "b": dynamic[..., 1:]}, "x_s": dynamic[:, 0, :2]}
    assert exact(model, lambda m: m(data)["y_hat"][:, -1].square().mean())
    assert exact(model, lambda m: m(data)["y_hat"].square().mean() + m(data)["c_n"][:, 3].sum())
