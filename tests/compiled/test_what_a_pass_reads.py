"""Tensors of every make that a pass of the library can be given, and what it finds them to be."""

import pytest
import torch

import retrograde
from support.backends import BACKENDS, using

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)

T, B, I, H = 5, 3, 2, 4  # noqa: E741
KINDS = (
    *(("LSTM", {"generation": name}) for name in ("lstm-2002", "fgr")),
    *(("GRU", {}), ("RNN", {"bias": False})),
)


@pytest.fixture(autouse=True)
def _whatever_the_environment_asks_for():
    with using("compiled"):
        yield


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module_of(kind, options):
    torch.manual_seed(0)
    return getattr(retrograde.nn, kind)(I, H, **options, dtype=torch.float64)


def negated(tensor):
    """The same numbers, as negatives of those in memory."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def gradients(module, x, by_output):
    output = module(x)[0]
    return [output, *torch.autograd.grad(output, list(module.parameters()), by_output)]


@pytest.mark.parametrize("kind, options", KINDS)
def test_numbers_that_are_nowhere_in_memory(kind, options):
    module, x, by_output = module_of(kind, options), drawn(T, B, I), drawn(T, B, H, seed=1)
    assert negated(x).is_neg()
    expected = gradients(module, x, by_output)
    for found, same in zip(
        gradients(module, negated(x), negated(by_output)), expected, strict=True
    ):
        assert torch.equal(found, same)
    nothing = torch._efficientzerotensor((T, B, H), dtype=torch.float64)
    for found in gradients(module, x, nothing)[1:]:
        assert not found.any()
    with torch.no_grad():
        zeros = torch._efficientzerotensor((T, B, I), dtype=torch.float64)
        assert torch.equal(module(zeros)[0], module(torch.zeros(T, B, I).double())[0])


@pytest.mark.parametrize("kind, options", KINDS)
def test_what_a_transform_of_torch_func_has_left_behind(kind, options):
    module, by_output, left = module_of(kind, options), drawn(T, B, H, seed=1), []

    def loss(x):
        left.append(x)
        return x.square().sum()

    x = drawn(T, B, I)
    torch.func.grad(loss)(x)
    expected = gradients(module, x, by_output)
    for found, same in zip(gradients(module, left[0], by_output), expected, strict=True):
        assert torch.equal(found, same)
    with torch.no_grad():
        assert torch.equal(module(left[0])[0], expected[0])


@pytest.mark.parametrize("kind, options", KINDS)
def test_parametrized_weights(kind, options):
    """The product of its parts stands in the place of a parameter, and its parts have gradients."""
    found = []
    for backend in ("eager", "compiled"):
        module = module_of(kind, options)
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        assert "weight_hh_l0" not in module._parameters
        with using(backend):
            found.append(gradients(module, drawn(T, B, I), drawn(T, B, H, seed=1)))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("kind, options", KINDS)
def test_what_comes_back_in_the_place_of_what_was_read(kind, options):
    """Its numbers begin where those of the input began, which is gone, and lie otherwise."""
    module, by_output = module_of(kind, options), drawn(T, B, H, seed=1)
    x = drawn(T, B, I)
    expected = gradients(module, x, by_output)

    def otherwise(tensor):
        if tensor.shape != (T, B, I):
            return tensor
        numbers = tensor.detach().movedim(0, -1)
        return tensor.detach().view(B, I, T).copy_(numbers.clone()).movedim(-1, 0)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), otherwise):
        output = module(x)[0]
    del x
    found = torch.autograd.grad(output, list(module.parameters()), by_output)
    for ours, same in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(ours, same)
