"""The compiled backend against the eager one, which the rest of the suite holds against torch."""

import ctypes
import math
import os
import signal
import threading
from contextlib import contextmanager

import pytest
import torch

import retrograde
from retrograde.cells.gates import ACTIVATIONS
from retrograde.cells.generations import TABLE
from retrograde.compiled import library as loading
from retrograde.compiled import passes
from retrograde.errors import BackendError
from support.backends import BACKENDS, using
from support.papers import by_gate, reference_step
from support.type_checks import unchecked

needs_library = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)


@pytest.fixture(autouse=True)
def _whatever_the_environment_asks_for():
    with using(BACKENDS[-1]):
        yield


ELMAN = ("tanh", "relu", "sigmoid", "identity", "4*sigmoid-2", "2*sigmoid-1")
POSITIVE = ("softplus", "relu+sigmoid")
KINDS = [
    *(("LSTM", {"generation": row.name}) for row in TABLE),
    *(("RNN", {"nonlinearity": name}) for name in POSITIVE),
    *(("GRU", {"generation": name}) for name in ("gru-torch", "gru-2014")),
    *(("RNN", {"nonlinearity": name}) for name in ELMAN),
]
FGR = "LSTM", {"generation": "fgr"}
DRAWING = threading.Lock()
"""Threads share one generator of weights."""

SIZES = ((5, 3, 2, 4), (7, 13, 5, 19), (1, 1, 1, 1))  # T, B, I, H: no multiple of anything


def drawn(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def everything(kind, options, dtype, sizes, change=lambda x: x, **more):
    """Outputs, states, activations, and the gradients of a loss on all of them."""
    T, B, inputs, H = sizes
    with DRAWING:
        torch.manual_seed(0)
        module = getattr(retrograde.nn, kind)(inputs, H, **options, dtype=dtype, **more)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(1.3)
    count, layers = len(module.cells()[0].slots), len(module.cells())
    x = change(drawn(B, T, inputs, dtype=dtype, seed=1)).transpose(0, 1).requires_grad_()
    hx = [drawn(layers, B, H, dtype=dtype, seed=2 + n).requires_grad_() for n in range(count)]
    output, last, inside = module(x, tuple(hx) if count > 1 else hx[0], return_activations=True)
    results = [output, *(last if count > 1 else [last])]
    results += [layer[name] for layer in inside for name in sorted(layer)]
    loss = sum((r * drawn(*r.shape, dtype=dtype, seed=n)).sum() for n, r in enumerate(results))
    return [*results, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])]


@needs_library
@pytest.mark.parametrize("kind, options", KINDS, ids=lambda value: "-".join(value.values())
                         if isinstance(value, dict) else value)  # fmt: skip
def test_equals_the_eager_backend(kind, options):
    """States, activations and all gradients, relative to the largest number of each tensor."""
    # A few hundred sums in another order, and functions that differ in their last bit.
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
        for sizes in SIZES:
            found = []
            for name in ("eager", "compiled"):
                with unchecked(), using(name):
                    found.append(everything(kind, options, dtype, sizes, bidirectional=True))
            for eager, ours in zip(*found, strict=True):
                assert ours.shape == eager.shape
                largest = float(eager.detach().abs().max())
                torch.testing.assert_close(ours, eager, rtol=0, atol=tolerance * largest)


