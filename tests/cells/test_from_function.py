"""A recurrence of the user's own: against the cells written out by hand, `detach`, closed forms."""

import pytest
import torch
from torch import nn

import retrograde
from retrograde.cells import Gate, Stacked, from_function, gate, truncated
from retrograde.cells.forward_mode import jvp
from retrograde.decomposition import by_time as by_time_module
from retrograde.decomposition.by_time import ContributionNorms
from retrograde.engine import Entries, Unrolled, backpropagate, fold, unroll
from retrograde.engine import gradients as gradients_module
from retrograde.errors import ArgumentError
from retrograde.nn.recurrence import run
from support.conformance import EXACT, flow_of, plain_pass
from support.problems import (
    FAMILY,
    GRU_,
    INPUTS,
    LSTM_,
    MGU,
    OWN_SLSTM,
    SLSTM_CAROUSEL,
    TANH,
    B,
    H,
    T,
)
from support.type_checks import unchecked


def lstm(w, x, s):
    a = x @ w["weight_ih"].T + w["bias_ih"] + s["h"] @ w["weight_hh"].T + w["bias_hh"]
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * s["c"] + i.sigmoid() * g.tanh()
    return {"c": c, "h": o.sigmoid() * c.tanh()}  # the order of a mapping does not matter


def elman(w, x, h):
    return torch.tanh(x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])


def own_lstm(weights):
    return from_function(
        lstm, weights, input_size=INPUTS, state={"h": H, "c": H}, carousel=("c->c", "c->h")
    )


def same_flow(ours, theirs):
    """Two passes through the same equations: one cell a function, the other written out by hand."""
    for name in theirs.parameters:
        a, b = ours.by_time(name), theirs.by_time(name)
        torch.testing.assert_close(a.norm, b.norm, **EXACT)
        torch.testing.assert_close(a.share, b.share, **EXACT)
        for bins in ("octaves", "every"):
            a, b = ours.by_lag(name, bins), theirs.by_lag(name, bins)
            torch.testing.assert_close(a.parts(), b.parts(), **EXACT)
    torch.testing.assert_close(ours.adjoints.log2, theirs.adjoints.log2, **EXACT)
    assert ours.reach == theirs.reach
    assert ours.half_life == pytest.approx(theirs.half_life, rel=1e-9)
    assert ours.residual < 1e-12


def test_an_lstm_as_a_function_flows_as_the_lstm():
    hand = LSTM_()
    plain = plain_pass(hand)
    ours, theirs = flow_of(own_lstm(hand.parameters), plain), flow_of(hand, plain)
    same_flow(ours, theirs)
    assert ours.routes == ("h->h", "h->c", "c->h", "c->c")
    for name in theirs.parameters:
        a, b = ours.by_route(name, "every"), theirs.by_route(name, "every")
        a, b = (
            dict(zip(a.labels, a.parts(), strict=True)),
            dict(zip(b.labels, b.parts(), strict=True)),
        )
        recurrent = sum(part for way, part in b.items() if way.startswith("recurrent."))
        torch.testing.assert_close(a["direct"], b["direct"], **EXACT)
        torch.testing.assert_close(a["c->c"] + a["c->h"], b["carousel"], **EXACT)
        torch.testing.assert_close(a["h->c"] + a["h->h"], recurrent, **EXACT)
        a, b = (flow.by_crossing(name, max_crossings=2) for flow in (ours, theirs))
        torch.testing.assert_close(a.parts(), b.parts(), **EXACT)
        cut = ours.without("h->c", "h->h").by_lag(name).parts()
        left = theirs.without(*hand.recurrent_routes).by_lag(name).parts()
        torch.testing.assert_close(cut, left, **EXACT)


def named_lstm(w, x, s):
    a = x @ w["weight_ih"].T + w["bias_ih"] + s["h"] @ w["weight_hh"].T + w["bias_hh"]
    i, f, g, o = a.chunk(4, -1)
    p = w.get("weight_ch", a.new_zeros(3 * H)).chunk(3)
    i, f = ((a + q * s["c"]).sigmoid() for a, q in zip((i, f), p, strict=False))
    c = gate("forget", f) * s["c"] + gate("input", i) * gate("cell", g.tanh())
    o = gate("output", (o + p[2] * c).sigmoid())
    return {"h": o * c.tanh(), "c": c}


