"""What others hook into a pass, run again, compile or write into: the same parts, or a refusal."""

import contextlib
import functools
import re
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules import module as of_all_modules
from torch.utils.checkpoint import checkpoint

import retrograde
from support.forms import CELLS, EXACT, INPUTS, KINDS, RESETS, B, D, H, T, parts_of, sequence
from support.type_checks import unchecked

OURS = {"LSTM": retrograde.nn.LSTM, "GRU": retrograde.nn.GRU, "RNN": retrograde.nn.RNN}
X = sequence(T, B, INPUTS)


class Net(nn.Module):
    """A cell in a loop, or a layer called in chunks, and a head; `between` meets the state."""

    def __init__(self, layer, between=lambda step, part: part, dtype=D):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.head = layer(INPUTS, H, dtype=dtype), nn.Linear(H, 1, dtype=dtype)
        self.between, self.direct = between, False

    def forward(self, x, state=None):
        call = self.layer.forward if self.direct else self.layer
        outputs, stepped = [], isinstance(self.layer, nn.RNNCellBase)
        for step, part in enumerate(x if stepped else x.split(2)):
            if step:
                tensors = tuple(self.between(step, tensor) for tensor in parts_of(state))
                state = tensors if len(tensors) > 1 else tensors[0]
            returned = call(part, state)
            output, state = (parts_of(returned)[0], returned) if stepped else returned
            outputs.append(self.head(output) + output.sum(-1, keepdim=True))
        return torch.stack(outputs) if stepped else torch.cat(outputs)