@needs_library
def test_gates_that_see_each_other_beside_a_plain_loop():
    """All parts of the state and every gradient, from the equations of the paper by autograd."""
    H = 5
    torch.manual_seed(0)
    module = retrograde.nn.LSTM(2, H, generation="fgr", dtype=torch.float64)
    x = drawn(4, 3, 2, dtype=torch.float64, seed=1).requires_grad_()
    given = [drawn(1, 3, H, dtype=torch.float64, seed=n).requires_grad_() for n in range(2, 7)]
    _, last, (inside,) = module(x, tuple(given), return_activations=True)
    states = torch.cat([inside[name] for name in module.state_pieces], -1)
    weights, state, expected = by_gate(module.cells()[0]), torch.cat(given, -1)[0], []
    for x_k in x:
        state = reference_step("fgr", weights, x_k, *state.split((H, H, 3 * H), -1))
        expected.append(state)
    found = []
    for every, end in ((states, torch.cat(last, -1)[0]), (torch.stack(expected), state)):
        by = drawn(*every.shape, dtype=torch.float64, seed=7)
        loss = (every * by).sum() + (end * by[0]).sum()
        leaves = [x, *given, *module.parameters()]
        found.append([every, end, *torch.autograd.grad(loss, leaves, retain_graph=True)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@needs_library
@pytest.mark.parametrize("kind, options", [*KINDS[:-8:3], *KINDS[-8:-4], FGR])
def test_truncated_and_clipped_inside(kind, options):
    """Gradients and how often it clipped, with either and with both, beside the eager backend."""
    T, B, inputs, H = 7, 9, 3, 19
    for truncated, limit in ((True, None), (False, 0.02), (True, 0.02)):
        found, rates = [], []
        for name in ("eager", "compiled"):
            torch.manual_seed(0)
            module = getattr(retrograde.nn, kind)(
                inputs, H, **options, truncated=truncated, bidirectional=True, dtype=torch.float64
            )
            if limit is not None:
                policy = retrograde.clipping.PreActivationValue(limit)
                handle = retrograde.nn.clip_inside(module, policy)
            x = drawn(T, B, inputs, dtype=torch.float64, seed=1).requires_grad_()
            h = drawn(2, B, H, dtype=torch.float64, seed=2).requires_grad_()
            others = len(module.state_pieces) - 1
            start = (h, *[torch.zeros_like(h)] * others) if others else h
            with unchecked(), using(name):
                output = module(x, start)[0]
                loss = (output * drawn(T, B, 2 * H, dtype=torch.float64, seed=3)).sum()
                found.append(torch.autograd.grad(loss, [x, h, *module.parameters()]))
            rates.append(handle.clip_rate if limit else None)
        assert rates[0] == rates[1] and (limit is None or 0.1 < rates[0][kind] < 1)
        for eager, ours in zip(*found, strict=True):
            atol = 1e-12 * float(eager.abs().max())
            torch.testing.assert_close(ours, eager, rtol=0, atol=atol)


@needs_library
@pytest.mark.parametrize("kind, options", [KINDS[3], FGR, KINDS[-8], KINDS[-7]])
def test_sizes_beyond_a_block(kind, options):
    """More rows than a chunk of weight gradients, deeper products and wider inputs than a tile."""
    found = []
    for name in ("eager", "compiled"):
        with unchecked(), using(name):
            found.append(everything(kind, options, torch.float64, (33, 9, 70, 135)))
    for eager, ours in zip(*found, strict=True):
        atol = 1e-11 * float(eager.detach().abs().max())
        torch.testing.assert_close(ours, eager, rtol=0, atol=atol)


@needs_library
def test_every_instruction_set_of_this_processor(monkeypatch):
    """Each gives what the widest one gives, to rounding; vectors of 2 to 16 numbers."""
    opened = ctypes.CDLL(str(loading.PATH))
    names = loading._instruction_sets(opened)
    assert names[0] in ("baseline", "neon")
    for kind, options in (("LSTM", {"generation": "lstm-2002"}), FGR, ("GRU", {}),
                          ("GRU", {"generation": "gru-2014"}), ("RNN", {})):  # fmt: skip
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-5)):
            found = []
            for number in range(len(names)):
                one = loading._of(opened, number)
                assert one.instructions == names[number]
                monkeypatch.setattr(passes, "library", lambda one=one: one)
                with unchecked():
                    found.append(everything(kind, options, dtype, (7, 7, 5, 19)))
            for results in zip(*found, strict=True):
                for one in results[:-1]:
                    atol = tolerance * float(one.detach().abs().max())
                    torch.testing.assert_close(results[-1], one, rtol=0, atol=atol)