def named_gru(w, x, h):
    a = x @ w["weight_ih"].T + w["bias_ih"]
    b = h @ w["weight_hh"].T + w["bias_hh"]
    (r, z, n), (s, y, q) = a.chunk(3, -1), b.chunk(3, -1)
    r, z = gate("reset", (r + s).sigmoid()), gate("update", (z + y).sigmoid())
    n = gate("candidate", (n + r * q).tanh())  # reads the reset gate, whose route is its own
    return (1 - z) * n + z * h


NAMED_GATES = {
    "lstm": (named_lstm, LSTM_, {"h": H, "c": H}),
    "peephole lstm": (named_lstm, FAMILY["lstm-2002"], {"h": H, "c": H}),
    "gru": (named_gru, GRU_, H),
}


@pytest.mark.parametrize("kind", NAMED_GATES)
def test_gates_that_the_step_names_have_the_routes_of_the_cell_written_out_by_hand(kind):
    step, make, state = NAMED_GATES[kind]
    hand = make()
    own = from_function(step, hand.parameters, input_size=INPUTS, state=state, gates=hand.gates)
    leak = ("peephole.output",) if "peephole" in kind else ()  # for ours inside the carousel
    assert {*own.routes} == {*hand.routes, *leak}
    assert {*own.recurrent_routes} == {*hand.recurrent_routes}
    assert {gate.name: gate for gate in own.gates} == {gate.name: gate for gate in hand.gates}
    for name in hand.parameters:
        assert own.gates_of(name) == hand.gates_of(name)
    plain = plain_pass(hand)
    ours, theirs = flow_of(own, plain), flow_of(hand, plain)
    for name in theirs.parameters:
        a, b = (
            dict(zip(flow.by_route(name, "every").labels, flow.by_route(name).parts(), strict=True))
            for flow in (ours, theirs)
        )
        a["carousel"] = a["carousel"] + sum(a.pop(route) for route in leak)
        assert a.keys() == b.keys()
        for route, part in a.items():
            torch.testing.assert_close(part, b[route], **EXACT)
        a, b = (flow.by_crossing(name, max_crossings=2) for flow in (ours, theirs))
        torch.testing.assert_close(a.parts(), b.parts(), **EXACT)
    for route in theirs.routes:
        cut = ours.without(route, *(leak if route == "carousel" else ()))
        left = theirs.without(route)
        for name in theirs.parameters:
            one, other = cut.by_lag(name).parts(), left.by_lag(name).parts()
            torch.testing.assert_close(one, other, **EXACT)
    values = ours.unrolled.steps(0, 3).activations
    for name, value in theirs.unrolled.steps(0, 3).activations.items():
        if name in values:
            torch.testing.assert_close(values[name], value, **EXACT)
    changes = torch.randn(2, 2, own.state_size, dtype=torch.float64)
    one, other = (
        jvp(cell.linearise(cell.step(changes[0][:, :1].expand(2, INPUTS), changes[1])), changes)
        for cell in (own, hand)
    )
    torch.testing.assert_close(one, other, **EXACT)


def test_an_elman_network_as_a_function_has_the_routes_of_the_cell():
    hand = TANH()
    plain = plain_pass(hand)
    own = from_function(elman, hand.parameters, input_size=INPUTS, state=H)
    ours, theirs = flow_of(own, plain), flow_of(hand, plain)
    same_flow(ours, theirs)
    assert ours.routes == theirs.routes == ("recurrent",)
    for name in theirs.parameters:
        a, b = ours.by_route(name).parts(), theirs.by_route(name).parts()
        torch.testing.assert_close(a, b, **EXACT)
        a, b = (flow.by_crossing(name, max_crossings=2) for flow in (ours, theirs))
        torch.testing.assert_close(a.parts(), b.parts(), **EXACT)
        a, b = (flow.without("recurrent").gradient[name].plain() for flow in (ours, theirs))
        torch.testing.assert_close(a, b, **EXACT)


