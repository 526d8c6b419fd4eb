"""Recurrences written by hand, declared and recorded where they stand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde
from retrograde import Declaration
from retrograde.cells import Gate, gate
from retrograde.cells.gates import ACTIVATIONS, LSTM_GATES
from retrograde.errors import ArgumentError, RecordingError

T, B, I, H = 10, 4, 3, 5  # noqa: E741
CELL = ("h", "c")


class ByHand(nn.Module):
    """An LSTM from scratch, with the weights of nn.LSTM, called with [B, T, I]."""

    def __init__(self, inputs=I, hidden=H, batch_first=True):
        super().__init__()
        self.hidden_size, self.batch_first = hidden, batch_first
        self.W = nn.Linear(inputs, 4 * hidden)
        self.R = nn.Linear(hidden, 4 * hidden)

    def forward(self, x, state=None):
        x = x if not self.batch_first else x.transpose(0, 1)
        h, c = state or (x.new_zeros(x.shape[1], self.hidden_size),) * 2
        outputs = []
        for x_k in x:
            i, f, g, o = (self.W(x_k) + self.R(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, 1 if self.batch_first else 0), (h, c)

    def as_torch(self):
        """nn.LSTM with the same weights."""
        lstm = nn.LSTM(I, H, batch_first=self.batch_first).to(self.W.weight.dtype)
        own = (self.W.weight, self.R.weight, self.W.bias, self.R.bias)
        with torch.no_grad():
            for theirs, weight in zip(lstm.parameters(), own, strict=True):
                theirs.copy_(weight)
        return lstm


def step(w, x, s):
    a = x @ w["W.weight"].T + w["W.bias"] + s["h"] @ w["R.weight"].T + w["R.bias"]
    i, f, g, o = a.chunk(4, -1)
    c = torch.sigmoid(f) * s["c"] + torch.sigmoid(i) * torch.tanh(g)
    return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}


def with_gates(w, x, s):
    """The same, its gates named."""
    a = x @ w["W.weight"].T + w["W.bias"] + s["h"] @ w["R.weight"].T + w["R.bias"]
    i, f, g, o = (
        gate(known.name, known.activation.function(part))
        for known, part in zip(LSTM_GATES, a.chunk(4, -1), strict=True)
    )
    c = f * s["c"] + i * g
    return {"h": o * torch.tanh(c), "c": c}


def our_cell(module, w):
    names = ("W.weight", "R.weight", "W.bias", "R.bias")
    return retrograde.cells.LSTM(*(w[name] for name in names))


BY_STEP, BY_CELL = Declaration(step, state=CELL), Declaration(cell=our_cell, state=CELL)
BY_GATES = Declaration(with_gates, state=CELL, gates=LSTM_GATES)


def layer(seed=0, dtype=torch.float64, **how):
    torch.manual_seed(seed)
    return ByHand(**how).to(dtype)


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def recorded(model, run, cells):
    model.zero_grad()
    with retrograde.record(model, cells=cells) as recording:
        run(model).backward()
    return recording.only()


def once(model):
    output, (h, c) = model(drawn(B, T, I) if model.batch_first else drawn(T, B, I))
    return output.square().sum() + h[..., 0].sum() + c[..., 1].square().sum()


def with_a_state(model):
    output, (h, c) = model(drawn(B, T, I), _state(model))
    return output[:, ::3].sum() + c.sum()


def in_two_calls(model):
    _, (h, c) = model(drawn(B, T, I), _state(model))
    output, (h, c) = model(drawn(B, T, I, seed=2), (0.5 * h, c))
    return output.square().sum() + h.sum()


def truncated(model):
    one, (h, c) = model(drawn(B, T, I))
    output, _ = model(drawn(B, T, I, seed=2), (h.detach(), c.detach()))
    return output.square().sum() + one.sum()


def twice(model):
    return sum(model(drawn(B, T, I, seed=seed))[0][:, -1].square().sum() for seed in (1, 2))


def _state(model):
    shape = (1, B, H) if isinstance(model, nn.LSTM) else (B, H)
    return drawn(*shape, seed=3), drawn(*shape, seed=4)


RUNS = {f.__name__: f for f in (once, with_a_state, in_two_calls, truncated, twice)}
NAMES = dict(
    zip(
        ("W.weight", "R.weight", "W.bias", "R.bias"),
        ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),
        strict=True,
    )
)


@pytest.mark.parametrize(
    ("run", "how"), [*((run, "gates") for run in RUNS), ("in_two_calls", "cell")]
)
def test_a_declared_lstm_is_what_torchs_is(run, how):
    model = layer()
    ours = recorded(model, RUNS[run], {ByHand: BY_GATES if how == "gates" else BY_CELL})
    theirs = recorded(model.as_torch(), RUNS[run], None)
    torch.testing.assert_close(ours.x, theirs.x)
    torch.testing.assert_close(ours.initial, theirs.initial)
    torch.testing.assert_close(ours.direct, theirs.direct, rtol=1e-13, atol=1e-14)
    mine, other = retrograde.decompose(ours), retrograde.decompose(theirs)
    assert mine.residual.ok and mine.residual < 1e-14 and mine.reach == other.reach
    assert [n.split(" before ")[0] for n in ours.notes] == [
        n.split(" before ")[0] for n in theirs.notes
    ]
    assert mine.routes == other.routes
    blocks = [
        dict(zip(flow.parameters, flow.by_parameter().share.view(4, 4), strict=True))
        for flow in (mine, other)
    ]
    kinds = ("sliding", "chunks")
    horizons = [[flow.horizon(kind=kind).bias for kind in kinds] for flow in (mine, other)]
    torch.testing.assert_close(*horizons, rtol=1e-9, atol=1e-12)
    for own, name in NAMES.items() if how == "gates" else ((n[:-3], n) for n in NAMES.values()):
        torch.testing.assert_close(blocks[0][own], blocks[1][name], rtol=1e-12, atol=1e-14)
        for ask in ("by_route", "by_crossing") if name == "weight_hh_l0" else ():
            parts = getattr(mine, ask)(own), getattr(other, ask)(name)
            assert parts[0].labels == parts[1].labels
            torch.testing.assert_close(parts[0].share, parts[1].share, rtol=1e-10, atol=1e-13)
        for route in ("recurrent.forget",) if name == "weight_hh_l0" else ():
            cuts = mine.without(route).gradient[own], other.without(route).gradient[name]
            torch.testing.assert_close(*(c.plain() for c in cuts), rtol=1e-10, atol=1e-13)
        shares = mine.by_lag(own).share, other.by_lag(name).share
        torch.testing.assert_close(*shares, rtol=1e-12, atol=1e-13)
        tables = mine.by_time(own).norm, other.by_time(name).norm
        torch.testing.assert_close(*tables, rtol=1e-10, atol=1e-13)
        gradients = ours.gradients[own], theirs.gradients[name]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_training_is_untouched_bit_for_bit():
    def trained(recorded):
        model = layer(dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            if recorded:
                with retrograde.record(model, cells={ByHand: BY_STEP}):
                    model(drawn(B, T, I, dtype=torch.float32))[0].square().sum().backward()
            else:
                model(drawn(B, T, I, dtype=torch.float32))[0].square().sum().backward()
            optimizer.step()
        return [*model.parameters(), *(p.grad for p in model.parameters())]

    assert all(map(torch.equal, trained(True), trained(False)))


def test_time_first_is_read_off_the_module_or_declared():
    model = layer(batch_first=False)
    ours = recorded(model, once, {"": BY_STEP})
    assert ours.x.shape == (T, B, I) and retrograde.decompose(ours).residual.ok
    del model.batch_first
    model.__class__ = type("Other", (ByHand,), {"batch_first": False})
    wrong = Declaration(step, state=CELL, batch_first=True)
    with pytest.raises(RecordingError, match="read as 10 samples of 4 steps.*batch_first="):
        recorded(model, once, {ByHand: wrong})


def test_diagnose_and_the_monitor_see_it():
    model = nn.Sequential(layer(dtype=torch.float32))
    x = drawn(B, 60, I, dtype=torch.float32)

    def loss(model, batch):
        return (model(batch)[0][:, -1] - 1).square().mean()

    report = retrograde.diagnose(
        model, x, loss, cells={"0": BY_CELL}, needs_lag=40, remedies="pass"
    )
    assert report.layers[0].name == "0" and "vanishing" in [f.rule for f in report.findings]
    assert not [name for name in vars(model[0]) if "retrograde" in name]
    monitor = retrograde.Monitor(model, cells={"0": BY_STEP})
    with monitor:
        loss(model, x).backward()
    assert not monitor.problems and monitor.scalars["retrograde/0/reach"] > 0


def test_named_gates_answer_what_rules_ask_of_gates():
    """As the same cell of ours does, whose gates are named."""

    def with_a_gate(w, x, s):
        new = step(w, x, s)
        a = x @ w["W.weight"].T + w["W.bias"] + s["h"] @ w["R.weight"].T + w["R.bias"]
        return new | {"keep": torch.sigmoid(a[:, H : 2 * H])}

    keep = Gate("keep", ACTIVATIONS["sigmoid"], "forget", keeps="c")
    model = layer(dtype=torch.float32)
    with torch.no_grad():
        model.W.bias[H : 2 * H] = -3
    rules = {}
    for name, declared in {
        "named": Declaration(with_a_gate, state=CELL, gates=(keep,), carousel=("c->c", "c->h")),
        "by name": BY_GATES,
        "ours": BY_CELL,
    }.items():
        ours = recorded(
            model,
            lambda m: m(drawn(B, 60, I, dtype=torch.float32))[0][:, -1].sum(),
            {ByHand: declared},
        )
        report = retrograde.diagnose(ours, needs_lag=40)
        rules[name] = {finding.rule for finding in report.findings}
    assert "forget-gate-too-short" in rules["ours"]
    assert rules["named"] >= {"forget-gate-too-short"}
    assert rules["by name"] == rules["ours"]


WRONG = {
    "another gate": lambda w, x, s: {n: torch.tanh(v) for n, v in step(w, x, s).items()},
    "a bias taken away": lambda w, x, s: step({**w, "R.bias": -w["R.bias"]}, x, s),
    "swapped": lambda w, x, s: step(w, x, {"h": s["c"], "c": s["h"]}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_step_that_does_something_else_is_told_where_it_parts(fault):
    first = 1 if fault == "swapped" else 0
    with pytest.raises(RecordingError, match=f"its outputs part at step {first}, most in sample"):
        recorded(layer(), once, {ByHand: Declaration(WRONG[fault], state=CELL)})


REFUSED = {
    "noise": (
        lambda w, x, s: {n: v + 0 * torch.rand(()) for n, v in step(w, x, s).items()},
        "draws random numbers",
    ),
    "no such weight": (lambda w, x, s: w["V"], "step fails on .*'V'"),
    "nothing": (lambda w, x, s: {"h": s["h"], "c": s["c"]}, "does not depend on"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_step_that_cannot_be_used_is_refused(case):
    function, words = REFUSED[case]
    with pytest.raises(RecordingError, match=words):
        recorded(layer(), once, {ByHand: Declaration(function, state=CELL)})


def test_a_declaration_that_matches_nothing_is_told_what_comes_near():
    model = nn.ModuleDict({"encoder": layer()})
    for cells, words in {
        "encodr": "no such module .did you mean 'encoder'",
        type("ByHnd", (), {}): "no module of the model is one .did you mean 'ByHand'",
        "encoder": "got 'encoder': 'x'",
    }.items():
        value = "x" if cells == "encoder" else BY_STEP
        with pytest.raises(ArgumentError, match=words):
            recorded(model, once, {cells: value})


def test_a_state_that_cannot_be_read_is_told_what_was_there():
    class Odd(ByHand):
        def forward(self, x):
            return {"all": super().forward(x)}

    model = Odd().double()
    with pytest.raises(
        RecordingError, match="output cannot be read: it returned .*declare output="
    ):
        recorded(model, lambda m: m(drawn(B, T, I))["all"][0].sum(), {Odd: BY_STEP})
    picked = Declaration(step, state=CELL, output=lambda r: r["all"][0], last=lambda r: r["all"][1])
    ours = recorded(model, lambda m: m(drawn(B, T, I))["all"][0].sum(), {Odd: picked})
    assert retrograde.decompose(ours).residual.ok


class Wrapped(nn.Module):
    """nn.LSTM inside a module of the user's own, of which nothing but the weights is known."""

    def __init__(self, **how):
        super().__init__()
        self.rnn = nn.LSTM(I, H, **how)
        self.batch_first = self.rnn.batch_first

    def forward(self, x, hx=None):
        return self.rnn(x, hx)


