"""Modules against torch.nn, against autograd on a plain loop, and against their own promises."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import retrograde
from retrograde.cells.generations import TABLE
from retrograde.errors import ArgumentError, SecondDerivativeError
from retrograde.nn import GRU, LSTM, RNN, initialisations, initialise
from support.backends import BACKENDS, using
from support.type_checks import unchecked

EXACT = {"atol": 1e-12, "rtol": 1e-10}  # float64, a few hundred sums in another order than torch's
T, B, INPUTS, H = 5, 3, 2, 4

MAKERS = {
    **{row.name: lambda *sizes, _name=row.name, **o: LSTM(*sizes, generation=_name, **o)
       for row in TABLE},
    "gru-torch": lambda *sizes, **o: GRU(*sizes, **o),
    "gru-2014": lambda *sizes, **o: GRU(*sizes, generation="gru-2014", **o),
    "rnn-sigmoid": lambda *sizes, **o: RNN(*sizes, nonlinearity="sigmoid", **o),
    "rnn-tanh": lambda *sizes, **o: RNN(*sizes, **o),
}  # fmt: skip


def made(name, *sizes, seed=0, **options):
    torch.manual_seed(seed)
    module = MAKERS[name](*(sizes or (INPUTS, H)), dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, 0.6)
    return module


def drawn(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def parts(state):
    return (state,) if isinstance(state, Tensor) else tuple(state)


def gradients(module, x, hx, *, ours=False):
    """Output, last state, and the gradients of everything of a loss on both."""
    x = x.clone().requires_grad_()
    hx = None if hx is None else [part.clone().requires_grad_() for part in hx]
    given = None if hx is None else tuple(hx) if len(hx) > 1 else hx[0]
    options = {"return_activations": True} if ours else {}
    output, last, *_ = module(x, given, **options)
    results = [output, *parts(last)]
    loss = sum((r * drawn(*r.shape, seed=n)).sum() for n, r in enumerate(results))
    leaves = [x, *(hx or []), *module.parameters()]
    return [*results, *torch.autograd.grad(loss, leaves)]


KINDS = {
    "lstm": (nn.LSTM, LSTM, 2, {}),
    "gru": (nn.GRU, GRU, 1, {}),
    "tanh": (nn.RNN, RNN, 1, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, RNN, 1, {"nonlinearity": "relu"}),
}


@given(
    backend=st.sampled_from(BACKENDS),
    kind=st.sampled_from(sorted(KINDS)),
    steps=st.integers(1, 6),
    batch=st.integers(0, 3),  # 0: no batch axis
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 5),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    both=st.booleans(),
    state=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_equals_torch(
    backend, kind, steps, batch, inputs, hidden, layers, bias, batch_first, both, state, seed
):
    """Outputs, states and all gradients, on torch's kernel and on our own recurrence."""
    theirs, ours, count, options = KINDS[kind]
    torch.manual_seed(seed)
    module = theirs(inputs, hidden, layers, bias=bias, batch_first=batch_first,
                    bidirectional=both, dtype=torch.float64, **options)  # fmt: skip
    mine = ours.from_torch(module)
    shape = (steps, inputs) if not batch else (steps, batch, inputs)
    x = drawn(*shape, seed=seed)
    if batch and batch_first:
        x = x.transpose(0, 1)
    hx = None
    if state:
        layout = (
            (layers * (1 + both), hidden) if not batch else (layers * (1 + both), batch, hidden)
        )
        hx = [drawn(*layout, seed=seed + n) for n in range(count)]
    expected = gradients(module, x, hx)
    for own in (False, True):
        with using(backend):
            found = gradients(mine, x, hx, ours=own)
        assert [f.shape for f in found] == [e.shape for e in expected]
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MAKERS)
def test_gradcheck(name, backend):
    """Differences along random directions: input, states and every weight."""
    module = made(name, 1, 2, num_layers=2, bidirectional=True)
    names = [n for n, _ in module.named_parameters()]
    count = len(module.cells()[0].slots)
    leaves = [drawn(3, 2, 1), *(0.5 * drawn(4, 2, 2, seed=n) for n in range(count))]
    leaves += [weight.detach().clone() for weight in module.parameters()]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def run(x, *rest):
        hx, weights = rest[:count], rest[count:]
        given = (x, hx if count > 1 else hx[0])
        named = dict(zip(names, weights, strict=True))
        output, last, inside = torch.func.functional_call(
            module, named, given, {"return_activations": True}
        )
        return (output, *parts(last), inside[-1]["output" if "output" in inside[-1] else "h"])

    with unchecked(), using(backend):
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def plain_loop(module, x):
    """The same outputs by stepping the cells one by one: autograd differentiates, not we."""
    (cell,) = module.cells()
    state = x.new_zeros(x.shape[1], cell.state_size)
    outputs = []
    for x_k in x:
        state = cell.step(x_k, state).state
        outputs.append(state[:, cell.output])
    return torch.stack(outputs)


