"""Clipping inside back-propagation, against autograd on plain loops with hooks on their tensors."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import retrograde
from retrograde.cells import SideBySide, Stacked, clipped
from retrograde.cells.generations import TABLE
from retrograde.clipping import (
    AbstractInside,
    Clipper,
    GlobalNorm,
    HDetach,
    PreActivationValue,
    StateNorm,
    chain,
)
from retrograde.errors import ArgumentError
from retrograde.nn import clip_inside
from retrograde.nn.recurrence import run
from support.papers import by_gate, reference_step
from support.problems import FAMILY, GRU2014_, GRU_, INPUTS, LEAKY, RELU, TANH, B, H, T, projected

pytestmark = pytest.mark.usefixtures("unchecked")

STEPS = 4
EXACT = {"atol": 1e-12, "rtol": 1e-10}  # float64, sums in another order


def drawn(*shape, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# Plain steps, (cell, x, s, h, met) -> s: `h` is what goes through recurrent weights (detached or
# not), `met` is handed every pre-activation and returns what is to be used.


def plain_elman(cell, x, s, h, met):
    bias = cell.bias_ih + cell.bias_hh
    return getattr(torch, cell.activation)(met(x @ cell.weight_ih.T + h @ cell.weight_hh.T + bias))


def plain_lstm(cell, x, s, h, met):
    c = s[:, H : 2 * H]
    return reference_step(cell.generation, by_gate(cell), x, h[:, :H], c, h[:, 2 * H :], met)


def plain_projected(cell, x, s, h, met):
    outputs = cell.weight_hr.shape[0]
    a = met(x @ cell.weight_ih.T + h[:, :outputs] @ cell.weight_hh.T + cell.bias_ih + cell.bias_hh)
    i, f, g, o = a.chunk(4, -1)
    c = f.sigmoid() * s[:, outputs:] + i.sigmoid() * g.tanh()
    return torch.cat(((o.sigmoid() * c.tanh()) @ cell.weight_hr.T, c), -1)


def plain_gru(cell, x, s, h, met):
    x_r, x_z, x_n = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, -1)
    h_r, h_z, q = (h @ cell.weight_hh.T + cell.bias_hh).chunk(3, -1)
    r, z = met(x_r + h_r).sigmoid(), met(x_z + h_z).sigmoid()
    return (1 - z) * met(x_n + r * q).tanh() + z * s


def plain_gru_2014(cell, x, s, h, met):
    x_r, x_z, x_n = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, -1)
    (R_r, R_z, R_n), (b_r, b_z, b_n) = cell.weight_hh.chunk(3), cell.bias_hh.chunk(3)
    r = met(x_r + h @ R_r.T + b_r).sigmoid()
    z = met(x_z + h @ R_z.T + b_z).sigmoid()
    return (1 - z) * met(x_n + (r * h) @ R_n.T + b_n).tanh() + z * s


PLAIN = {
    "elman-tanh": (TANH, plain_elman),
    "elman-relu": (RELU, plain_elman),
    "gru": (GRU_, plain_gru),
    "gru-2014": (GRU2014_, plain_gru_2014),
    "projected": (projected, plain_projected),
    **{row.name: (FAMILY[row.name], plain_lstm) for row in TABLE},
}


def clamp(limit):
    def met(a):
        a.register_hook(lambda grad: grad.clamp(-limit, limit))
        return a

    return met


def held(limit):
    def hook(grad):
        norm = grad.norm(dim=-1, keepdim=True)
        return torch.where(norm > limit, grad * limit / norm, grad)

    return hook


def by_hooks(cell, plain, x, initial, direct, *, value=None, norm=None, detached=()):
    """The gradients of <direct, states> of x, the initial state and the weights, with hooks."""
    weights = {name: w.clone().requires_grad_() for name, w in cell.parameters.items()}
    x, initial = x.clone().requires_grad_(), initial.clone().requires_grad_()
    with_weights = cell.with_parameters(weights)
    met = clamp(value) if value else lambda a: a
    s, loss = initial, 0
    for k in range(len(x)):
        s = plain(with_weights, x[k], s, s.detach() if k in detached else s, met)
        if norm:
            s.register_hook(held(norm))
        loss = loss + (direct[k] * s).sum()
    return torch.autograd.grad(loss, [x, initial, *weights.values()], allow_unused=True)


def by_package(cell, policy, x, initial, direct):
    weights = {name: w.clone().requires_grad_() for name, w in cell.parameters.items()}
    x, initial = x.clone().requires_grad_(), initial.clone().requires_grad_()
    states = run(clipped(cell.with_parameters(weights), policy), x, initial)
    return torch.autograd.grad((states * direct).sum(), [x, initial, *weights.values()])


def problem(name, steps=T):
    make, plain = PLAIN[name]
    cell = make()
    shape = (B, cell.state_size)
    return cell, plain, drawn(steps, B, INPUTS), drawn(*shape, seed=6), drawn(steps, *shape, seed=7)


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        other = torch.zeros_like(mine) if other is None else other
        torch.testing.assert_close(mine, other, **EXACT)


@pytest.mark.parametrize("name", PLAIN)
def test_pre_activations_are_clipped_as_hooks_on_them_would(name):
    cell, plain, x, initial, direct = problem(name)
    for value in (0.02, 0.3):
        ours = by_package(cell, PreActivationValue(value), x, initial, direct)
        assert_same(ours, by_hooks(cell, plain, x, initial, direct, value=value))
    free = by_hooks(cell, plain, x, initial, direct)
    assert not torch.allclose(ours[2], free[2], rtol=1e-3)  # it clipped


@pytest.mark.parametrize("name", PLAIN)
def test_the_state_is_held_as_a_hook_on_it_would(name):
    cell, plain, x, initial, direct = problem(name)
    for norm in (0.5, 2.0):
        ours = by_package(cell, StateNorm(norm), x, initial, direct)
        assert_same(ours, by_hooks(cell, plain, x, initial, direct, norm=norm))


@pytest.mark.parametrize("name", PLAIN)
def test_h_is_detached_where_it_was_drawn(name):
    steps = 9
    cell, plain, x, initial, direct = problem(name, steps)
    torch.manual_seed(3)
    free = [float(torch.rand(())) >= 0.4 for _ in range(steps)]  # drawn from the last step back
    detached = [k for k, kept in zip(reversed(range(steps)), free, strict=True) if not kept]
    assert 0 < len(detached) < steps
    torch.manual_seed(3)
    ours = by_package(cell, HDetach(0.4), x, initial, direct)
    assert_same(ours, by_hooks(cell, plain, x, initial, direct, detached=detached))


def test_policies_in_a_chain_act_one_after_the_other():
    cell, plain, x, initial, direct = problem("lstm-2002")
    ours = by_package(cell, chain(StateNorm(0.7), PreActivationValue(0.1)), x, initial, direct)
    assert_same(ours, by_hooks(cell, plain, x, initial, direct, value=0.1, norm=0.7))
    twice = chain(PreActivationValue(0.3), PreActivationValue(0.1), HDetach(1.0))
    ours = by_package(cell, twice, x, initial, direct)
    assert_same(ours, by_hooks(cell, plain, x, initial, direct, value=0.1, detached=range(T)))


def test_detaching_always_is_the_truncated_backward_pass_of_1997():
    torch.manual_seed(0)
    lstm = retrograde.nn.LSTM(INPUTS, H, dtype=torch.float64)
    truncated = retrograde.nn.LSTM(INPUTS, H, truncated=True, dtype=torch.float64)
    truncated.load_state_dict(lstm.state_dict())
    clip_inside(lstm, HDetach(1.0))
    for module in (lstm, truncated):
        module(drawn(T, B, INPUTS))[0].square().sum().backward()
    for ours, theirs in zip(lstm.parameters(), truncated.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **EXACT)


def test_detaching_now_and_then_is_truncation_by_degrees_on_average():
    """E prod(A + xi B) = prod(A + (1 - p) B), as Arpit et al. (2019) have it."""
    cell, plain, x, initial, direct = problem("elman-tanh", 4)
    torch.manual_seed(0)
    drawn_ = [by_package(cell, HDetach(0.5), x, initial, direct)[1] for _ in range(200)]

    states = [initial]
    for k in range(4):
        states.append(plain(cell, x[k], states[-1], states[-1], lambda a: a))
    delta = torch.zeros_like(initial)
    for k in reversed(range(4)):
        total = delta + direct[k]
        before = states[k].detach().requires_grad_()
        after = plain(cell, x[k], before, before, lambda a: a)
        delta = 0.5 * torch.autograd.grad(after, before, total)[0]
    mean = torch.stack(drawn_).mean(0)
    spread = torch.stack(drawn_).std(0) / math.sqrt(len(drawn_))
    assert ((mean - delta).abs() < 5 * spread).all()
    assert not torch.allclose(drawn_[0], drawn_[1])


class Everything(AbstractInside):
    """Acts at all places at once, below any threshold."""

    def on_state(self, delta):
        return torch.ones_like(delta[:, :1])

    def on_pre_activation(self, da):
        return torch.ones_like(da)

    def on_recurrent(self, like):
        return torch.ones_like(like[:, :1])


@given(
    st.sampled_from([PreActivationValue, StateNorm]),
    st.floats(1e-6, 1e6),
    st.floats(1e-3, 1e3),
    st.integers(0, 10),
)
def test_what_factors_do(kind, scale, threshold, seed):
    adjoint = scale * drawn(B, H, seed=seed)
    adjoint[0] = 0
    policy = kind(threshold)
    factor = policy.on_pre_activation(adjoint)
    size = adjoint.abs()
    if kind is StateNorm:
        factor, size = policy.on_state(adjoint), adjoint.norm(dim=-1, keepdim=True)
    above = size > threshold
    assert (factor[~above] == 1).all()  # nothing changes below the threshold
    torch.testing.assert_close((size * factor)[above], torch.full_like(size[above], threshold))
    after = adjoint * factor
    again = policy.on_state(after) if kind is StateNorm else policy.on_pre_activation(after)
    torch.testing.assert_close(again, torch.ones_like(again))  # idempotent, to rounding
    assert (adjoint.sign() == after.sign()).all()


@pytest.mark.parametrize("policy", [Everything(), PreActivationValue(1e9), StateNorm(1e9)])
def test_nothing_changes_where_nothing_bites(policy):
    for name in PLAIN:
        cell, _, x, initial, direct = problem(name)
        ours = by_package(cell, policy, x, initial, direct)
        free = by_package(cell, AbstractInside(), x, initial, direct)
        for clipped_, plain in zip(ours, free, strict=True):
            assert torch.equal(clipped_, plain)


def test_parts_can_turn_against_their_sum():
    """10, -9.5 and -0.4 sum to 0.1, and clipped at 1 to -0.4."""
    rnn = retrograde.nn.RNN(1, 1, nonlinearity="identity", bias=False, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(1.0)
        rnn.weight_hh_l0.zero_()
    weights = torch.tensor([10.0, -9.5, -0.4], dtype=torch.float64).view(3, 1, 1)
    signs = []
    for limit in (math.inf, 1.0):
        rnn.zero_grad()
        inside = clip_inside(rnn, PreActivationValue(limit))
        (rnn(torch.ones(3, 1, 1, dtype=torch.float64))[0] * weights).sum().backward()
        signs.append(float(rnn.weight_ih_l0.grad))
        inside.remove()
    assert signs == pytest.approx([0.1, -0.4])


# What is recorded of a clipped layer


def layers():
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    yield "lstm", nn.LSTM(INPUTS, H, **double)
    yield "gru, 2 layers", nn.GRU(INPUTS, H, 2, **double)
    yield "rnn, batch first", nn.RNN(INPUTS, H, batch_first=True, **double)
    yield "projected", nn.LSTM(INPUTS, H, proj_size=3, **double)
    yield "2 layers both ways", nn.LSTM(INPUTS, H, 2, bidirectional=True, **double)
    yield "no bias", nn.GRU(INPUTS, H, bias=False, **double)
    yield "dropout", nn.LSTM(INPUTS, H, 2, dropout=0.4, **double)
    for name in ("lstm-2002", "lstm-1997", "fgr"):
        yield name, retrograde.nn.LSTM(INPUTS, H, 2, generation=name, **double)
    yield "gru-2014", retrograde.nn.GRU(INPUTS, H, generation="gru-2014", **double)


@pytest.mark.parametrize("policy", [PreActivationValue(0.05), StateNorm(1.2)], ids=repr)
@pytest.mark.parametrize(("name", "layer"), list(layers()), ids=lambda value: str(value)[:20])
def test_decompositions_of_a_clipped_gradient_are_exact(name, layer, policy):
    clipping = clip_inside(layer, policy)
    with retrograde.record(layer) as recording:
        output, _ = layer(
            drawn(B, STEPS, INPUTS) if name.endswith("first") else drawn(STEPS, B, INPUTS)
        )
        (output * drawn(*output.shape, seed=2)).sum().backward()
    assert all(rate > 0 for rate in clipping.clip_rate.values())
    flow = retrograde.decompose(recording)
    assert flow.residual < 1e-12
    for parameter in flow.parameters:
        gradient = recording.only().gradients[parameter]
        whole = flow.by_lag(parameter).parts().sum(0)
        torch.testing.assert_close(whole, gradient, **EXACT)
        for split in (flow.by_route(parameter), flow.by_crossing(parameter, 2)):
            torch.testing.assert_close(split.parts().sum((0, 1)), gradient, **EXACT)
    pairs = {(t, k): flow.contribution(parameter, t, k) for t in range(STEPS) for k in range(t + 1)}
    torch.testing.assert_close(sum(pairs.values()), gradient, **EXACT)
    norms = flow.by_time(parameter).norm
    for (t, k), part in pairs.items():  # every C[t,k], clipped as the whole was
        # from a Gram matrix, which squares
        torch.testing.assert_close(norms[t, k].item(), part.norm().item(), atol=1e-9, rtol=1e-7)
    assert abs(flow.clipped().kept() - kept(recording, flow)) < 1e-12
    clipping.remove()


def kept(recording, flow):
    """The norm of what autograd was left with over that of the unclipped gradient."""
    true = [g.plain()[0] for g in flow.unclipped.gradient.values()]
    clipped_ = recording.only().gradients.values()
    sizes = [
        torch.linalg.vector_norm(torch.cat([g.flatten() for g in gs])) for gs in (clipped_, true)
    ]
    return float(sizes[0] / sizes[1])


@pytest.mark.parametrize("policy", [PreActivationValue(0.05), StateNorm(0.4), GlobalNorm(0.1)])
def test_what_a_policy_would_make_of_a_recorded_pass(policy):
    """Asked of the true pass, it is what the clipped layer itself gives."""
    torch.manual_seed(0)
    lstm = nn.LSTM(INPUTS, H, 2, dtype=torch.float64)
    x, weight = drawn(STEPS, B, INPUTS), drawn(STEPS, B, H, seed=2)
    with retrograde.record(lstm) as recording:
        (lstm(x)[0] * weight).sum().backward()
    flow = retrograde.decompose(recording)
    true = {name: p.grad.clone() for name, p in lstm.named_parameters()}
    lstm.zero_grad()
    if isinstance(policy, AbstractInside):
        clip_inside(lstm, policy)
    (lstm(x)[0] * weight).sum().backward()
    if not isinstance(policy, AbstractInside):
        retrograde.clipping.clip(lstm, policy)

    clipped_ = flow.clipped(policy)
    assert clipped_.before is flow
    dots, sizes = 0.0, [0.0, 0.0]
    for name, parameter in lstm.named_parameters():
        torch.testing.assert_close(clipped_.gradient[name].plain()[0], parameter.grad, **EXACT)
        for parts in (
            clipped_.by_lag(name).parts(),
            clipped_.by_route(name).parts().flatten(0, 1),
            clipped_.by_crossing(name, 2).parts().flatten(0, 1),
        ):
            torch.testing.assert_close(parts.sum(0), parameter.grad, **EXACT)
        dots += float((parameter.grad * true[name]).sum())
        sizes = [
            s + float(g.square().sum())
            for s, g in zip(sizes, (parameter.grad, true[name]), strict=True)
        ]
    assert clipped_.cosine() == pytest.approx(dots / math.sqrt(sizes[0] * sizes[1]), rel=1e-10)
    assert clipped_.kept() == pytest.approx(math.sqrt(sizes[0] / sizes[1]), rel=1e-10)
    assert torch.cat((clipped_.by_lag().share,)).sum() == pytest.approx(1)
    assert clipped_.by_route().share.sum() == pytest.approx(1)


def test_element_by_element_at_the_end_and_both_places_at_once():
    torch.manual_seed(0)
    lstm = nn.LSTM(INPUTS, H, dtype=torch.float64)
    with retrograde.record(lstm) as recording:
        (lstm(drawn(STEPS, B, INPUTS))[0] * 3).sum().backward()
    flow = retrograde.decompose(recording)
    value = retrograde.clipping.Value(0.2)
    for policies in ([value], [StateNorm(1.0), value], [value, GlobalNorm(0.3), StateNorm(1.0)]):
        inside = [p for p in policies if isinstance(p, AbstractInside)]
        whole = (flow.clipped(*inside) if inside else flow).gradient
        expected = {n: g.plain()[0].clamp(-0.2, 0.2) for n, g in whole.items()}
        norm = torch.cat([g.flatten() for g in expected.values()]).norm()
        limited = 0.3 / (float(norm) + 1e-6)  # torch's own formula
        factor = min(1.0, limited) if len(policies) == 3 else 1.0
        clipped_ = flow.clipped(*policies)
        for name in flow.parameters:
            parts = clipped_.by_lag(name).parts().sum(0)
            torch.testing.assert_close(parts, expected[name] * factor, **EXACT)
    agc = flow.clipped(retrograde.clipping.AGC(0.05))
    assert 0 < agc.kept() < 1


def test_a_chart_of_before_and_after():
    torch.manual_seed(0)
    rnn = nn.RNN(INPUTS, H)
    with retrograde.record(rnn) as recording:
        rnn(torch.randn(9, B, INPUTS))[0].sum().backward()
    clipped_ = retrograde.decompose(recording).clipped(PreActivationValue(0.1))
    chart = clipped_.chart().to_dict()
    assert f"cosine to the true gradient {clipped_.cosine():.3f}" in " ".join(
        chart["title"]["subtitle"]
    )
    lags, routes = (panel["data"]["values"].splitlines()[1:] for panel in chart["vconcat"])
    shares = {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in lags + routes}
    assert shares["0", "clipped"] == pytest.approx(float(clipped_.by_lag().share[0]), abs=1e-5)
    assert shares["0", "true gradient"] != shares["0", "clipped"]
    assert shares["direct", "clipped"] + shares["recurrent", "clipped"] == pytest.approx(
        1, abs=1e-5
    )


# Layers of torch, wrapped


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def run_layer(layer, x, hx, weight=None):
    """Output and last state as one list, and the gradients of a loss on all of it."""
    x = x.clone().requires_grad_()
    given = x
    if weight is not None:
        given = pack_padded_sequence(x, weight, batch_first=layer.batch_first, enforce_sorted=False)
    output, last = layer(given, hx)
    results = [
        output if isinstance(output, torch.Tensor) else output.data,
        *parts(last),
    ]
    loss = sum((r * drawn(*r.shape, seed=n)).sum() for n, r in enumerate(results))
    return results, torch.autograd.grad(loss, [x, *layer.parameters()]), output


@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    layers_=st.integers(1, 2),
    both=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    layout=st.sampled_from(["batch", "packed", "unbatched"]),
    state=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_wrapped_layer_is_the_layer_where_nothing_bites(
    kind, layers_, both, batch_first, bias, layout, state, seed
):
    torch.manual_seed(seed)
    layer = kind(
        INPUTS, H, layers_, bias=bias, batch_first=batch_first, bidirectional=both
    ).double()
    shape = (STEPS, INPUTS) if layout == "unbatched" else (B, STEPS, INPUTS)
    if layout != "unbatched" and not batch_first:
        shape = (STEPS, B, INPUTS)
    hx = None
    if state:
        part = (layers_ * (1 + both), *(() if layout == "unbatched" else (B,)), H)
        hx = drawn(*part, seed=8)
        hx = (hx, drawn(*part, seed=9)) if kind is nn.LSTM else hx
    lengths = torch.tensor([2, 4, 1]) if layout == "packed" else None
    theirs = run_layer(layer, drawn(*shape), hx, lengths)
    clip_inside(layer, StateNorm(1e6))
    ours = run_layer(layer, drawn(*shape), hx, lengths)
    assert_same(ours[0], theirs[0])
    assert_same(ours[1], theirs[1])
    if layout == "packed":
        assert torch.equal(ours[2].batch_sizes, theirs[2].batch_sizes)
        assert torch.equal(ours[2].sorted_indices, theirs[2].sorted_indices)


def test_a_wrapped_model_keeps_weights_names_and_optimiser():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(INPUTS, H, proj_size=3, dtype=torch.float64))
    before, names = [*model.parameters()], [*model.state_dict()]
    text, kind = repr(model), type(model[0])
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    with torch.no_grad():
        fast = model(drawn(STEPS, B, INPUTS))[0]
    inside = clip_inside(model, PreActivationValue(0.01))
    assert isinstance(model[0], nn.LSTM) and repr(model) == text
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert [*model.state_dict()] == names
    with torch.no_grad():
        assert torch.equal(model(drawn(STEPS, B, INPUTS))[0], fast)
    model(drawn(STEPS, B, INPUTS))[0].sum().backward()
    weights = [w.detach().clone() for w in model.parameters()]
    optimiser.step()
    assert not torch.equal(weights[0], before[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.zero_grad()
        model.zero_grad()
        for each in (model, other):
            each(drawn(STEPS, B, INPUTS))[0].sum().backward()
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine.grad, theirs.grad)
    inside.remove()
    assert type(model[0]) is kind
    assert not hasattr(model[0], "clipping")


def test_a_parametrized_layer_can_be_wrapped():
    torch.manual_seed(0)
    gru = nn.GRU(INPUTS, H, dtype=torch.float64)
    nn.utils.parametrizations.spectral_norm(gru, "weight_hh_l0")
    gru.eval()  # its own numbers move in training
    theirs = run_layer(gru, drawn(STEPS, B, INPUTS), None)
    inside = clip_inside(gru, StateNorm(1e6))
    assert_same(run_layer(gru, drawn(STEPS, B, INPUTS), None)[1], theirs[1])
    inside.remove()
    assert_same(run_layer(gru, drawn(STEPS, B, INPUTS), None)[1], theirs[1])


def test_the_clip_rate_by_hand():
    """A relu RNN of one unit whose adjoints are 1, 2, 3, ...: each step adds 1, none is lost."""
    rnn = retrograde.nn.RNN(1, 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(1.0)
        rnn.weight_hh_l0.fill_(1.0)
    inside = clip_inside(nn.ModuleDict({"rnn": rnn}), PreActivationValue(3.5))
    assert math.isnan(inside.clip_rate["rnn"])
    rnn(torch.ones(5, 1, 1))[0].sum().backward()  # 1, 2, 3, then 4 and 4.5 are clipped
    assert inside.clip_rate == {"rnn": pytest.approx(2 / 5)}
    assert float(rnn.weight_ih_l0.grad) == pytest.approx(1 + 2 + 3 + 3.5 + 3.5)


class Own(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


@pytest.mark.parametrize(
    ("model", "policy", "sentence"),
    [
        (nn.LSTM(1, 1), GlobalNorm(1.0), "acts at the end of the backward pass: give it to a Cli"),
        (nn.LSTM(1, 1), 1.0, "a policy inside back-propagation is needed"),
        (nn.Linear(1, 1), StateNorm(1.0), "holds no recurrent layer"),
        (nn.LSTMCell(1, 1), StateNorm(1.0), "stepped in a loop by the model"),
        (Own(1, 1), StateNorm(1.0), "a forward of its own"),
    ],
)
def test_refusals(model, policy, sentence):
    with pytest.raises(ArgumentError, match=sentence):
        clip_inside(model, policy)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, True, "1"])
def test_thresholds_that_are_none(wrong):
    for kind in (PreActivationValue, StateNorm, HDetach):
        with pytest.raises(ArgumentError, match=r"must be (a positive|above 0)"):
            kind(wrong)
    with pytest.raises(ArgumentError, match="at most 1"):
        HDetach(1.5)


def test_more_refusals():
    lstm = nn.LSTM(INPUTS, H)
    clip_inside(lstm, HDetach(0.5))
    with pytest.raises(ArgumentError, match="already clipped inside"):
        clip_inside(lstm, StateNorm(1.0))
    with pytest.raises(retrograde.errors.UnsupportedModelError, match="draws random numbers"):
        with retrograde.record(lstm):
            pass
    with pytest.raises(
        ArgumentError, match="acts inside back-propagation: give it to retrograde.n"
    ):
        Clipper(lstm, StateNorm(1.0))
    with pytest.raises(ArgumentError, match="act in two places"):
        chain(StateNorm(1.0), GlobalNorm(1.0))
    with pytest.raises(ArgumentError, match="are not known; use StateNorm, which acts on any"):
        clipped(LEAKY(), PreActivationValue(1.0))
    rnn = nn.RNN(1, 1)
    with retrograde.record(rnn) as recording:
        rnn(torch.ones(3, 1, 1))[0].sum().backward()
    with pytest.raises(ArgumentError, match="without a policy inside"):
        retrograde.decompose(recording).clipped()


def test_cells_of_cells_and_a_users_own_are_held():
    for cell in (
        LEAKY(),
        Stacked((TANH(), LEAKY(inputs=H))),
        SideBySide((TANH(), GRU_()), ("", "_b")),
    ):
        x, direct = drawn(T, B, cell.input_size), drawn(T, B, cell.state_size, seed=7)
        initial = drawn(B, cell.state_size, seed=6)
        tight = by_package(cell, StateNorm(0.5), x, initial, direct)
        free = by_package(cell, AbstractInside(), x, initial, direct)
        assert tight[2].norm() < free[2].norm()


def test_what_it_cannot_hold_is_said():
    """Clipped at 1e25, the adjoint still leaves the range within the next step."""
    rnn = nn.RNN(1, 1)
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            weight.fill_(1e20 if name == "weight_hh_l0" else 0)
    with retrograde.record(rnn) as recording:
        rnn(torch.zeros(4, 1, 1))[0].sum().backward()
    flow = retrograde.decompose(recording)
    with pytest.raises(retrograde.errors.NonFiniteError, match="the policy does not"):
        flow.clipped(PreActivationValue(1e25))
    assert flow.clipped(PreActivationValue(1.0)).kept() < 1e-6


# As a hostile user would


def clipped_pass(layer, run_it):
    with retrograde.record(layer) as recording:
        run_it()
    return retrograde.decompose(recording)


@pytest.mark.parametrize("both", [False, True])
def test_dropout_in_a_packed_sequence_draws_as_torch_does(both):
    """So that the pass is torch's own, and its masks can be drawn again by a recording."""
    lstm = nn.LSTM(INPUTS, H, 2, dropout=0.3, bidirectional=both, dtype=torch.float64)
    lengths = torch.tensor([2, STEPS, 1])
    packed = pack_padded_sequence(drawn(STEPS, B, INPUTS), lengths, enforce_sorted=False)
    torch.manual_seed(1)
    theirs = lstm(packed)[0].data
    clip_inside(lstm, StateNorm(0.3))
    torch.manual_seed(1)
    torch.testing.assert_close(lstm(packed)[0].data, theirs, **EXACT)
    flow = clipped_pass(lstm, lambda: lstm(packed)[0].data.square().sum().backward())
    assert flow.residual < 1e-12