def test_a_module_of_torch_is_a_step():
    module = nn.GRUCell(INPUTS, H).double()
    module.load_state_dict(dict(GRU_().parameters))

    def step(w, x, h):
        return torch.func.functional_call(module, w, (x, h))

    own = from_function(step, dict(module.named_parameters()), input_size=INPUTS, state=H)
    plain = plain_pass(GRU_())
    same_flow(flow_of(own, plain), flow_of(GRU_(), plain))
    assert module.weight_ih.grad is None


def detached_step(cell, cut):
    """The step in which piece p of the old state is detached for piece q, if p->q is cut.

    Written with `detach` and one run of the function for each piece.
    """

    def step(weights, x, state):
        pieces = {piece: state[:, slot] for piece, slot in cell.slots.items()}
        new = []
        for to in cell.pieces:
            seen = {p: v.detach() if f"{p}->{to}" in cut else v for p, v in pieces.items()}
            new.append(cell.function(weights, x, seen)[to])
        return torch.cat(new, -1)

    return step


@pytest.mark.parametrize(
    "cut",
    [("c->c",), ("c->h",), ("h->c",), ("m->h", "n->c"), ("h->h", "h->c", "h->n", "h->m")],
    ids=str,
)
def test_cutting_a_route_equals_detaching_it_in_a_plain_loop(cut):
    cell = OWN_SLSTM()
    plain = plain_pass(cell)
    step = detached_step(cell, cut)
    weights = {n: w.clone().requires_grad_() for n, w in cell.parameters.items()}
    state, value = plain.states[0].detach(), 0
    for k in range(T):
        state = step(weights, plain.x[k].detach(), state)
        torch.testing.assert_close(state, plain.states[k + 1], **EXACT)
        value = value + (plain.direct[k] * state).sum()
    expected = torch.autograd.grad(value, list(weights.values()))
    flow = flow_of(cell, plain)
    left = flow.without(*cut)
    for name, grad in zip(weights, expected, strict=True):
        torch.testing.assert_close(left.by_lag(name).parts().sum(0), grad, **EXACT)
        split = left.by_route(name)
        assert split.labels == ("direct", *(route for route in cell.routes if route not in cut))
        torch.testing.assert_close(split.parts().sum((0, 1)), grad, **EXACT)
    assert left.residual < 1e-12
    assert not torch.allclose(left.gradient["W"].plain(), flow.gradient["W"].plain())


def test_truncated_keeps_the_carousel():
    cell = OWN_SLSTM()
    assert cell.recurrent_routes == ("h->h", "h->c", "h->n", "h->m")
    assert truncated(cell).routes == SLSTM_CAROUSEL
    flow = flow_of(cell, plain_pass(cell))
    for name in flow.parameters:
        carousel = flow.by_crossing(name).parts()[0]
        cut = flow.without(*cell.recurrent_routes).by_lag(name).parts()
        torch.testing.assert_close(carousel, cut, **EXACT)


def test_the_stabiliser_of_an_slstm_is_a_change_of_units():
    """c and n are kept in units of exp(m), so that dL/dm = c dL/dc + n dL/dn at every step."""
    cell = OWN_SLSTM()
    plain = plain_pass(cell)
    plain.direct[:, :, H:] = 0  # the loss sees h alone
    unrolled = unroll(cell, torch.stack(plain.x).detach(), plain.states[0].detach())
    entries = Entries.of(plain.direct)
    seen = 0.0
    for step in backpropagate(unrolled, entries):
        by_h, by_c, by_n, by_m = step.delta.plain().chunk(4, -1)
        _, c, n, _ = unrolled.states[step.k + 1].chunk(4, -1)
        torch.testing.assert_close(by_m, c * by_c + n * by_n, **EXACT)
        seen += float(by_m.abs().sum())
    assert seen > 1