class Nested(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.net = Net(*args)

    def forward(self, x):
        return self.net(x)


def loss_of(model):
    return model(X).square().sum()


def parts(model, loss=loss_of):
    """Every part by lag of every weight, and the notes, of the one layer; exact."""
    with retrograde.record(model) as recording:
        loss(model).backward()
    flow = retrograde.decompose(recording)
    assert flow.residual < EXACT
    return {n: flow.by_lag(n, bins="every").parts() for n in flow.parameters}, flow.recorded.notes


def assert_same(one, other):
    assert one[1] == other[1]
    for name, expected in one[0].items():
        torch.testing.assert_close(other[0][name], expected, atol=1e-10, rtol=1e-10)


def refused(model, sentence, loss=loss_of):
    with pytest.raises(retrograde.RetrogradeError, match=sentence) as error:
        parts(model, loss)
    return str(error.value)


def nothing(*_):
    return None


def cloned(gradients):
    return tuple(None if gradient is None else gradient.clone() for gradient in gradients)


LOOKING = {
    "full": lambda m: [k.register_full_backward_hook(nothing) for k in m.modules()],
    "pre": lambda m: [k.register_full_backward_pre_hook(nothing) for k in m.modules()],
    "same values": lambda m: [
        k.register_full_backward_hook(lambda _, given, out: cloned(given)) for k in m.modules()
    ],
    "forward": lambda m: [k.register_forward_hook(nothing) for k in m.modules()],
    "all full": lambda m: [of_all_modules.register_module_full_backward_hook(nothing)],
    "all pre": lambda m: [of_all_modules.register_module_full_backward_pre_hook(nothing)],
    "all forward": lambda m: [of_all_modules.register_module_forward_hook(nothing)],
}
BETWEEN = {"handed on": lambda step, part: part, "reset": lambda step, part: part * RESETS[step]}
LAYERS = [*CELLS.values(), *KINDS.values(), *OURS.values()]


@contextlib.contextmanager
def hooked(model, kinds):
    handles = [handle for kind in kinds for handle in LOOKING[kind](model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # torch's, on the first step
@settings(max_examples=12)
@given(
    layer=st.sampled_from(LAYERS),
    between=st.sampled_from(sorted(BETWEEN)),
    nested=st.booleans(),
    kinds=st.lists(st.sampled_from(sorted(LOOKING)), min_size=1, max_size=3, unique=True),
)
def test_hooks_that_look_lose_nothing(layer, between, nested, kinds):
    model = (Nested if nested else Net)(layer, BETWEEN[between])
    with unchecked():
        plain = parts(model)
        with hooked(model, kinds):
            assert_same(plain, parts(model))


def doubled(gradients):
    return tuple(None if gradient is None else 2 * gradient for gradient in gradients)


def double(gradients):
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(2)


CHANGING = {
    "by inputs": lambda m: m.register_full_backward_hook(lambda _, given, out: doubled(given)),
    "by outputs": lambda m: m.register_full_backward_pre_hook(lambda _, out: doubled(out)),
    "in place": lambda m: m.register_full_backward_pre_hook(lambda _, out: double(out)),
}


@pytest.mark.parametrize("layer", [nn.GRUCell, nn.GRU])
@pytest.mark.parametrize("change", CHANGING)
def test_module_hooks_that_change_what_comes_back_do_not_pass_in_silence(layer, change):
    """Refused, or followed exactly to a boundary that is said to be one."""
    net = Net(layer)
    CHANGING[change](net.layer)

    x = X.clone().requires_grad_()  # torch refuses some hooks where no input has a gradient
    try:
        notes = " ".join(parts(net, lambda net: net(x).square().sum())[1])
    except retrograde.RetrogradeError as error:
        assert "on a module around it, changes the gradient" in str(error)
    else:
        assert re.search(r"computed from the one before .*a hook\)", notes)


@pytest.mark.parametrize("change", ["by inputs", "by outputs"])
def test_module_hooks_that_change_a_gradient_outside_are_followed(change):
    net = Net(nn.LSTMCell)
    CHANGING[change](net.head)
    parts(net)


def test_a_hook_for_all_modules_that_changes_an_output_comes_after_the_layer():
    """It runs before the hooks of the module itself."""
    layer = nn.GRU(INPUTS, H, dtype=D)
    plain = parts(layer, lambda layer: (2 * layer(X)[0]).square().sum())
    handle = of_all_modules.register_module_forward_hook(
        lambda module, args, returned: (2 * returned[0], returned[1])
    )
    try:
        assert_same(plain, parts(layer, lambda layer: layer(X)[0].square().sum()))
    finally:
        handle.remove()


def through_data(gradient):
    gradient.data.mul_(2)


ALTERING = {
    "mul_": lambda gradient: gradient.mul_(2),
    "mul_, None": lambda gradient: double([gradient]),
    "clamp_": lambda gradient: gradient.clamp_(-0.1, 0.1),
    "clamp": lambda gradient: gradient.clamp(-0.1, 0.1),
    ".data": through_data,
}
ON = {
    "tensor": lambda output, hook: output.register_hook(hook),
    "node": lambda output, hook: output.grad_fn.register_prehook(
        lambda gradients: tuple(g if g is None else _left(hook, g) for g in gradients)
    ),
}


def _left(hook, gradient):
    returned = hook(gradient)
    return gradient if returned is None else returned


@pytest.mark.parametrize("layer", [nn.GRU, retrograde.nn.GRU])
@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("hook", ALTERING)
def test_hooks_that_change_the_gradient_of_an_output(layer, on, hook):
    """Compared with a layer that is handed the gradient as the hook leaves it."""
    layer = layer(INPUTS, H, dtype=D)

    def changed(layer):
        output = layer(X)[0]
        ON[on](output, ALTERING[hook])
        return output.square().sum()

    def handed(layer):
        output = layer(X)[0]
        return (output * _left(ALTERING[hook], 2 * output.detach())).sum()

    assert_same(parts(layer, handed), parts(layer, changed))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("hook", [*ALTERING, "look"])
def test_hooks_on_a_state_may_look_only(on, hook):
    def between(step, part):
        if hook == "look":
            ON[on](part, lambda gradient: gradient)
        elif not hook.startswith("."):
            ON[on](part, ALTERING[hook])
        return part

    net = Net(nn.LSTMCell, between)
    if hook in ("look", ".data"):
        assert_same(parts(Net(nn.LSTMCell)), parts(net))
        return
    refused(net, "'layer': a hook on its output or state")


def test_a_hook_that_looks_at_nan_changes_nothing():
    def between(step, part):
        part.register_hook(nothing)
        return part

    net = Net(nn.LSTMCell, between)
    with retrograde.record(net) as recording:
        (loss_of(net) * torch.nan).backward()
    with pytest.raises(retrograde.RetrogradeError, match="dL/dh of 'layer' is nan first"):
        retrograde.decompose(recording)


def given_gradient(output, keep):
    gradient = torch.ones_like(output)
    output.backward(gradient)
    keep.append(gradient)


def given_to_autograd(output, keep):
    gradient = torch.ones_like(output)
    torch.autograd.backward([output], [gradient])
    keep.append(gradient)


def kept_by_a_hook(output, keep):
    output.register_hook(keep.append)
    output.sum().backward()


def kept_by_a_node(output, keep):
    output.grad_fn.register_prehook(lambda gradients: keep.extend(gradients) or None)
    output.sum().backward()


def retained(output, keep):
    output.retain_grad()
    output.sum().backward()
    keep.append(output.grad)


def pipelined(output, keep):
    leaf = output.detach().requires_grad_()
    leaf.sum().backward()
    output.backward(leaf.grad)
    keep.append(leaf.grad)


def plainly(output, keep):
    output.sum().backward()


WAYS = [given_gradient, given_to_autograd, kept_by_a_hook, kept_by_a_node, retained, pipelined]


@pytest.mark.parametrize("way", [*WAYS, plainly])
@pytest.mark.parametrize("layer", [nn.GRU, nn.GRUCell, retrograde.nn.LSTM])
@pytest.mark.parametrize("inside", [False, True])
def test_gradients_that_are_zeroed_later_were_copied(way, layer, inside):
    """What is zeroed is the very tensor that arrives at the output of the layer."""
    torch.manual_seed(3)
    layer = layer(INPUTS, H, dtype=D)

    def output():
        return layer(X[1], layer(X[0])) if isinstance(layer, nn.GRUCell) else layer(X)[0]

    plain = parts(layer, lambda _: output().sum())
    optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
    keep = []

    def zero():
        for gradient in keep:
            if gradient is not None:
                gradient.zero_()
        optimiser.zero_grad(set_to_none=False)

    layer.zero_grad()
    with retrograde.record(layer) as recording:
        way(output(), keep)
        if inside:
            zero()
    if not inside:
        zero()
    flow = retrograde.decompose(recording)
    assert flow.residual < EXACT
    assert_same(plain, ({n: flow.by_lag(n, bins="every").parts() for n in flow.parameters}, ()))


def trained(watched, make, steps=40):
    """The weights after some training, in float32, with hooks that write into gradients."""
    net, x = make(), X[:3].float()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(steps):
        optimiser.zero_grad(set_to_none=bool(step % 2))
        with retrograde.record(net) if watched else contextlib.nullcontext():
            output = net(x)
            output.register_hook(lambda gradient: gradient.mul_(0.5))
            output.square().mean().backward()
        optimiser.step()
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_training_is_the_same_to_the_last_bit(unchecked):
    def make():
        net = Net(nn.LSTMCell, dtype=torch.float32)
        net.layer.register_full_backward_hook(nothing)
        return net

    assert all(map(torch.equal, trained(False, make), trained(True, make)))


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.LSTMCell, retrograde.nn.GRU])
@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.filterwarnings("ignore")  # torch's own, where torch.compile is first used
def test_compiled_models(kind, when, unchecked):
    """Compiled as one graph, which has no place for a hook."""
    torch._dynamo.reset()
    net = Net(kind)
    plain = parts(net)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    if when == "before":
        loss_of(compiled)
    assert_same(plain, parts(compiled))
    calls = []
    handle = net.head.register_forward_hook(lambda *_: calls.append(1))
    loss_of(compiled)  # compiled before: runs as compiled again, with no call of anything inside
    handle.remove()
    assert bool(calls) == (when == "inside")
    torch._dynamo.reset()


def test_compiled_code_runs_as_written_until_the_last_block_ends():
    torch._dynamo.reset()
    net = Net(nn.GRUCell)
    compiled, calls = torch.compile(net, backend="eager"), []
    loss_of(compiled)

    def seen():
        calls.clear()
        loss_of(compiled)
        return bool(calls)

    net.head.register_forward_hook(lambda *_: calls.append(1))
    first, second = retrograde.record(net), retrograde.record(net)
    assert not seen()
    first.__enter__()
    second.__enter__()
    for block, still in ((first, True), (second, False)):
        loss_of(net).backward()
        block.__exit__(None, None, None)
        assert seen() == still
    torch._dynamo.reset()


FIRST_USE = """
import sys, warnings, torch, retrograde
warnings.simplefilter("ignore")
cell = torch.nn.GRUCell(2, 3)
def loss(x):
    h = cell(x)
    return cell(x, h).sum()
assert "torch._dynamo" not in sys.modules
with retrograde.record(cell) as recording:
    torch.compile(loss, backend="eager", fullgraph=True)(torch.ones(1, 2)).backward()
assert retrograde.decompose(recording).steps == 2
assert not hasattr(torch.compile, "__wrapped__")
"""


def test_torch_compile_is_first_used_inside_the_block(tmp_path):
    """In a process of its own: the one that programs are copies of has loaded torch._dynamo."""
    (tmp_path / "program.py").write_text(FIRST_USE)
    command = [sys.executable, "-W", "error", tmp_path / "program.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.LSTM, nn.GRU])
def test_checkpointed_loops(kind, reentrant):
    """All in one; and in parts that hand the state on, which reentrant ones do out of sight."""
    net = Net(kind)
    stepped = isinstance(net.layer, nn.RNNCellBase)
    x = X.clone().requires_grad_()  # a reentrant checkpoint asks for an input with a gradient

    def part(x, *state):
        outputs, state = [], (state if len(state) > 1 else state[0]) if state else None
        for step in x if stepped else [x]:
            returned = net.layer(step, state)
            output, state = (parts_of(returned)[0], returned) if stepped else returned
            outputs.append(output)
        return torch.stack(outputs) if stepped else outputs[0], *parts_of(state)

    def loss(size, run):
        outputs, state = [], ()
        for chunk in x.split(size):
            output, *state = run(part, chunk, *state)
            outputs.append(output)
        return torch.cat(outputs).square().sum()

    def again(part, *args):
        return checkpoint(part, *args, use_reentrant=reentrant)

    plain = parts(net, lambda _: loss(T, lambda part, *args: part(*args)))
    assert_same(plain, parts(net, lambda _: loss(T, again)))
    plain = parts(net, lambda _: loss(2, lambda part, *args: part(*args)))
    if not reentrant:
        assert_same(plain, parts(net, lambda _: loss(2, again)))
        return
    refused(net, "use use_reentrant=False, which gives", lambda _: loss(2, again))


def test_a_state_that_is_detached_between_reentrant_checkpoints_is_not_refused():
    net = Net(nn.GRU)

    def loss(net):
        total, state = 0.0, None
        for chunk in X.clone().requires_grad_().split(2):
            output, state = checkpoint(net.layer, chunk, state, use_reentrant=True)
            total, state = total + output.square().sum(), state.detach()
        return total

    parts(net, loss)


IN_PLACE = {
    "relu": lambda output, h: nn.functional.relu_(output),
    "a part": lambda output, h: output[..., 1:].mul_(0.5),
    "the state too": lambda output, h: (output.mul_(3), h.mul_(2)),
}


@pytest.mark.parametrize("operation", IN_PLACE)
@pytest.mark.parametrize("generation", ["lstm-2000", "peephole"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_results_of_our_modules_are_changed_in_place(operation, generation, options):
    layer = retrograde.nn.LSTM(
        INPUTS, H, batch_first=True, generation=generation, dtype=D, **options
    )

    def loss(layer):
        output, (h, _) = layer(sequence(B, T, INPUTS))
        IN_PLACE[operation](output, h)
        return output.square().sum() + h.sum()

    assert parts(layer, loss)[1] == ()


@pytest.mark.parametrize("kind", LAYERS)
def test_forward_called_directly(kind):
    net = Net(kind)
    plain = parts(net)
    net.direct = True
    assert_same(plain, parts(net))


def test_a_forward_that_was_replaced_on_the_module_itself():
    """As accelerate does it: what stands there calls the forward that it was bound to before."""
    net = Net(nn.GRU)
    plain, bound = parts(net), net.layer.forward
    net.layer.forward = lambda *args: bound(*args)
    assert_same(plain, parts(net))


def test_someone_else_wraps_a_forward_in_the_meantime():
    layer, forward = nn.GRU(INPUTS, H, dtype=D), nn.GRU.forward
    try:
        with retrograde.record(layer) as recording:
            ours = nn.GRU.forward
            nn.GRU.forward = functools.wraps(ours)(lambda *args: ours(*args))
            layer(X)[0].sum().backward()
        assert retrograde.decompose(recording).residual < EXACT
        parts(layer, lambda layer: layer(X)[0].sum())
    finally:
        nn.GRU.forward = forward


class ByHand(nn.LSTM):
    """As torchrl's LSTM with python_based=True."""

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], self.hidden_size)
        for step in x:
            gates = step @ self.weight_ih_l0.T + h @ self.weight_hh_l0.T
            i, f, g, o = (gates + self.bias_ih_l0 + self.bias_hh_l0).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


def by_hand(layer):
    return (X @ layer.weight_ih_l0.T).sum() + sum(w.sum() for w in layer.parameters())


def before_the_block(layer):
    return layer(X)[0].sum()


CALLED = "it was called, but test_hooks.ByHand has a forward of its own, which does not call that"
NOT_CALLED = "it was not called while the pass was recorded; run"
WITHOUT = "it was called where no gradient can arrive"
NOT_STARTED = r"it: loss.backward\(\) was not called while the pass was recorded"
ELSEWHERE = "the loss does not depend on this layer's calls there"
BY_WEIGHTS = "its weights got a gradient, but it was not called while the pass was recorded"
PAST_CALLS = "no backward pass reached its calls while the pass was recorded, but its weights got a"
UNANNOUNCED = r"it received a gradient that loss.backward\(\) did not start"


def run_by_hand(layer):
    layer(X).sum().backward()


def run_nothing(layer):
    pass


def run_with_its_weights(layer):
    by_hand(layer).backward()


def run_without_gradients(layer):
    with torch.no_grad():
        layer(X)


def run_forward(layer):
    layer(X)


def run_another_loss(layer):
    layer(X)
    torch.ones(1, requires_grad=True).sum().backward()


def run_a_penalty(layer):
    layer(X)
    by_hand(layer).backward()


def run_autograd_grad(layer):
    torch.autograd.grad(layer(X)[0].sum(), list(layer.parameters()))


def run_a_gradient_of_its_weights(layer):
    layer(X)
    torch.autograd.grad(by_hand(layer), list(layer.parameters()))


@pytest.mark.parametrize(
    ("kind", "run", "sentence"),
    [
        (ByHand, run_by_hand, CALLED),
        (ByHand, run_nothing, NOT_CALLED),
        (nn.LSTM, run_nothing, NOT_CALLED),
        (nn.LSTM, run_with_its_weights, BY_WEIGHTS),
        (nn.LSTM, run_without_gradients, WITHOUT),
        (nn.LSTM, run_forward, NOT_STARTED),
        (nn.LSTM, run_another_loss, ELSEWHERE),
        (nn.LSTM, run_a_penalty, PAST_CALLS),
        (nn.LSTM, run_autograd_grad, UNANNOUNCED),
        (nn.LSTM, run_a_gradient_of_its_weights, NOT_STARTED),
    ],
)
def test_why_nothing_was_recorded(kind, run, sentence):
    """Each reason where it is one, and none of the others."""
    layer = kind(INPUTS, H, dtype=D)
    with pytest.raises(retrograde.RetrogradeError, match=sentence) as error:
        with retrograde.record(layer):
            run(layer)
    every = {CALLED, NOT_CALLED, BY_WEIGHTS, WITHOUT, NOT_STARTED, ELSEWHERE, PAST_CALLS}
    for other in {*every, UNANNOUNCED} - {sentence}:
        assert not re.search(other, str(error.value))


@pytest.mark.parametrize("backward", [False, True])
def test_changed_weights_are_named_only_where_a_backward_pass_failed(backward):
    layer = nn.LSTM(INPUTS, H, dtype=D)
    with pytest.raises(Exception) as error, retrograde.record(layer):  # noqa: B017, PT011
        loss = layer(X)[0].sum()
        with torch.no_grad():
            layer.weight_hh_l0.mul_(2)
        if backward:
            loss.backward()
        raise KeyError("of the user's, with nothing wrong about the weights")
    assert bool(getattr(error.value, "__notes__", ())) == backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # fused on a CPU in float32 alone
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell, nn.GRU, retrograde.nn.LSTM])
@pytest.mark.parametrize("of", ["input", "weights", "output"])
def test_gradient_penalties_are_refused_alike(dtype, kind, of):
    net, x = Net(kind, dtype=dtype), X.to(dtype).requires_grad_()

    def loss(net):
        output = net(x)
        value = output.square().sum()
        wanted = {"input": [x], "weights": [*net.layer.parameters()], "output": [output]}[of]
        gradients = torch.autograd.grad(value, wanted, create_graph=True)
        return value + sum(gradient.square().sum() for gradient in gradients)

    with retrograde.record(net) as recording:
        loss(net).backward()
    if of == "output":  # goes through no layer
        limit = EXACT if dtype == D else 1e-5
        assert retrograde.decompose(recording).residual < limit
        return
    with pytest.raises(retrograde.RetrogradeError, match="a penalty on gradients") as error:
        retrograde.decompose(recording)
    assert "penalty on the weights" not in str(error.value)


