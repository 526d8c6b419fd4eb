"""Passes of the library in the graphs of torch.compile."""

import pytest
import torch

import retrograde
from retrograde.compiled import passes
from retrograde.errors import BackendError
from retrograde.nn import traced_pass
from support.backends import BACKENDS, using
from support.type_checks import unchecked

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)

KINDS = {
    "lstm-2000": lambda: retrograde.nn.LSTM(2, 3),
    "lstm-1997": lambda: retrograde.nn.LSTM(2, 3, generation="lstm-1997", bias=False),
    "peepholes": lambda: retrograde.nn.LSTM(2, 3, 2, generation="lstm-2002", bidirectional=True),
    "cifg": lambda: retrograde.nn.LSTM(2, 3, generation="cifg", dtype=torch.float64),
    "fgr": lambda: retrograde.nn.LSTM(2, 3, 2, generation="fgr", bidirectional=True),
    "gru": lambda: retrograde.nn.GRU(2, 3, bidirectional=True),
    "gru-2014": lambda: retrograde.nn.GRU(2, 3, generation="gru-2014", batch_first=True),
    "rnn": lambda: retrograde.nn.RNN(2, 3, nonlinearity="sigmoid"),
}


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    with unchecked(), using("compiled"):
        yield
    torch._dynamo.reset()


class Graphs:
    """A backend of torch.compile that counts calls of the library in what it is given."""

    def __init__(self):
        self.passes = 0

    def __call__(self, graph, inputs):
        self.passes += sum("retrograde.forward" in str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def results(module, run, inside, steps=5):
    """All that a module gives, and the gradients of a loss on all of it."""
    generator = torch.Generator().manual_seed(1)
    weight = next(module.parameters())
    x = torch.randn(4, steps, 2, generator=generator).to(weight.dtype).requires_grad_()
    output, last, *more = run(module, x, inside)
    found = [output, *(last if isinstance(last, tuple) else (last,))]
    found += [layer[name] for layers in more for layer in layers for name in sorted(layer)]
    loss = sum((value * torch.arange(value.numel()).view_as(value)).sum() for value in found)
    return [*found, *torch.autograd.grad(loss, [x, *module.parameters()])]


def call(module, x, inside):
    return module(x, return_activations=inside)


@pytest.mark.parametrize("name", KINDS)
def test_compiled_whole(name):
    """One graph with one call for each layer and direction, and what eager code gives."""
    torch.manual_seed(0)
    module = KINDS[name]()
    inside = name not in ("lstm-2000", "gru-2014")
    graphs = Graphs()
    run = torch.compile(call, fullgraph=True, backend=graphs)
    found = results(module, run, inside)
    assert graphs.passes == module.num_layers * (1 + module.bidirectional)
    for ours, eager in zip(found, results(module, call, inside), strict=True):
        # torch's own kernel, which is in use for one of them, sums in another order.
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


def test_other_lengths_without_gradients_and_changed_in_place():
    module = KINDS["peepholes"]()
    run = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (4, 7, 9):
        with torch.no_grad():
            x = torch.randn(steps, 3, 2)
            torch.testing.assert_close(run(module, x, True), call(module, x, True))

    def changed(x):
        output, (_, c) = module(x)
        output.mul_(2)
        return output.sum() + c.sum()

    ours, eager = (
        torch.autograd.grad(f(x), module.weight_hh_l0)[0]
        for f in (torch.compile(changed, fullgraph=True, backend="eager"), changed)
    )
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", ["peepholes", "fgr", "gru", "rnn"])
def test_the_operation_keeps_its_promises(name):
    """Schema, shapes without numbers, and derivative, as torch checks them."""
    module = KINDS[name]().double()
    kind, x = module._kind(True), torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    weights = [getattr(module, weight + "_l0", None) for weight in passes.WEIGHTS]
    for reverse in (False, True):
        given = (x, None, None, None, *weights, kind.name, reverse, True)
        torch.library.opcheck(traced_pass._forward, given)


def test_a_graph_without_the_library():
    module = KINDS["rnn"]()
    run = torch.compile(call, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 2)
    run(module, x, False)
    with using("eager"), pytest.raises(BackendError, match="not there now"):
        run(module, x, False)
