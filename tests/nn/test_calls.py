"""What surrounds a call of a layer: packed, without a batch, under autocast, transformed, compiled.

Whichever of the library, torch's function and the steps one by one then computes it.
"""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import retrograde
from retrograde.errors import ArgumentError
from support.backends import BACKENDS, using
from support.type_checks import unchecked

T, B, INPUTS, H = 5, 3, 2, 4
LENGTHS = [3, 5, 2]
KINDS = {
    "lstm-2000": lambda **o: retrograde.nn.LSTM(INPUTS, H, **o),
    "lstm-2002": lambda **o: retrograde.nn.LSTM(INPUTS, H, generation="lstm-2002", **o),
    "gru-torch": lambda **o: retrograde.nn.GRU(INPUTS, H, **o),
    "gru-2014": lambda **o: retrograde.nn.GRU(INPUTS, H, generation="gru-2014", **o),
    "rnn": lambda **o: retrograde.nn.RNN(INPUTS, H, **o),
}
TORCH_HAS = ("lstm-2000", "gru-torch", "rnn")


@pytest.fixture(autouse=True, params=BACKENDS)
def _backend(request):
    with unchecked(), using(request.param):
        yield


def layer(name, **options):
    torch.manual_seed(0)
    return KINDS[name](**options)


def an_input(dtype=torch.float32):
    return torch.randn(T, B, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def gradients(module, output):
    return torch.autograd.grad(output.square().sum(), list(module.parameters()))


@pytest.mark.parametrize("name", KINDS)
def test_packed_is_each_sample_alone(name):
    """To the length that it has, in both directions and two layers."""
    module = layer(name, num_layers=2, bidirectional=True, dtype=torch.float64)
    x = an_input(torch.float64)
    packed, last = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))
    output, _ = pad_packed_sequence(packed)
    alone = [module(x[:steps, b]) for b, steps in enumerate(LENGTHS)]
    for b, steps in enumerate(LENGTHS):
        torch.testing.assert_close(output[:steps, b], alone[b][0])
        assert not output[steps:, b].any()
        for mine, its in zip(parts(last), parts(alone[b][1]), strict=True):
            torch.testing.assert_close(mine[:, b], its)
    whole = gradients(module, packed.data)
    each = [gradients(module, one) for one, _ in alone]
    for found, of_samples in zip(whole, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, sum(of_samples))


@pytest.mark.parametrize("name", ["gru-torch", "rnn"])
def test_torchs_loops_are_not_taken_where_the_library_is(name, monkeypatch):
    """They take 5 to 30 times as long."""

    def fails(*_):
        raise AssertionError("torch's function runs")

    module, x = layer(name), an_input()
    for function in ("gru", "rnn_tanh"):
        monkeypatch.setattr(torch, function, fails)
    if retrograde.backend() == "eager":
        with pytest.raises(AssertionError, match="torch's function"):
            module(x)
        return
    expected = module(x)[0]
    torch.testing.assert_close(module(x[:, 1])[0], expected[:, 1])
    packed = module(pack_padded_sequence(x, LENGTHS, enforce_sorted=False))[0]
    torch.testing.assert_close(pad_packed_sequence(packed)[0][:2], expected[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x)[0], expected)


@pytest.mark.parametrize("name", KINDS)
def test_under_autocast_layers_run_in_the_precision_of_their_weights(name):
    """Also on what an autocast layer gives them, and on states in another precision."""
    module, x = layer(name), an_input(torch.bfloat16)
    start = tuple(torch.ones(1, B, H) for _ in parts(module(x.float())[1]))
    expected = module(x.float(), start if len(start) > 1 else start[0])
    packed = pack_padded_sequence(x, [T] * B)
    low = tuple(part.bfloat16() for part in start)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x, low if len(low) > 1 else low[0])
        of_packed = module(packed, low if len(low) > 1 else low[0])[0]
    assert found[0].dtype == of_packed.data.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pad_packed_sequence(of_packed)[0], expected[0])
    found, expected = gradients(module, found[0]), gradients(module, expected[0])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", KINDS)
def test_data_types_that_do_not_fit_are_said(name):
    module, x = layer(name), an_input()
    start = tuple(part.double() for part in parts(module(x)[1]))
    with pytest.raises(ArgumentError, match=r"input must be torch.float32.*got torch.float64"):
        module(x.double())
    with pytest.raises(ArgumentError, match=r"hx must be torch.float32.*got torch.float64"):
        module(x, start if len(start) > 1 else start[0])


@pytest.mark.parametrize("name", TORCH_HAS)
def test_what_torchs_functions_cannot_is_done_step_by_step(name):
    """Gradients of each sample, and derivatives forwards, in float32 too."""
    module, x = layer(name), an_input()
    weights = dict(module.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x.unsqueeze(2))
    for b in range(B):
        of_sample = gradients(module, module(x[:, b : b + 1])[0])
        torch.testing.assert_close([each[weight][b] for weight in weights], [*of_sample])
    direction = {weight: torch.ones_like(value) for weight, value in weights.items()}
    _, along = torch.func.jvp(lambda weights: loss(weights, x), (weights,), (direction,))
    torch.testing.assert_close(along, sum(g.sum() for g in gradients(module, module(x)[0])))


@pytest.mark.filterwarnings("ignore")  # what torch warns of while it traces
def test_torch_compile_trains_whatever_the_backend():
    """tests/compiled/test_traced.py has the others, in one graph each."""
    torch._dynamo.reset()
    module, x = layer("lstm-2000"), an_input()
    run = torch.compile(lambda x: module(x)[0], backend="aot_eager")
    torch.testing.assert_close(gradients(module, run(x)), gradients(module, module(x)[0]))
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", TORCH_HAS)
def test_what_torch_has_is_exported_by_its_function(name, strict):
    module, x = layer(name, num_layers=2).eval(), an_input()
    exported = torch.export.export(module, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), module(x))
    assert not any("retrograde" in str(node.target) for node in exported.graph.nodes)