def ulps(found, exact):
    """The distance from the exact values (float64) in units of the last place of `found`."""
    size = exact.abs().clamp_min(torch.finfo(found.dtype).tiny)
    unit = torch.exp2(torch.floor(torch.log2(size))) * torch.finfo(found.dtype).eps
    return float(((found.double() - exact).abs() / unit).max())


@needs_library
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus"])
def test_activation_functions_are_exact_to_three_units_in_the_last_place(name):
    """Against float64 for float32, and against 60 digits for float64."""
    import mpmath

    function = ACTIVATIONS[name].function

    def found(values):
        cell = retrograde.cells.Elman(
            torch.ones(1, 1, dtype=values.dtype),
            torch.zeros(1, 1, dtype=values.dtype),
            activation=name,
        )
        x = values.reshape(1, -1, 1)
        passed = passes.forward(
            passes.library(), passes.kind_of(cell), x, (None,), passes.weights_of(cell)
        )
        return passed.states[0].flatten()

    spread = torch.cat([drawn(20_000, dtype=torch.float64, seed=n) * 4.0**n for n in range(-12, 4)])
    if name == "softplus":
        spread = spread[spread <= 20]  # above torch takes it for a line
    x = spread.float()
    exact = function(x.double())
    normal = exact.abs() > torch.finfo(torch.float32).tiny
    assert ulps(found(x)[normal], exact[normal]) < 3
    mpmath.mp.dps = 60
    x = spread[::400]
    with_digits = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        "softplus": lambda v: mpmath.log1p(mpmath.exp(v)),
    }
    exact = [with_digits[name](v) for v in x.tolist()]
    worst = 0.0
    for ours, value in zip(found(x).tolist(), exact, strict=True):
        worst = max(worst, float(abs(ours - value)) / math.ulp(float(value)))
    assert worst < 3
    inf = math.inf
    for dtype in (torch.float32, torch.float64):
        edge = torch.tensor([inf, -inf, math.nan, 1e30, -1e30, 88.8, -88.8, -95, -104, -710, -746],
                            dtype=dtype)  # fmt: skip
        expected = function(edge.double()).to(dtype)
        tiny = torch.finfo(dtype).tiny
        torch.testing.assert_close(found(edge), expected, rtol=1e-6, atol=tiny, equal_nan=True)


def test_every_activation_function_has_a_number_in_the_library():
    assert set(passes.ACTIVATIONS) == set(ACTIVATIONS)


@needs_library
@pytest.mark.parametrize("kind, options", [KINDS[3], FGR, KINDS[-8], KINDS[-7], KINDS[-6]])
def test_what_is_not_finite_goes_where_it_goes_in_the_eager_backend(kind, options):
    """NaN and infinities of states and of the gradients of the inputs, sample by sample."""
    T, B, inputs, H = 6, 5, 3, 5
    for value in (math.nan, math.inf, -math.inf, 1e38):
        patterns = []
        for name in ("eager", "compiled"):
            torch.manual_seed(0)
            module = getattr(retrograde.nn, kind)(inputs, H, **options)
            x = drawn(T, B, inputs, dtype=torch.float32, seed=1)
            x[2, 1, 0] = value
            x.requires_grad_()
            with unchecked(), using(name):
                output = module(x)[0]
                (by_x,) = torch.autograd.grad(output.square().sum(), x)
            patterns.append((output.isnan(), by_x.isnan()))
            assert not by_x[:, [0, 2, 3, 4]].isnan().any()
        for eager, ours in zip(*patterns, strict=True):
            assert torch.equal(eager, ours), value