@pytest.mark.parametrize("name", MAKERS)
def test_training_is_the_same_as_with_autograd_on_a_plain_loop(name):
    """Fifteen steps of Adam, to rounding."""
    x, y = drawn(T, B, INPUTS), drawn(T, B, H, seed=6)
    losses, trained = [], []
    for own in (True, False):
        module = made(name)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(15):
            optimizer.zero_grad()
            with unchecked():
                output = module(x, return_activations=True)[0] if own else plain_loop(module, x)
                loss = (output - y).square().mean()
                loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        trained.append([weight.detach() for weight in module.parameters()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for ours, autograds in zip(*trained, strict=True):
        torch.testing.assert_close(ours, autograds, atol=1e-10, rtol=1e-9)  # Adam divides by |g|


def test_what_happens_inside_can_be_had_and_differentiated():
    module = made("lstm-2002", batch_first=True, bidirectional=True)
    x = drawn(B, T, INPUTS).requires_grad_()
    output, (h_n, c_n), inside = module(x, return_activations=True)
    assert len(inside) == 2
    for direction, layer in enumerate(inside):
        assert {"h", "c", "input", "forget", "cell", "output"} <= set(layer)
        assert all(value.shape == (B, T, H) for value in layer.values())
        last = 0 if direction else -1
        torch.testing.assert_close(layer["c"][:, last], c_n[direction], **EXACT)
        torch.testing.assert_close(layer["h"][:, last], h_n[direction], **EXACT)
        (cell, along) = module.cells()[direction], x.flip(1) if direction else x
        state, rows = x.new_zeros(B, 2 * H), []
        for x_k in along.unbind(1):
            step = cell.step(x_k, state)
            state = step.state
            rows.append({**step.activations, "c": state[:, H:], "h": state[:, :H]})
        rows = rows[::-1] if direction else rows
        for name, value in layer.items():
            expected = torch.stack([row[name] for row in rows], 1)
            torch.testing.assert_close(value, expected, **EXACT)
            ours, theirs = (
                torch.autograd.grad((v * drawn(B, T, H, seed=9)).sum(), x, retain_graph=True)[0]
                for v in (value, expected)
            )
            torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(output, torch.cat([layer["h"] for layer in inside], -1), **EXACT)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("name", ["lstm-2000", "lstm-2002", "gru-torch", "gru-2014"])
def test_layers_of_ours_take_packed_sequences(name, in_order):
    """On torch's kernel, and (activations wanted) on our own recurrence."""
    torch.manual_seed(0)
    kind = GRU if name.startswith("gru") else LSTM
    layer = kind(INPUTS, H, 2, bidirectional=True, generation=name, dtype=torch.float64)
    x, lengths = drawn(T, B, INPUTS), [5, 3, 2] if in_order else [2, 5, 3]
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=in_order)
    output, last, inside = layer(packed, return_activations=True)
    quick, last_quick = layer(packed)
    torch.testing.assert_close(quick.data, output.data, **EXACT)
    for one, other in zip(parts(last_quick), parts(last), strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    output, sizes = pad_packed_sequence(output)
    assert sizes.tolist() == lengths
    for b, length in enumerate(lengths):
        alone, state, within = layer(x[:length, b], return_activations=True)
        torch.testing.assert_close(output[:length, b], alone, **EXACT)
        for whole, one in zip(parts(last), parts(state), strict=True):
            torch.testing.assert_close(whole[:, b], one, **EXACT)
        for whole, one in zip(inside, within, strict=True):
            values = pad_packed_sequence(whole["h"])[0]
            torch.testing.assert_close(values[:length, b], one["h"], **EXACT)


def test_a_second_derivative_is_refused_and_the_first_is_not():
    module = made("lstm-2002")
    x = drawn(T, B, INPUTS).requires_grad_()
    loss = module(x)[0].square().sum()
    (kept,) = torch.autograd.grad(loss, x, create_graph=True)
    (plain,) = torch.autograd.grad(module(x)[0].square().sum(), x)
    torch.testing.assert_close(kept.detach(), plain, **EXACT)
    with pytest.raises(SecondDerivativeError, match="step its cell in a plain loop"):
        kept.square().sum().backward()
    by_loop = torch.autograd.grad(plain_loop(module, x).square().sum(), x, create_graph=True)[0]
    torch.testing.assert_close(by_loop.detach(), plain, **EXACT)
    by_loop.square().sum().backward()  # the advice works


@pytest.mark.parametrize("name", ["lstm-1997", "lstm-2002", "fgr", "gru-2014", "rnn-tanh"])
def test_truncation_detaches_the_output(name):
    """What truncated=True leaves is the gradient of a loop that detaches h_{k-1} at the gates."""
    module = made(name, truncated=True)
    x = drawn(T, B, INPUTS).requires_grad_()
    (cell,) = made(name).cells()
    state = x.new_zeros(B, cell.state_size)
    outputs = []
    for x_k in x:
        # Only the carousel and peepholes may see the old state with a gradient.
        seen = state.detach().clone()
        if "c" in cell.slots:
            seen[:, cell.slots["c"]] = state[:, cell.slots["c"]]
            state = cell.step(x_k, seen).state
        elif name == "rnn-tanh":
            state = cell.step(x_k, seen).state
        else:
            z = cell.step(x_k, seen).activations["update"]
            state = cell.step(x_k, seen).state + z * (state - state.detach())
        outputs.append(state[:, cell.output])
    expected = torch.autograd.grad(torch.stack(outputs).square().sum(), x)[0]
    found = torch.autograd.grad(module(x)[0].square().sum(), x)[0]
    torch.testing.assert_close(found, expected, **EXACT)
    full = torch.autograd.grad(made(name)(x)[0].square().sum(), x)[0]
    assert not torch.allclose(found, full)


def test_dropout_acts_between_layers_and_only_in_training():
    for kind in ("lstm-2000", "lstm-2002"):
        module, x = made(kind, num_layers=2, dropout=0.5), drawn(T, B, INPUTS)
        torch.manual_seed(1)
        first = module(x)[0]
        assert not torch.equal(first, module(x)[0])
        module.eval()
        assert torch.equal(module(x)[0], module(x)[0])
        # With p = 1 the upper layer sees zeros.
        all_dropped = made(kind, num_layers=2, dropout=1.0)
        upper = made(kind, H, H)
        weights = {
            n.replace("_l1", "_l0"): w for n, w in all_dropped.state_dict().items() if "_l1" in n
        }
        upper.load_state_dict(weights)
        torch.testing.assert_close(
            all_dropped(x)[0], upper(torch.zeros(T, B, H, dtype=x.dtype))[0], **EXACT
        )
    with pytest.warns(UserWarning, match="acts between layers, but there is only one"):
        LSTM(2, 3, dropout=0.1)


def test_weights_are_drawn_as_torch_draws_them():
    for theirs, ours in ((nn.LSTM, LSTM), (nn.GRU, GRU), (nn.RNN, RNN)):
        torch.manual_seed(3)
        expected = theirs(INPUTS, H, 2, bidirectional=True).state_dict()
        torch.manual_seed(3)
        found = ours(INPUTS, H, 2, bidirectional=True).state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@pytest.mark.parametrize("name", ["lstm-2000", "lstm-2002", "gru-torch", "rnn-tanh"])
def test_parametrized_weights_are_the_ones_that_run(name):
    """On torch's kernel and on our recurrence, and they are the ones that are recorded."""
    plain, halved, x = made(name), made(name), drawn(T, B, INPUTS)
    with torch.no_grad():
        plain.weight_hh_l0 /= 2
    nn.utils.parametrize.register_parametrization(halved, "weight_hh_l0", Halved())
    for options in ({}, {"return_activations": True}):
        torch.testing.assert_close(halved(x, **options)[0], plain(x)[0], **EXACT)
    with retrograde.record(halved) as recording:
        halved(x)[0].sum().backward()
    assert retrograde.decompose(recording).residual < 1e-12
    torch.testing.assert_close(
        recording.only().weights["weight_hh_l0"], plain.weight_hh_l0.detach()
    )


def test_parameter_counts():
    """G blocks of H rows with I + H weights and two biases, in every layer and direction."""
    for blocks, make in ((1, RNN), (3, GRU), (4, LSTM)):
        first = blocks * H * (INPUTS + H + 2)
        second = blocks * H * (2 * H + H + 2)
        module = make(INPUTS, H, 2, bidirectional=True)
        assert sum(weight.numel() for weight in module.parameters()) == 2 * (first + second)


def test_copying_both_ways():
    torch.manual_seed(0)
    for kind, (theirs, ours, _, options) in KINDS.items():
        module = theirs(INPUTS, H, 2, dropout=0.1, batch_first=True, **options).eval()
        state = torch.get_rng_state()
        back = ours.from_torch(module).to_torch()
        assert torch.equal(state, torch.get_rng_state()), "copying draws no numbers"
        assert repr(back) == repr(module) and not back.training, kind
        for name, weight in module.state_dict().items():
            assert torch.equal(back.state_dict()[name], weight)
            assert back.state_dict()[name].data_ptr() != weight.data_ptr()


def test_recording_a_module_of_ours():
    """Every generation, several layers, initial states, truncated or not: residual at rounding."""
    for name in MAKERS:
        for truncated in (False, True):
            module = made(name, num_layers=2, batch_first=True, truncated=truncated)
            count = len(module.cells()[0].slots)
            hx = tuple(drawn(2, B, H, seed=n) for n in range(count))
            with retrograde.record(module) as recording:
                output, last = module(drawn(B, T, INPUTS), hx if count > 1 else hx[0])
                (output.square().sum() + sum(part.sum() for part in parts(last))).backward()
            flow = retrograde.decompose(recording)
            assert flow.residual < 1e-12, (name, truncated)
            assert flow.parameters == tuple(n for n, _ in module.named_parameters())


def test_refusals():
    with pytest.raises(ArgumentError, match="no LSTM generation '1997'.*there are: cec"):
        LSTM(2, 3, generation="1997")
    with pytest.raises(
        ArgumentError, match="gru-torch, gru-2014. Peepholes belong to the LSTM fam"
    ):
        GRU(2, 3, generation="peephole")
    with pytest.raises(ArgumentError, match="one of tanh, relu, .*; got 'gelu'"):
        RNN(2, 3, nonlinearity="gelu")
    for sizes in ((0, 3), (2, -1), (2, 3, 0)):
        with pytest.raises(ArgumentError, match="must be a positive integer; got"):
            LSTM(*sizes)
    with unchecked(), pytest.raises(ArgumentError, match="hidden_size must be a positive integer"):
        GRU(2, 3.0)
    with pytest.raises(ArgumentError, match=r"a probability from 0 to 1; got 1.5"):
        RNN(2, 3, 2, dropout=1.5)
    lstm = LSTM(2, 3, batch_first=True, generation="peephole")
    with pytest.raises(
        ArgumentError, match=r"shape \[B, T, 2\] or \[T, 2\], or be packed; got \[4, 5, 3\]"
    ):
        lstm(torch.zeros(4, 5, 3))
    with pytest.raises(ArgumentError, match="has no step or no sample"):
        lstm(torch.zeros(4, 0, 2))
    with pytest.raises(ArgumentError, match=r"h_0 \[1, 4, 3\], c_0 \[1, 4, 3\]; got \[1, 4"):
        lstm(torch.zeros(4, 5, 2), torch.zeros(1, 4, 3))
    with pytest.raises(ArgumentError, match=r"torch.nn has nothing that computes LSTM\(2, 3"):
        lstm.to_torch()
    with pytest.raises(ArgumentError, match="expected an nn.LSTM with proj_size=0"):
        LSTM.from_torch(nn.LSTM(2, 4, proj_size=3))
    with unchecked(), pytest.raises(ArgumentError, match="expected an nn.GRU; got the module LSTM"):
        GRU.from_torch(nn.LSTM(2, 4))


def test_weights_of_another_generation():
    old, new = LSTM(2, 3, generation="lstm-1997"), LSTM(2, 3, generation="peephole")
    with pytest.raises(
        RuntimeError, match=r"missing: weight_ch_l0; of another shape: .*'lstm-1997"
    ):
        new.load_state_dict(old.state_dict())
    with pytest.raises(RuntimeError, match=r"extra: weight_ch_l0.*'lstm-2002' or 'niaf' or 'noaf'"):
        LSTM(2, 3).load_state_dict(new.state_dict())
    weights = new.state_dict()
    del weights["weight_ch_l0"]
    with pytest.raises(
        RuntimeError, match=r"missing: weight_ch_l0\). They fit generation 'lstm-20"
    ):
        new.load_state_dict(weights)
    new.load_state_dict(weights, strict=False)  # asked for: what is missing stays
    model = nn.Sequential(new, nn.Linear(3, 1))
    inside = {**model.state_dict(), **{f"0.{n}": w for n, w in old.state_dict().items()}}
    with pytest.raises(RuntimeError, match="of another shape: .*the nearest is 'lstm-1997'"):
        model.load_state_dict(inside)
    with pytest.raises(RuntimeError, match="No generation fits with these sizes; the nearest is"):
        new.load_state_dict({"weight_ih_l0": torch.zeros(12, 7)})
    with pytest.raises(RuntimeError, match="two biases"):
        RNN(2, 3).load_state_dict(GRU(2, 3).state_dict())


def bias_of(module, gate, gates):
    number = gates.index(gate)
    rows = slice(number * module.hidden_size, (number + 1) * module.hidden_size)
    return (module.bias_ih_l1 + module.bias_hh_l1).detach()[rows]


@pytest.mark.parametrize("kind", [nn.LSTM, LSTM, nn.GRU, GRU])
def test_biases_of_the_gate_that_keeps(kind):
    gates = ["input", "forget", "cell", "output"]
    gate = "forget"
    if kind in (nn.GRU, GRU):
        gates, gate = ["reset", "update", "candidate"], "update"
    module = kind(2, 400, 2)
    others = module.weight_hh_l1.detach().clone()
    initialise(module, "forget-bias", value=3.0)
    assert bool((bias_of(module, gate, gates) == 3).all()), "not 6: torch adds two biases"

    generator = torch.Generator().manual_seed(0)
    initialise(module, "chrono", horizon=101, generator=generator)
    keeping = torch.sigmoid(bias_of(module, gate, gates))
    horizons = 1 / (1 - keeping)  # 1 + u, uniform on [2, 101]
    assert 2 <= float(horizons.min()) < 6 and 97 < float(horizons.max()) <= 101.01
    assert float(horizons.mean()) == pytest.approx(51.5, abs=4 * 28.6 / 20)
    if gate == "forget":
        assert torch.equal(bias_of(module, "input", gates), -bias_of(module, "forget", gates))

    initialise(module, "uniform-gate", generator=generator)
    keeping = torch.sigmoid(bias_of(module, gate, gates))
    assert 1 / 400 <= float(keeping.min()) < 0.03 and 0.97 < float(keeping.max()) <= 1 - 1 / 401
    assert float(keeping.mean()) == pytest.approx(0.5, abs=4 * 0.289 / 20)
    assert torch.equal(module.weight_hh_l1, others), "an initialisation leaves the rest alone"


def test_orthogonal_identity_and_torch():
    module = LSTM(2, 5, generation="lstm-2002", dtype=torch.float64)
    initialise(module, "orthogonal", gain=0.9)
    for block in module.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(block @ block.T, 0.81 * torch.eye(5, dtype=torch.float64))
    for kind in (nn.RNN, RNN):
        irnn = kind(50, 40, nonlinearity="relu")
        initialise(irnn, "identity")
        assert torch.equal(irnn.weight_hh_l0, torch.eye(40))
        assert not bool(irnn.bias_ih_l0.any() or irnn.bias_hh_l0.any())
        assert float(irnn.weight_ih_l0.detach().std()) == pytest.approx(0.001, rel=0.1)
    plain = nn.GRU(2, 16)
    initialise(plain, "forget-bias", value=9.0)
    initialise(plain, "torch", generator=torch.Generator().manual_seed(1))
    assert all(float(weight.detach().abs().max()) <= 0.25 for weight in plain.parameters())
    again = nn.GRU(2, 16)
    initialise(again, "torch", generator=torch.Generator().manual_seed(1))
    assert all(map(torch.equal, plain.parameters(), again.parameters()))


def test_initialisations_that_do_not_fit():
    lstm = nn.LSTM(2, 3)
    known = ", ".join(initialisations)
    with pytest.raises(ArgumentError, match=f"name must be one of {known}; got 'xavier'"):
        initialise(lstm, "xavier")
    with pytest.raises(ArgumentError, match="a gate that LSTM.*'lstm-1997'.* lacks"):
        initialise(LSTM(2, 3, generation="lstm-1997"), "forget-bias")
    with pytest.raises(ArgumentError, match="a gate that RNN"):
        initialise(nn.RNN(2, 3), "chrono", horizon=10)
    with pytest.raises(ArgumentError, match="bias=False"):
        initialise(nn.LSTM(2, 3, bias=False), "uniform-gate")
    with (
        unchecked(),
        pytest.raises(ArgumentError, match="one recurrent layer .*; got the module Sequential"),
    ):
        initialise(nn.Sequential(lstm), "torch")
    with pytest.raises(ArgumentError, match="needs horizon=.* at least 3"):
        initialise(lstm, "chrono")
    with pytest.raises(ArgumentError, match="H of at least 2"):
        initialise(nn.LSTM(2, 1), "uniform-gate")
    with pytest.raises(ArgumentError, match="'identity' is for a relu RNN; got RNN"):
        initialise(nn.RNN(2, 3), "identity")


def test_no_warning_without_need():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LSTM(2, 3, 2, dropout=0.1)


@pytest.mark.parametrize(
    ("kind", "gates", "keeping"), [(nn.LSTMCell, 4, 1), (nn.GRUCell, 3, 1), (nn.RNNCell, 1, None)]
)
def test_cells_of_torch_are_initialised_as_their_layers_are(kind, gates, keeping):
    cell = kind(3, 5)
    retrograde.nn.initialise(cell, "orthogonal")
    for block in cell.weight_hh.chunk(gates):
        torch.testing.assert_close(block @ block.T, torch.eye(5))
    if keeping is None:
        with pytest.raises(ArgumentError, match="a gate that RNNCell"):
            retrograde.nn.initialise(cell, "forget-bias")
        return
    retrograde.nn.initialise(cell, "forget-bias", value=2.0)
    total = (cell.bias_ih + cell.bias_hh)[5 * keeping : 5 * (keeping + 1)]
    assert torch.equal(total, torch.full((5,), 2.0))