def test_a_min_gru_is_nothing_but_a_carousel():
    """Feng et al. (2024), arXiv 2410.01201: z and h~ read x alone, so that J = diag(1 - z)."""

    def min_gru(w, x, s):
        z = torch.sigmoid(x @ w["W_z"].T)
        return {"h": (1 - z) * s["h"] + z * (x @ w["W_h"].T)}

    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(H, INPUTS, generator=generator, dtype=torch.float64)
        for name in ("W_z", "W_h")
    }
    cell = from_function(min_gru, weights, input_size=INPUTS, state={"h": H}, carousel=("h->h",))
    x = torch.randn(T, B, INPUTS, generator=generator, dtype=torch.float64)
    flow = retrograde.decompose(retrograde.record_cell(cell, x, lambda h, s: h[-1].sum()))
    assert flow.residual < 1e-12
    keeps = 1 - torch.sigmoid(x @ weights["W_z"].T)
    products = torch.stack([keeps[k + 1 :].prod(0) for k in range(T)])
    torch.testing.assert_close(
        torch.exp2(flow.adjoints.log2[0]), products.flatten(1).norm(dim=1), **EXACT
    )
    split = flow.by_crossing(max_crossings=2)
    assert not bool(split.parts()[1:].any())


@pytest.mark.parametrize("log2", [-8, 8])
def test_powers_far_beyond_the_range(log2):
    """A scalar linear recurrence in float32: adjoint and gradient are w^lag, up to 2^3200."""
    weights = {"w": torch.tensor(2.0**log2), "v": torch.ones(1, 1)}
    cell = from_function(lambda p, x, h: p["w"] * h + x @ p["v"], weights, input_size=1, state=1)
    steps = 401
    x, output = torch.zeros(2, steps, 1, 1)
    x[0] = output[-1] = 1
    # The states that 2^8 leads to overflow; a linear adjoint does not see them.
    unrolled = Unrolled(cell, x, torch.zeros(steps + 1, 1, 1))
    entries = Entries.of(output)
    norms = ContributionNorms(entries, steps, weights)
    with unchecked():
        for step in backpropagate(unrolled, entries):
            adjoint = float(torch.log2(step.norms)) + int(step.delta.exponent)
            assert adjoint == log2 * (steps - 1 - step.k)
        fold(unrolled, entries, [norms])
    assert float(norms.result()["v"][0, 0]) == log2 * (steps - 1)


def test_gradients_formed_a_few_rows_at_a_time_are_the_same(monkeypatch):
    cell = Stacked((MGU(), LSTM_(inputs=H)))
    plain = plain_pass(cell)
    whole = flow_of(cell, plain)
    whole.by_route()
    monkeypatch.setattr(by_time_module, "FORMED", 2 * 6 * H * H)
    monkeypatch.setattr(gradients_module, "SUMMED", 100)
    few = flow_of(cell, plain)
    for name in whole.parameters:
        torch.testing.assert_close(few.by_time(name).norm, whole.by_time(name).norm, **EXACT)
        torch.testing.assert_close(few.by_time(name).share, whole.by_time(name).share, **EXACT)
        for a, b in ((few.by_lag, whole.by_lag), (few.by_route, whole.by_route)):
            torch.testing.assert_close(a(name).parts(), b(name).parts(), **EXACT)


def test_blocks_of_rows_leave_the_sums_exact():
    cell = OWN_SLSTM()
    plain = plain_pass(cell, steps=9)
    flow = flow_of(cell, plain, max_rows=2)
    assert flow.entries.resolution == 5
    assert flow.residual < 1e-12
    for split in (flow.by_route(), flow.by_crossing(max_crossings=2)):
        torch.testing.assert_close(split.parts().sum(0), flow.by_lag().parts(), **EXACT)


def test_it_runs_as_one_differentiable_function():
    """What trains a module of retrograde.nn: all steps of a chunk as samples of one."""
    hand = LSTM_()
    x, initial = torch.ones(T, B, INPUTS).double(), torch.ones(B, 2 * H).double()
    gradients = []
    for cell in (own_lstm(hand.parameters), hand):
        leaves = [x.clone().requires_grad_(), initial.clone().requires_grad_()]
        weights = {n: w.clone().requires_grad_() for n, w in hand.parameters.items()}
        loss = run(cell.with_parameters(weights), *leaves).square().sum()
        gradients.append(torch.autograd.grad(loss, [*leaves, *weights.values()]))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_recursion_asks_for_nothing_but_the_state():
    """One run of the step for each chunk and one for each pull-back; parameters cost nothing."""
    calls = []
    hand = TANH()

    def step(w, x, h):
        calls.append(len(x))
        return elman(w, x, h)

    cell = from_function(step, hand.parameters, input_size=INPUTS, state=H)
    unrolled = unroll(cell, torch.ones(T, B, INPUTS).double())
    output = torch.ones(T, B, H).double()
    calls.clear()
    for _ in backpropagate(unrolled, Entries.of(output)):
        pass
    assert calls == [T * B] + [B] * (T - 1)