@needs_library
@pytest.mark.parametrize(
    "kind, options", [KINDS[3], KINDS[6], FGR, KINDS[-8], KINDS[-7], KINDS[-5]]
)
def test_steps_without_a_gradient_are_passed_over_unless_something_there_is_not_finite(
    kind, options
):
    """The loss ends at step 3 of 9: what is after gives 0, or NaN from a NaN or an infinity."""
    for value, of_weight in ((0.5, 1), (math.nan, 1), (math.inf, 1), (-1e38, 1), (0.5, math.inf)):
        found = []
        for name in ("eager", "compiled"):
            torch.manual_seed(0)
            module = getattr(retrograde.nn, kind)(3, 5, **options)
            with torch.no_grad():
                module.weight_ih_l0[0, 2] *= of_weight
            x = drawn(9, 4, 3, dtype=torch.float32, seed=1)
            x[..., 2] = 0.0 if of_weight == 1 else 1.0
            x[6, 1, 0] = value
            x.requires_grad_()
            leaves = [x, *module.parameters()]
            with unchecked(), using(name):
                loss = module(x)[0][:3].square().sum()
                found.append(torch.autograd.grad(loss, leaves))
        for eager, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5, equal_nan=True)


@needs_library
@pytest.mark.parametrize("infinite", ["weight", "gate"])
def test_no_gradient_comes_and_what_gates_see_is_infinite(infinite):
    """0 times a weight between gates, and times a gate of the initial state, is NaN then."""
    found = []
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        module = retrograde.nn.LSTM(3, 5, generation="fgr")
        given = [drawn(1, 4, 5, dtype=torch.float32, seed=n) for n in range(5)]
        with torch.no_grad():
            (module.weight_gg_l0 if infinite == "weight" else given[3][0])[1, 2] = math.inf
        leaves = [*(part.requires_grad_() for part in given), *module.parameters()]
        with unchecked(), using(name):
            loss = (module(drawn(6, 4, 3, dtype=torch.float32, seed=6), given)[0] * 0).sum()
            found.append(torch.autograd.grad(loss, leaves))
    assert any(grad.isnan().any() for grad in found[0])
    for eager, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, equal_nan=True)


@needs_library
def test_layout_makes_no_difference():
    """Batch first, every other sample, one number off a vector, expanded gradients, twice."""
    T, B, inputs, H = 6, 5, 3, 7
    module = retrograde.nn.LSTM(inputs, H, generation="lstm-2002")
    plain = drawn(T, B, inputs, dtype=torch.float32, seed=1)
    moved = torch.empty(T * B * inputs + 1)[1:].view(T, B, inputs).copy_(plain)
    wide = torch.empty(T, 2 * B, inputs + 4)
    wide[:, ::2, 2:-2] = plain
    across = plain.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    found = []
    for x in (plain, moved, wide[:, ::2, 2:-2], across):
        x = x.detach().requires_grad_()
        output, (h_n, c_n) = module(x)
        loss = output.sum() + c_n.sum()
        leaves = [x, *module.parameters()]
        once = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert all(map(torch.equal, once, torch.autograd.grad(loss, leaves)))
        found.append([output, h_n, c_n, *once])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))
    with torch.no_grad():
        for weight in module.parameters():
            weight.set_(torch.empty(weight.numel() + 1)[1:].view_as(weight).copy_(weight))
    assert torch.equal(module(plain)[0], found[0][0])
    weights = list(module.parameters())
    changed = module(plain)[0].mul_(2)  # in place, as outputs of torch's layers can be
    twice = torch.autograd.grad(2 * module(plain)[0].sum(), weights)
    assert all(map(torch.equal, torch.autograd.grad(changed.sum(), weights), twice))


@needs_library
@pytest.mark.parametrize("kind, options", [KINDS[3], FGR, KINDS[-8], KINDS[-7]])
def test_last_states_may_be_changed_in_place(kind, options):
    """As those of torch's layers may, which some do between two windows."""
    found = []
    for name in ("eager", "compiled"):
        torch.manual_seed(0)
        module = getattr(retrograde.nn, kind)(3, 5, **options)
        x = drawn(4, 2, 3, dtype=torch.float32, seed=1)
        with unchecked(), using(name):
            last = module(x)[1]
            for part in last if isinstance(last, tuple) else (last,):
                part.mul_(0.5)
            loss = module(x, last)[0].sum()
            found.append(torch.autograd.grad(loss, [*module.parameters()]))
    for eager, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


