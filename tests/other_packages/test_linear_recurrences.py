"""Linear recurrences of other packages, recorded by the declarations that ship."""

import pytest
import torch

import retrograde

# Their warnings and those of what they bring are not ours to make errors of.
pytestmark = pytest.mark.filterwarnings("default")

WHY = "run `make test-integrations`"


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


def test_the_mixers_of_mamba():
    package = pytest.importorskip("transformers", reason=WHY)
    torch.manual_seed(0)
    config = package.MambaConfig(
        vocab_size=11, hidden_size=8, state_size=3, num_hidden_layers=2, use_cache=False
    )
    model = package.MambaForCausalLM(config)
    tokens = torch.randint(0, 11, (2, 9))
    with retrograde.record(model) as recording:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert len(recording) == 2
    for name in recording:
        flow = retrograde.decompose(recording[name])
        assert flow.residual.ok and flow.residual < 1e-4, name
        assert set(flow.routes) >= {"ssm->ssm"}
