"""Linear recurrences of other packages, recorded by the declarations that ship."""

import importlib
import sys

import pytest
import torch

import retrograde
from retrograde.errors import RecordingError

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

WHY = "run `make test-integrations`"


def gradients(model, loss):
    """Those of all parameters, of a pass of its own."""
    model.zero_grad()
    loss(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def recorded(model, loss):
    """The recording of a pass, which leaves the gradients as they are without it, bit for bit."""
    alone = gradients(model, loss)
    model.zero_grad()
    with retrograde.record(model) as recording:
        loss(model).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, alone[name]), name
    return recording


@torch.no_grad()
def disturb(model):
    """Other weights than those drawn, many of which are 0 or 1."""
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("expansion", [1.0, 1.5])
def test_min_gru(expansion):
    package = pytest.importorskip("minGRU_pytorch", reason=WHY)
    torch.manual_seed(0)
    model = package.minGRU(4, expansion_factor=expansion).double()
    with retrograde.record(model) as recording:
        model(torch.randn(3, 12, 4).double()).square().mean().backward()
    flow = retrograde.decompose(recording)
    assert flow.residual.ok and flow.residual < 1e-12
    carousel = flow.by_crossing(max_crossings=1).share[0].sum()
    assert float(carousel) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["Mamba", "FalconMamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mixers_of_transformers(kind, dtype):
    package = pytest.importorskip("transformers", reason=WHY)
    torch.manual_seed(0)
    size = {"vocab_size": 11, "hidden_size": 8, "state_size": 3, "num_hidden_layers": 2}
    how = {"use_bias": dtype == torch.float64, "use_cache": False}
    config = getattr(package, f"{kind}Config")(**size, **how)
    model = getattr(package, f"{kind}ForCausalLM")(config).to(dtype)
    disturb(model)
    tokens = torch.randint(0, 11, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 6, 7]).unsqueeze(1)
    for masks in ({}, {"attention_mask": mask.long()}):

        def loss(model, masks=masks):
            return model(input_ids=tokens, labels=tokens, **masks).loss

        recording = recorded(model, loss)
        assert len(recording) == 2
        for name in recording:
            flow = retrograde.decompose(recording[name])
            assert flow.residual.ok and flow.residual < 1e-5, name
            assert set(flow.routes) >= {"ssm->ssm"}


def test_the_mixer_of_jamba():
    package = pytest.importorskip("transformers.models.jamba.modeling_jamba", reason=WHY)
    torch.manual_seed(0)
    size = {"hidden_size": 8, "mamba_d_state": 3, "mamba_dt_rank": 2}
    mixer = package.JambaMambaMixer(package.JambaConfig(**size), layer_idx=0).double()
    disturb(mixer)
    x = torch.randn(3, 9, 8).double()
    flow = retrograde.decompose(recorded(mixer, lambda m: m(x).square().mean()))
    assert flow.residual.ok and flow.residual < 1e-5


@pytest.mark.parametrize("pscan", [True, False])
@pytest.mark.parametrize("how", [{}, {"bias": True, "inner_layernorms": True}])
def test_the_blocks_of_mambapy(pscan, how):
    package = pytest.importorskip("mambapy.mamba", reason=WHY)
    torch.manual_seed(0)
    config = package.MambaConfig(d_model=8, n_layers=2, d_state=3, pscan=pscan, **how)
    model = package.Mamba(config).double()
    disturb(model)
    x = torch.randn(3, 11, 8).double()
    recording = recorded(model, lambda m: m(x).square().mean())
    assert len(recording) == 2
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.residual.ok
        block = model.get_submodule(name)
        for part, found in flow.gradient.items():
            own = block.get_parameter(part).grad
            single = part in ("A_log", "D")  # which its code computes in float32
            tolerance = 1e-6 if single else 1e-12
            apart = (found.plain() - own).norm() / own.norm()
            assert apart < tolerance, part


@pytest.fixture(params=["its own code", "that of the xlstm package"])
def xlstm_of_transformers(request, monkeypatch):
    """transformers' module, which takes its layers from the xlstm package where that is there."""
    package = pytest.importorskip("transformers", reason=WHY)
    if "own" in request.param:
        monkeypatch.setattr(package.utils, "is_xlstm_available", lambda: False)
    else:
        pytest.importorskip("xlstm.xlstm_large.model", reason=WHY)
    for name in [n for n in sys.modules if n.startswith("transformers.models.xlstm.")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("transformers.models.xlstm.modeling_xlstm")


def xlstm_config(module, **how):
    size = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2}
    how = {"chunk_size": 8, "norm_reduction_force_float32": False, "use_cache": False, **how}
    return module.xLSTMConfig(**size, **how)


@pytest.mark.parametrize(
    ("dtype", "steps", "atol"), [(torch.float64, 16, 1e-12), (torch.float32, 19, 1e-4)]
)
def test_xlstm_by_chunks_and_a_rest_by_steps(xlstm_of_transformers, dtype, steps, atol):
    torch.manual_seed(0)
    config = xlstm_config(xlstm_of_transformers)
    model = xlstm_of_transformers.xLSTMForCausalLM(config).to(dtype)
    disturb(model)
    tokens = torch.randint(0, 11, (3, steps))
    recording = recorded(model, lambda m: m(input_ids=tokens, labels=tokens).loss)
    assert len(recording) == 2
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.residual.ok and flow.residual < atol, name
        assert set(flow.routes) >= {"C->C", "n->n", "m->m"}
        assert float(flow.by_crossing(max_crossings=1).share[0].sum()) == pytest.approx(1)


def test_an_xlstm_layer_with_fused_weights_and_a_state(xlstm_of_transformers):
    block = xlstm_of_transformers.xLSTMBlock(
        xlstm_config(
            xlstm_of_transformers, weight_mode="fused", use_bias=True
        ).to_xlstm_block_config()
    )
    layer = block.mlstm_layer.double()
    torch.manual_seed(0)
    disturb(layer)
    x = torch.randn(3, 16, 16).double()
    held = tuple(part.detach() for part in layer(x.flip(1))[1])
    flow = retrograde.decompose(recorded(layer, lambda m: m(x, held)[0].square().mean()))
    assert flow.residual.ok and flow.residual < 1e-12
    with retrograde.record(layer) as recording:  # and a gradient goes through the state
        layer(x, layer(x)[1])[0].square().mean().backward()
    with pytest.raises(RecordingError, match="other than through its output and state"):
        retrograde.decompose(recording)