@needs_library
def test_no_steps_no_inputs():
    """What a module refuses the door takes: nothing moves, and nothing is added up."""
    lstms = (passes.LSTMS[name] for name in ("lstm-2002", "fgr"))
    for kind in (*lstms, passes.GRUS["gru-2014"], passes.ELMANS["tanh"]):
        blocks, holes = kind.blocks
        sizes = ((4 * blocks, 3), (4 * blocks, 4), (4 * blocks,), (4 * blocks,))
        sizes += ((4 * holes,), (12, 12))
        weights = [drawn(*s, dtype=torch.float64, seed=n) for n, s in enumerate(sizes)]
        if not holes:
            weights[4] = None
        if not kind.gates:
            weights[5] = None
        initial = [drawn(2, 4, dtype=torch.float64, seed=9) for _ in kind.parts]
        ends = [part[None] for part in initial]
        if kind.gates:
            initial.append(drawn(2, 12, dtype=torch.float64, seed=9))
        x = torch.empty(0, 2, 3, dtype=torch.float64)
        use = passes.library()
        passed = passes.forward(use, kind, x, initial, weights)
        needs = [True] * (1 + len(initial)) + [weight is not None for weight in weights]
        nothing = [None] * len(ends)
        back = passes.backward(use, kind, x, initial, weights, passed, nothing, ends, None, needs)
        for start, end, by in zip(ends, passed.last, back.initial[: len(ends)], strict=True):
            assert torch.equal(start, end) and torch.equal(by, start[0])
        assert not any(by.any() for by in back.initial[len(ends) :])
        assert all(by is None or not by.any() for by in back.weights)
        x, weights[0] = torch.empty(3, 2, 0, dtype=torch.float64), weights[0][:, :0]
        passed = passes.forward(use, kind, x, initial, weights)
        zeros = torch.zeros(3, 2, 1, dtype=torch.float64), torch.zeros(4 * blocks, 1).double()
        other = passes.forward(use, kind, zeros[0], initial, [zeros[1], *weights[1:]])
        assert torch.equal(passed.states[0], other.states[0])


