"""Recurrences written by hand, declared and recorded where they stand."""

import pytest
import torch
from torch import nn

import retrograde
from retrograde import Declaration
from retrograde.cells import Gate
from retrograde.cells.gates import ACTIVATIONS
from retrograde.errors import ArgumentError, RecordingError

T, B, I, H = 12, 4, 3, 5  # noqa: E741
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


def our_cell(module, w):
    names = ("W.weight", "R.weight", "W.bias", "R.bias")
    return retrograde.cells.LSTM(*(w[name] for name in names))


BY_STEP, BY_CELL = Declaration(step, state=CELL), Declaration(cell=our_cell, state=CELL)


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


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("how", ["step", "cell"])
def test_a_declared_lstm_is_what_torchs_is(run, how):
    model = layer()
    ours = recorded(model, RUNS[run], {ByHand: BY_STEP if how == "step" else BY_CELL})
    theirs = recorded(model.as_torch(), RUNS[run], None)
    torch.testing.assert_close(ours.x, theirs.x)
    torch.testing.assert_close(ours.initial, theirs.initial)
    torch.testing.assert_close(ours.direct, theirs.direct, rtol=1e-13, atol=1e-14)
    mine, other = retrograde.decompose(ours), retrograde.decompose(theirs)
    assert mine.residual.ok and mine.residual < 1e-14 and mine.reach == other.reach
    assert [n.split(" before ")[0] for n in ours.notes] == [
        n.split(" before ")[0] for n in theirs.notes
    ]
    for own, name in NAMES.items() if how == "step" else ((n[:-3], n) for n in NAMES.values()):
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
    with pytest.raises(RecordingError, match="read as 12 samples of 4 steps.*batch_first="):
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

    def with_gates(w, x, s):
        new = step(w, x, s)
        a = x @ w["W.weight"].T + w["W.bias"] + s["h"] @ w["R.weight"].T + w["R.bias"]
        return new | {"keep": torch.sigmoid(a[:, H : 2 * H])}

    keep = Gate("keep", ACTIVATIONS["sigmoid"], "forget", keeps="c")
    model = layer(dtype=torch.float32)
    with torch.no_grad():
        model.W.bias[H : 2 * H] = -3
    rules = {}
    for name, declared in {
        "named": Declaration(with_gates, state=CELL, gates=(keep,), carousel=("c->c", "c->h")),
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