def test_a_penalty_on_weights_beside_a_gradient_with_a_graph():
    """backward(create_graph=True) itself is no penalty on gradients."""
    layer = nn.LSTM(INPUTS, H)
    with retrograde.record(layer) as recording:
        loss = layer(X.float())[0].square().sum() + layer.weight_hh_l0.square().sum()
        with warnings.catch_warnings():  # torch says once per process that this makes a cycle
            warnings.simplefilter("ignore", UserWarning)
            loss.backward(create_graph=True)
    flow = retrograde.decompose(recording)
    assert flow.residual < 1e-5 and "weight_hh_l0 does not come through" in flow.recorded.notes[0]
    for parameter in layer.parameters():
        parameter.grad = None


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}])
def test_a_nan_is_found_with_dropout_as_without(options):
    for dropout in (0.0, 0.3):
        layer = nn.RNN(INPUTS, H, 2, dropout=dropout, dtype=D, **options)
        with torch.no_grad():
            layer.weight_hh_l0[1, 2] = torch.nan
        with retrograde.record(layer) as recording:
            layer(X)[0].sum().backward()
        with pytest.raises(retrograde.RetrogradeError, match="weight_hh_l0.* is nan first at row"):
            retrograde.decompose(recording)
        report = retrograde.diagnose(layer, X, lambda m, x: m(x)[0].sum(), remedies=False)
        assert [finding.rule for finding in report.findings] == ["non-finite"]


def test_nothing_is_left_on_classes_and_torch():
    before = [kind.forward for kind in LAYERS], torch.compile
    net = Net(nn.GRU)
    with contextlib.suppress(KeyError), retrograde.record(net):
        raise KeyError
    assert before == ([kind.forward for kind in LAYERS], torch.compile)
    assert not net.layer._forward_hooks and not net.layer._forward_pre_hooks


def test_clip_inside_while_a_recording_runs():
    """The class's forward is wrapped then, in another thread for instance."""
    with contextlib.suppress(KeyError), retrograde.record(nn.GRU(INPUTS, H)):
        policy = retrograde.clipping.PreActivationValue(1.0)
        assert retrograde.nn.clip_inside(nn.GRU(INPUTS, H), policy).layers == ("GRU",)
        raise KeyError