@contextmanager
def poisoned():
    """What torch does not initialise is filled with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@needs_library
def test_nothing_is_read_that_was_not_written():
    for kind, options in (KINDS[3], KINDS[7], FGR, KINDS[-8], KINDS[-7], KINDS[-6]):
        plain = everything(kind, options, torch.float32, (5, 3, 2, 5), num_layers=2)
        with poisoned():
            again = everything(kind, options, torch.float32, (5, 3, 2, 5), num_layers=2)
        assert all(map(torch.equal, plain, again))


@needs_library
@pytest.mark.parametrize("generation", ["lstm-2002", "fgr"])
def test_threads_and_processes(generation):
    """Two Python threads at once, samples over two threads of torch, and a fork after all that."""
    sizes, before = (11, 9, 40, 60), torch.get_num_threads()

    def run():
        return everything("LSTM", {"generation": generation}, torch.float64, sizes)

    found = {}
    try:
        torch.set_num_threads(1)
        alone = run()
        both = [threading.Thread(target=lambda n=n: found.update({n: run()})) for n in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        torch.set_num_threads(2)
        split = run()
        child = os.fork()
        if not child:
            signal.alarm(60)  # it would wait forever for threads that it does not have
            os._exit(not all(map(torch.equal, alone, run())))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
    for n in range(2):
        assert all(map(torch.equal, alone, found[n]))
    for one, other in zip(alone, split, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@needs_library
def test_small_gradients_are_flushed_and_the_thread_is_left_as_it_was():
    """Below the normal range a gradient counts as 0; a state does not, nor what torch computes."""
    module = retrograde.nn.RNN(1, 1, nonlinearity="identity", bias=False)
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
        module.weight_hh_l0.fill_(0.25)
    x = torch.zeros(70, 1, 1)
    x[0] = 1.0
    x.requires_grad_()
    output = module(x)[0]
    assert output[-1].item() == 2.0**-138
    (by_x,) = torch.autograd.grad(output[-1].sum(), x)
    assert float(by_x[10]) == 2.0**-118 and float(by_x[0]) == 0
    assert float(torch.tensor(2.0**-100) * torch.tensor(2.0**-40)) == 2.0**-140


@needs_library
def test_a_second_derivative_of_what_torch_has():
    for module in (
        retrograde.nn.GRU(2, 3, bidirectional=True, dtype=torch.float64),
        retrograde.nn.RNN(2, 3, bias=False, dtype=torch.float64),
        retrograde.nn.LSTM(2, 3, dtype=torch.float64),
    ):
        x = drawn(4, 2, 2, dtype=torch.float64, seed=1).requires_grad_()
        found = []
        for one in (module, module.to_torch()):
            leaves = [x, *one.parameters()]
            loss = one(x)[0].square().sum()
            first = torch.autograd.grad(loss, leaves, create_graph=True)
            penalty = sum(part.square().sum() for part in first)
            found.append([*first, *torch.autograd.grad(penalty, leaves)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind, options", [KINDS[3], KINDS[-7]])
def test_what_torch_transforms_or_traces(kind, options):
    """Step by step, so that it can be differentiated again, forwards, for each sample, exported."""
    module = getattr(retrograde.nn, kind)(2, 3, **options, dtype=torch.float64)
    x, weights = drawn(4, 2, 2, dtype=torch.float64, seed=1), dict(module.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(module, weights, (x,))[0].square().sum()

    with unchecked():
        expected = torch.autograd.grad(loss(weights, x), [*weights.values()])
        found = torch.func.grad(loss)(weights, x)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x.unsqueeze(2))
        _, along = torch.func.jvp(lambda weights: loss(weights, x), (weights,), (found,))
        hessian = torch.func.hessian(lambda x: loss(weights, x))(x).reshape(x.numel(), -1)
        exported = torch.export.export(module, (x,), strict=False).module()
        torch.testing.assert_close(exported(x)[0], module(x)[0])
    for name, one in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[name], one)
        torch.testing.assert_close(each[name].sum(0), one)
    torch.testing.assert_close(along, sum(one.square().sum() for one in expected))
    torch.testing.assert_close(hessian, hessian.mT)
    assert torch.linalg.matrix_rank(hessian) == x.numel()
    cut = getattr(retrograde.nn, kind)(2, 3, **options, truncated=True, dtype=torch.float64)
    with pytest.raises(BackendError, match="truncated or clipped inside"):
        torch.func.grad(lambda x: cut(x)[0].sum())(x)


@needs_library
@pytest.mark.parametrize("kind", ("GRU", "LSTM"))
def test_saved_tensors_may_come_back_with_other_strides(kind):
    def turned(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    module = getattr(retrograde.nn, kind)(2, 3, dtype=torch.float64)
    x = drawn(4, 2, 2, dtype=torch.float64, seed=1)
    weights = list(module.parameters())
    expected = torch.autograd.grad(module(x)[0].square().sum(), weights)
    with torch.autograd.graph.saved_tensors_hooks(turned, lambda tensor: tensor):
        loss = module(x)[0].square().sum()
    for ours, theirs in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_library
def test_several_gradients_at_once():
    """By torch's function where it has the cell; else an error that says what to do."""
    grads = drawn(3, 4, 2, 3, dtype=torch.float64, seed=2)
    for kind in ("GRU", "LSTM", "RNN"):
        module = getattr(retrograde.nn, kind)(2, 3, dtype=torch.float64)
        x = drawn(4, 2, 2, dtype=torch.float64, seed=1)
        at_once, one_by_one = (
            [torch.autograd.grad(module(x)[0], module.weight_hh_l0, g, is_grads_batched=batched)[0]]
            for batched, g in ((True, grads), (False, grads[1]))
        )
        torch.testing.assert_close(at_once[0][1], one_by_one[0])
    peephole = retrograde.nn.LSTM(2, 3, generation="peephole", dtype=torch.float64)
    with pytest.raises(BackendError, match="one after the other"):
        torch.autograd.grad(peephole(x)[0], peephole.weight_hh_l0, grads, is_grads_batched=True)