def test_under_autocast_a_layer_reads_what_an_autocast_layer_gives():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, INPUTS), nn.LSTM(INPUTS, H))
    clip_inside(model, PreActivationValue(0.05))

    def run_it():
        with torch.autocast("cpu", dtype=torch.bfloat16):  # the linear layer gives bfloat16
            model(torch.randn(STEPS, B, INPUTS))[0].float().sum().backward()

    assert clipped_pass(model, run_it).residual < 1e-6


def test_data_types_that_do_not_fit_are_said():
    lstm, x = nn.LSTM(INPUTS, H), torch.zeros(STEPS, B, INPUTS)
    clip_inside(lstm, StateNorm(1.0))
    with pytest.raises(ArgumentError, match=r"input must be torch.float32.*got torch.float64"):
        lstm(x.double())
    with pytest.raises(ArgumentError, match=r"hx must be torch.float32.*got torch.float64"):
        lstm(x, (torch.zeros(1, B, H).double(),) * 2)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e25), (torch.float16, 6e4)])
def test_a_norm_beyond_the_range_is_held_and_not_lost(dtype, size):
    """The squares of what a data type can hold are out of its range."""
    held_ = StateNorm(1.0).on_state(torch.full((1, 4), size, dtype=dtype)) * size
    torch.testing.assert_close(held_, torch.full((1, 1), 0.5, dtype=dtype), atol=1e-2, rtol=0)