def our_cells(module, w):
    suffixes = [name.removeprefix("rnn.weight_ih") for name in w if "weight_ih" in name]
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [retrograde.cells.LSTM(*(w[f"rnn.{n}{suffix}"] for n in names)) for suffix in suffixes]


LAYOUTS = (
    {"bidirectional": True},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", LAYOUTS)
def test_to_the_last_digit_in_every_layout(how, packed):
    torch.manual_seed(0)
    model = Wrapped(**how).double()
    x = drawn(B, T, I) if model.batch_first else drawn(T, B, I)

    def run(module):
        read = x
        if packed:
            lengths = torch.tensor([T, 7, 5, T])
            read = pack_padded_sequence(x, lengths, model.batch_first, enforce_sorted=False)
        output, (h, c) = module(read)
        return (output.data if packed else output).square().sum() + h.sum() + c.square().sum()

    declared = Declaration(
        cell=our_cells, state=CELL, bidirectional=how.get("bidirectional", False)
    )
    ours, theirs = recorded(model, run, {"": declared}), recorded(model.rnn, run, None)
    same = ("x", "inputs", "initial", "direct", "final")
    assert all(torch.equal(getattr(ours, name), getattr(theirs, name)) for name in same)
    mine, other = retrograde.decompose(ours), retrograde.decompose(theirs)
    for name in other.parameters:
        assert torch.equal(mine.by_lag(name).log2, other.by_lag(name).log2)
        assert torch.equal(ours.gradients[name], theirs.gradients[name])
    assert mine.residual == other.residual and mine.residual.ok


class Cell(nn.Module):
    """One step of it."""

    def __init__(self):
        super().__init__()
        self.W, self.R = nn.Linear(I, 4 * H), nn.Linear(H, 4 * H)

    def forward(self, x, state):
        new = step(dict(self.named_parameters()), x, dict(zip(CELL, state, strict=True)))
        return new["h"], new["c"]


class Loop(nn.Module):
    """A loop of the user's own over a cell, with a mask that holds the state of some samples."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        h = c = x.new_zeros(len(x), H)
        for k, x_k in enumerate(x.unbind(1)):
            new, new_c = self.cell(x_k, (h, c))
            mask = ((torch.arange(len(x)) + k) % 3 != 0).to(x).unsqueeze(1)
            h, c = mask * new + (1 - mask) * h, mask * new_c + (1 - mask) * c
        return h


@pytest.mark.parametrize("declared", [Declaration(state=CELL), BY_CELL])
def test_a_loop_over_a_cell_is_as_one_over_torchs(declared):
    model, theirs = Loop(Cell()).double(), Loop(nn.LSTMCell(I, H)).double()
    for to, weight in zip(theirs.parameters(), _of_lstm(model.cell), strict=True):
        to.data.copy_(weight)
    flows = [
        retrograde.decompose(recorded(one, lambda m: m(drawn(B, T, I)).square().sum(), cells))
        for one, cells in ((model, {Cell: declared}), (theirs, None))
    ]
    assert flows[0].residual.ok and flows[0].reach == flows[1].reach
    assert flows[0].recorded.notes == flows[1].recorded.notes
    own = "R.weight" if declared.cell is None else "weight_hh"
    shares = flows[0].by_lag(own).share, flows[1].by_lag("weight_hh").share
    torch.testing.assert_close(*shares, rtol=1e-12, atol=1e-13)


def _of_lstm(module):
    return module.W.weight, module.R.weight, module.W.bias, module.R.bias


class Held(ByHand):
    state = None

    def forward(self, x):
        output, self.state = super().forward(x, self.state)
        return output


class BothSequences(ByHand):
    def forward(self, x):
        state = {"h": x.new_zeros(len(x), H), "c": x.new_zeros(len(x), H)}
        states = []
        for x_k in x.unbind(1):
            state = step(dict(self.named_parameters()), x_k, state)
            states.append(state)
        return tuple(torch.stack([state[piece] for state in states], 1) for piece in CELL)


class LearnedStart(ByHand):
    def __init__(self):
        super().__init__()
        self.h0, self.c0 = nn.Parameter(drawn(1, H)), nn.Parameter(drawn(1, H, seed=2))

    def forward(self, x):
        return super().forward(x, (self.h0.expand(len(x), -1), self.c0.expand(len(x), -1)))


class Ragged(ByHand):
    def forward(self, x, lengths):
        state = {"h": x.new_zeros(len(x), H), "c": x.new_zeros(len(x), H)}
        outputs = []
        for k, x_k in enumerate(x.unbind(1)):
            new, mask = step(dict(self.named_parameters()), x_k, state), (k < lengths).unsqueeze(1)
            state = {piece: torch.where(mask, new[piece], state[piece]) for piece in CELL}
            outputs.append(torch.where(mask, state["h"], 0))
        return torch.stack(outputs, 1), state


def held(model):
    model.state = None
    one, two = model(drawn(B, 6, I)), model(drawn(B, T, I, seed=2))
    return one.square().sum() + two[:, ::2].sum()


def held_and_detached(model):
    model.state = None
    one = model(drawn(B, 6, I))
    model.state = tuple(part.detach() for part in model.state)
    return one.square().sum() + model(drawn(B, T, I, seed=2))[:, ::2].sum()


def both(model):
    h, c = model(drawn(B, T, I))
    return h.square().sum() + c[:, 2:5].sum() + c[:, -1].sum()


def ragged(model, lengths=(T, 7, 3, 9)):
    output, state = model(drawn(B, T, I), torch.tensor(lengths))
    return output.square().sum() + state["h"].sum() + state["c"].square().sum()


STATES = {
    "in an attribute": (Held, held, {"held": "state"}),
    "in an attribute, detached": (Held, held_and_detached, {"held": "state"}),
    "as sequences": (BothSequences, both, {"output": {"h": 0, "c": 1}}),
    "learnt": (LearnedStart, once, {"start": ("h0", "c0")}),
    "a dict, with lengths": (Ragged, ragged, {"lengths": "lengths"}),
    "a sample without a step": (Ragged, lambda m: ragged(m, (0, 7, 0, 9)), {"lengths": "lengths"}),
}


@pytest.mark.parametrize("form", STATES)
def test_a_state_in_any_form(form):
    kind, run, how = STATES[form]
    torch.manual_seed(0)
    model = kind().double()
    ours = recorded(model, run, {kind: Declaration(step, state=CELL, **how)})
    residual = retrograde.decompose(ours).residual
    assert residual.ok and residual < 1e-14
    if form == "learnt":  # told apart from the weights only where it is declared
        with pytest.raises(RecordingError, match="does not depend on 'h0', 'c0'.* start="):
            recorded(model, run, {kind: BY_STEP})


class WithDropout(ByHand):
    def forward(self, x, lengths=None):
        output, (h, c) = super().forward(x)
        return nn.functional.dropout(output, 0.3, self.training), (h, c)


def no_steps(model):
    return ragged(model, (0,) * B)


UNREADABLE = {
    "a dropout": (WithDropout, once, {}, r"drew random numbers .*model.eval\(\)"),
    "no step at all": (Ragged, no_steps, {"lengths": "lengths"}, "lengths of all .* are 0"),
    "lengths of others": (Ragged, ragged, {"lengths": lambda a: [3] * 9}, "each of 4 .* of 9;"),
    "no lengths": (Ragged, ragged, {"lengths": "x"}, "lengths cannot be read: .*shape .4, 10, 3."),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_a_call_says_of_itself_is_checked(case):
    kind, run, how, words = UNREADABLE[case]
    torch.manual_seed(0)
    model = kind().double()
    with pytest.raises(RecordingError, match=words):
        recorded(model, run, {kind: Declaration(step, state=CELL, **how)})
    if case == "a dropout":
        flow = retrograde.decompose(recorded(model.eval(), run, {kind: BY_STEP}))
        assert flow.residual.ok


def test_frozen_weights_are_no_parameters_of_a_declared_cell():
    model = layer()
    model.W.bias.requires_grad_(False)
    flow = retrograde.decompose(recorded(model, once, {"": BY_STEP}))
    assert flow.residual.ok and flow.parameters == ("W.weight", "R.weight", "R.bias")


class QRNNLayer(nn.Module):
    """As torchqrnn, which is on no package index, has it."""

    def __init__(self, window):
        super().__init__()
        self.window, self.output_gate = window, True
        self.linear = nn.Linear(window * I, 3 * H)

    def forward(self, X, hidden=None):  # noqa: N803
        source = X
        if self.window == 2:
            source = torch.cat((X, torch.cat((X[:1] * 0, X[:-1]))), 2)
        z, f, o = self.linear(source).chunk(3, 2)
        z, f = torch.tanh(z), torch.sigmoid(f)
        c = None if hidden is None else hidden[0]
        states = []
        for z_k, f_k in zip(z, f, strict=True):
            c = f_k * z_k + (0 if c is None else (1 - f_k) * c)
            states.append(c)
        states = torch.stack(states)
        return torch.sigmoid(o) * states, states[-1:]


QRNNLayer.__module__ = "torchqrnn.qrnn"


@pytest.mark.parametrize("window", [1, 2])
def test_what_ships_is_found_by_the_name_of_the_class(window):
    """Its output is no part of the state: a readout, with weights of its own."""
    torch.manual_seed(0)
    model = QRNNLayer(window).double()

    def run(model):
        one, c = model(drawn(T, B, I))
        two, c = model(drawn(T, B, I, seed=2), c)
        return one.square().sum() + two.sum() + c.square().sum()

    flow = retrograde.decompose(recorded(model, run, None))
    assert flow.residual.ok and flow.residual < 1e-14 and flow.steps == 2 * T