def test_float32_and_no_trace():
    torch.manual_seed(3)
    module = nn.LSTMCell(3, 5)

    def step(w, x, s):
        h, c = torch.func.functional_call(module, w, (x, (s["h"], s["c"])))
        return {"h": h, "c": c}

    before = torch.get_rng_state()
    cell = from_function(
        step, dict(module.named_parameters()), input_size=3, state={"h": 5, "c": 5}
    )
    assert torch.equal(before, torch.get_rng_state())
    recorded = retrograde.record_cell(cell, torch.randn(40, 2, 3), lambda h, s: h.square().mean())
    flow = retrograde.decompose(recorded)
    assert flow.residual < 1e-5
    torch.testing.assert_close(flow.by_crossing().parts().sum(0), flow.by_lag().parts())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_state_of_any_memory_layout_is_taken():
    def step(w, x, h):
        return (w["w"] @ h.T + x.T[:1]).T

    weights = {"w": torch.full((3, 3), 0.2).double()}
    cell = from_function(step, weights, input_size=2, state=3)
    x = torch.ones(T, B, 2).double()
    flow = retrograde.decompose(retrograde.record_cell(cell, x, lambda h, s: h.square().sum()))
    assert flow.residual < 1e-12


def test_the_output_is_h_or_the_first_piece_or_the_one_that_is_named():
    def step(w, x, s):
        return {name: w["w"] * value for name, value in s.items()}

    def output_of(state, **options):
        cell = from_function(step, {"w": torch.ones(())}, input_size=1, state=state, **options)
        return cell.output

    assert output_of({"c": 2, "h": 3}) == slice(2, 5)
    assert output_of({"slow": 2, "fast": 3}) == slice(0, 2)
    assert output_of({"c": 2, "h": 3}, output="c") == slice(0, 2)