@pytest.mark.parametrize("layers_", [1, 2])
@pytest.mark.parametrize("policy", [StateNorm(0.3), PreActivationValue(0.02)])
def test_a_truncated_pass_can_be_asked_about_any_policy(policy, layers_):
    torch.manual_seed(0)
    lstm = retrograde.nn.LSTM(INPUTS, H, layers_, truncated=True, dtype=torch.float64)

    def run_it():
        lstm.zero_grad()
        lstm(drawn(STEPS, B, INPUTS))[0].square().sum().backward()

    asked = clipped_pass(lstm, run_it).clipped(policy)
    clip_inside(lstm, policy)
    run_it()
    for name, weight in lstm.named_parameters():
        torch.testing.assert_close(asked.gradient[name].plain()[0], weight.grad, **EXACT)


@pytest.mark.parametrize("policy", [StateNorm(0.3), PreActivationValue(0.02)])
def test_without_a_route_a_policy_clips_what_is_left(policy):
    """Also without an edge inside the step: against a loop whose tanh(c) is detached."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(INPUTS, H, dtype=torch.float64), drawn(STEPS, B, INPUTS)
    flow = clipped_pass(lstm, lambda: lstm(x)[0].square().sum().backward())
    asked = flow.without("readout").clipped(policy)

    weights = {name: w.detach().clone().requires_grad_() for name, w in lstm.named_parameters()}
    w_ih, w_hh, b_ih, b_hh = weights.values()
    s, loss = torch.zeros(B, 2 * H, dtype=torch.float64), 0
    for x_k in x:
        a = x_k @ w_ih.T + s[:, :H] @ w_hh.T + b_ih + b_hh
        a = clamp(policy.max_value)(a) if isinstance(policy, PreActivationValue) else a
        i, f, g, o = a.chunk(4, -1)
        c = f.sigmoid() * s[:, H:] + i.sigmoid() * g.tanh()
        s = torch.cat((o.sigmoid() * c.tanh().detach(), c), -1)
        if isinstance(policy, StateNorm):
            s.register_hook(held(policy.max_norm))
        loss = loss + s[:, :H].square().sum()
    loss.backward()
    for name, weight in weights.items():
        torch.testing.assert_close(asked.gradient[name].plain()[0], weight.grad, **EXACT)


def test_a_policy_that_acts_at_some_steps_only():
    """Its weights' gradient was that of the steps it left alone, without a word."""

    class Now(AbstractInside):
        def on_state(self, delta):
            above = delta.norm() > 5
            return torch.full_like(delta[:, :1], 0.5) if above else None

    rnn = nn.RNN(INPUTS, H)
    clip_inside(rnn, Now())
    weights = torch.tensor([1.0, 1.0, 100.0, 1.0]).view(STEPS, 1, 1)
    with pytest.raises(ArgumentError, match="the factors are ones"):
        (rnn(torch.ones(STEPS, B, INPUTS))[0] * weights).sum().backward()


def test_a_parameter_that_there_is_not():
    rnn = nn.RNN(INPUTS, H)
    flow = clipped_pass(rnn, lambda: rnn(torch.ones(3, B, INPUTS))[0].sum().backward())
    asked = flow.clipped(StateNorm(1.0))
    for question in (asked.cosine, asked.kept, asked.by_lag, asked.by_route, asked.by_crossing):
        with pytest.raises(ArgumentError, match="no parameter 'weight_hh_l1' in 'RNN'"):
            question("weight_hh_l1")


def test_parametrized_before_and_after():
    rnn = nn.RNN(INPUTS, H)
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    inside = clip_inside(rnn, StateNorm(1.0))
    with retrograde.record(rnn) as recording:
        rnn(torch.ones(3, B, INPUTS))[0].sum().backward()
    assert [*recording] == ["RNN"]
    inside.remove()

    rnn = nn.RNN(INPUTS, H)
    inside = clip_inside(rnn, StateNorm(1.0))
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    with pytest.raises(ArgumentError, match="parametrized after clip_inside"):
        inside.remove()
    nn.utils.parametrize.remove_parametrizations(rnn, "weight_hh_l0")
    inside.remove()
    assert type(rnn) is nn.RNN


def test_a_recording_says_that_a_policy_was_at_work():
    """Or a reader takes the clipped pass, which is healthy, for the model."""
    rnn = nn.RNN(INPUTS, H, 2)
    clip_inside(rnn, StateNorm(0.5))
    with retrograde.record(rnn) as recording:
        rnn(torch.randn(9, B, INPUTS))[0].sum().backward()
    assert "StateNorm(max_norm=0.5) clips inside" in recording.only().notes[0]
    assert any("StateNorm" in note for note in retrograde.diagnose(recording).notes)


def test_a_copy_can_be_rid_of_its_policy():
    model = nn.ModuleDict({"a": nn.GRU(INPUTS, H), "b": retrograde.nn.GRU(INPUTS, H)})
    clip_inside(model, StateNorm(0.5))
    other = copy.deepcopy(model)
    retrograde.nn.unclip(other)
    assert type(other["a"]) is nn.GRU and other["b"].clipping is None
    assert model["a"].clipping and model["b"].clipping
    clip_inside(other, StateNorm(1.0))


def test_a_chart_of_nothing():
    rnn = nn.RNN(INPUTS, H)
    with retrograde.record(rnn) as recording:
        (0 * rnn(torch.randn(4, B, INPUTS))[0]).sum().backward()
    chart = retrograde.decompose(recording).clipped(StateNorm(1.0)).chart().to_dict()
    assert "nan" not in str(chart).lower()