class Hard(torch.autograd.Function):
    """Without setup_context, as torch's first examples have it: torch.func cannot take it."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, grad):
        return grad


W = {"w": torch.full((2, 2), 0.5)}
NAMED = {"state": {"h": 2, "c": 2}}


def in_place(w, x, h):
    h *= 0.5
    return h @ w["w"]


def in_place_piece(w, x, s):
    s["c"].add_(1)
    return dict(s)


def in_place_weight(w, x, h):
    w["w"].mul_(1)
    return h


@pytest.mark.parametrize(
    ("step", "options", "sentence"),
    [
        (lambda w, x, h: h[:, :1], {}, r"the state of shape \(2, 2\) .*; got shape \(2, 1\)"),
        (lambda w, x, h: h.double(), {}, r"in torch.float32; got .* in torch.float64"),
        (lambda w, x, h: (h, h), {}, "the state as a tensor of shape .*; got tuple"),
        (lambda w, x, h: None, {}, "got NoneType"),
        (lambda w, x, h: h @ torch.ones(3, 2), {}, r"step fails on x of shape \(2, 3\) .*shapes"),
        (lambda w, x: x, {}, r"step must be a function \(parameters, x, state\) .* takes \(w, x\)"),
        (lambda w, x, s: s["h"], NAMED, "a mapping with the pieces h, c; got Tensor"),
        (lambda w, x, s: {"h": s["h"]}, NAMED, "with the pieces h, c; got pieces h"),
        (lambda w, x, s: {**s, "n": s["h"]}, NAMED, "the pieces h, c; got pieces h, c, n"),
        (lambda w, x, s: {"h": s["h"], "c": x}, NAMED, r"piece 'c' of shape \(2, 2\)"),
        (lambda w, x, s: {"h": s["h"], "c": 0.0}, NAMED, "piece 'c' as a tensor .*; got float"),
        (lambda w, x, s: {"h": s["g"], "c": s["c"]}, NAMED, "KeyError: 'g'"),
        (in_place, {}, "changes the state in place, .* write h = h \\* f"),
        (in_place_piece, NAMED, "changes the state in place"),
        (in_place_weight, {}, "changes 'w' in place"),
        (lambda w, x, h: x.mul_(2)[:, :2] + h, {}, "changes x in place"),
        (lambda w, x, h: h * torch.rand(2), {}, "draws random numbers.*as features of x"),
        (lambda w, x, h: nn.functional.dropout(h, 0.5), {}, "draws random numbers"),
        (lambda w, x, h: h - h.mean(0), {}, "samples of a batch depend on each other"),
        (lambda w, x, h: h + x.sum() * w["w"][0], {}, "samples of a batch depend on each other"),
        (lambda w, x, h: h * torch.arange(len(x))[:, None], {}, "depends on a sample's position"),
        (lambda w, x, h: h / len(x), {}, "on the batch size"),
        (lambda w, x, h: h * torch.ones(2, 1), {}, "fails on three"),
        (lambda w, x, h: Hard.apply(h), {}, "cannot differentiate .*setup_context"),
        (lambda w, x, h: torch.from_numpy(h.numpy()), {}, "cannot differentiate step"),
        (lambda w, x, h: gate("g", h) + gate("g", h), {}, "names gate 'g' twice"),
        (
            lambda w, x, h: h + gate("g", h).sum() * 0 + gate("f", h[0]),
            {},
            "gate 'f' must have a row",
        ),
        (lambda w, x, h: gate("", h), {}, "gate needs a name"),
        (lambda w, x, s: {**s, "h": gate("c", s["h"])}, NAMED, "is called like a piece"),
        (lambda w, x, h: h, {"gates": (Gate("f", None),)}, "does not name the gates f: write gate"),
        (lambda w, x, h: gate("g", h), {"carousel": ("h->h",)}, "no route 'h->h'; .* peephole.g"),
        (lambda w, x, h: h, {"output": "c"}, "output must name .* one of h; got 'c'"),
        (lambda w, x, s: s, {**NAMED, "output": "n"}, "one of h, c; got 'n'"),
        (lambda w, x, h: h, {"carousel": ("h->h",)}, "no route 'h->h'; .* are recurrent"),
        (
            lambda w, x, s: s,
            {**NAMED, "carousel": ("c->c", "c->n")},
            "no route 'c->n'; the routes of this state are h->h, h->c, c->h, c->c",
        ),
        (lambda w, x, s: s, {**NAMED, "carousel": "c->c"}, r"write \('c->c',\)"),
        (lambda w, x, h: h, {"state": 0}, "state must be a positive integer, or .*; got 0"),
        (lambda w, x, h: h, {"state": {}}, "state must be .*; got {}"),
        (
            lambda w, x, h: h,
            {"state": {"h": -1}},
            "size of 'h' in state must be .*; got -1",
        ),
        (lambda w, x, h: h, {"input_size": 0}, "input_size must be a positive integer; got 0"),
        (3, {}, r"step must be a function \(parameters, x, state\) -> state; got 3"),
    ],
)
def test_what_is_no_step_is_refused(step, options, sentence):
    with unchecked(), pytest.raises(ArgumentError, match=sentence):
        from_function(step, W, **{"input_size": 3, "state": 2, **options})


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ([torch.ones(2)], "must be a mapping .*; got list"),
        (nn.Linear(2, 2), "must be a mapping .*; got Linear"),
        ({}, "parameters is empty"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "'w' is torch.int64: convert"),
        ({"w": torch.ones(2), "n": 3}, "'n' is int"),
        ({"w": torch.ones(2), "v": torch.ones(2).double()}, "'w' is .*32, 'v' is torch.float64"),
        ({"w": torch.ones(2).half()}, "'w' is torch.float16"),
    ],
)
def test_what_are_no_parameters_is_refused(parameters, sentence):
    with unchecked(), pytest.raises(ArgumentError, match=sentence):
        from_function(lambda w, x, h: h, parameters, input_size=3, state=2)


def test_a_refused_step_leaves_the_random_state():
    before = torch.get_rng_state()
    with pytest.raises(ArgumentError, match="draws random numbers"):
        from_function(lambda w, x, h: h * torch.rand(2), W, input_size=3, state=2)
    assert torch.equal(before, torch.get_rng_state())
