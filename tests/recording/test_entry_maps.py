"""What stands between two states: every kind of node, and every kind of way from call to call.

Oracles know nothing of the package: autograd's own vector-Jacobian products for single nodes, and
for whole programs a loop with a copy of the weights at each step (test_programs.py draws
those).
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.recording import entry_maps, sequences
from retrograde.recording.entry_maps import EntryMaps
from retrograde.recording.graph import edge_of
from support.type_checks import unchecked

D, B, H, T = torch.float64, 3, 4, 5

MASK = torch.tensor([[True], [False], [True]])
ENTRIES = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)

STEPS = {
    "scaled": lambda h, z: h * 0.9,
    "masked": lambda h, z: h * MASK,
    "kept where off": lambda h, z: torch.where(MASK, h, z),
    "mixed": lambda h, z: 0.7 * h + (1 - 0.7) * z,
    "zoneout": lambda h, z: torch.where(ENTRIES, h, z),
    "lerp": lambda h, z: torch.lerp(z, h, 0.3),
    "masked_fill": lambda h, z: h.masked_fill(~ENTRIES, 0.0),
    "residual": lambda h, z: h + z,
    "added to": lambda h, z: h + torch.linspace(-1, 1, H).to(h.dtype),
    "squashed": lambda h, z: (h * 2).tanh(),
    "its own gate": lambda h, z: h * h.sigmoid(),
    "relu": lambda h, z: h.relu(),
    "clamped": lambda h, z: h.clamp(-0.1, 0.1),
    "divided": lambda h, z: h / torch.arange(1, H + 1),
    "from one": lambda h, z: 1 - h,
    "dropped": lambda h, z: torch.dropout(h, 0.5, True),
    "permuted": lambda h, z: h[torch.tensor([2, 0, 1])],
    "repeated": lambda h, z: h[torch.tensor([1, 1, 0])],
    "index_select": lambda h, z: h.index_select(0, torch.tensor([2, 2, 2])),
    "gathered": lambda h, z: h.gather(0, torch.tensor([[2, 1, 0, 0]] * B)),
    "rolled": lambda h, z: h.roll(1, 1),
    "flipped and added": lambda h, z: h + h.flip(0),
    "one for all": lambda h, z: h[:1].expand(B, H),
    "through a stack": lambda h, z: torch.stack([h, z], 1).unbind(1)[0],
    "through a cat": lambda h, z: torch.cat([z, h], 1).chunk(2, 1)[1],
    "through a view": lambda h, z: h.t().reshape(-1).view(H, B).t(),
    "in place": lambda h, z: _written(h, z),
    "columns in place": lambda h, z: _halved(h),
    "index_put": lambda h, z: h.index_put((torch.tensor([1]),), z[0]),
    "scatter": lambda h, z: z.scatter(0, torch.tensor([[0, 1, 2, 0]]), h[:1]),
}

MIXING = {
    "a linear map": lambda h, z: h @ torch.linspace(-1, 1, H * H, dtype=D).view(H, H).to(h.dtype),
    "a norm": lambda h, z: nn.functional.layer_norm(h, (H,)),
    "a softmax": lambda h, z: h.softmax(1),
    "a sum": lambda h, z: h.sum(1, keepdim=True).expand(B, H),
    "a mean over samples": lambda h, z: h - h.mean(0),
    "a running sum": lambda h, z: h.cumsum(1),
}


def _written(h, z):
    copy = h.clone()
    copy[1] = z[2]
    return copy


def _halved(h):
    copy = h.clone()
    copy[:, 1:3].mul_(0.5)
    return copy


def two_states(dtype=D):
    draws = torch.Generator().manual_seed(3)
    h, z = torch.randn(2, B, H, generator=draws).to(dtype).requires_grad_().unbind()
    return h * 1, z * 1


def pulled(terms, like, gradient):
    total = torch.zeros(like.numel(), dtype=D)
    for term in terms:
        source = torch.arange(gradient.numel()) if term.source is None else term.source
        total.index_add_(0, source, gradient.flatten().double() * term.factor)
    return total.view_as(like)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_terms_are_the_transpose_of_what_autograd_gives_back(name, dtype):
    h, z = two_states(dtype)
    after = STEPS[name](h, z)
    sites = [edge_of(h), edge_of(z)]
    entry_map = EntryMaps().to(edge_of(after), sites)
    assert not entry_map.opaque
    gradient = torch.linspace(-1, 2, after.numel()).view_as(after).to(after.dtype)
    expected = torch.autograd.grad(after, [h, z], gradient, materialize_grads=True)
    for site, like, theirs in zip(sites, (h, z), expected, strict=True):
        ours = pulled(entry_map.terms.get(site, ()), like, gradient)
        # Each term is one product, and at most three are added.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours, theirs.double(), rtol=8 * eps, atol=8 * eps)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_entries_is_not_followed(name):
    h, z = two_states()
    after = MIXING[name](h, z)
    entry_map = EntryMaps().to(edge_of(after), [edge_of(h), edge_of(z)])
    assert edge_of(h) in entry_map.opaque


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_composition_of_steps(names):
    h, z = two_states()
    after = h
    for name in names:
        after = STEPS[name](after, z)
    sites = [edge_of(h), edge_of(z)]
    entry_map = EntryMaps().to(edge_of(after), sites)
    assert not entry_map.opaque
    gradient = torch.linspace(-1, 2, after.numel(), dtype=D).view_as(after)
    expected = torch.autograd.grad(after, [h, z], gradient, materialize_grads=True)
    for site, like, theirs in zip(sites, (h, z), expected, strict=True):
        torch.testing.assert_close(pulled(entry_map.terms.get(site, ()), like, gradient), theirs)


def test_a_function_of_the_users_own_is_not_run_a_second_time():
    runs = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            runs.append(1)
            return gradient * 2

    h, z = two_states()
    entry_map = EntryMaps().to(edge_of(Doubled.apply(h)), [edge_of(h)])
    assert not runs and entry_map.opaque == {edge_of(h)}


def test_hooks_on_the_way_are_not_run_while_the_way_is_looked_for():
    h, z = two_states()
    seen = []
    half = h * 0.5
    half.register_hook(seen.append)
    half.grad_fn.register_prehook(seen.append)
    entry_map = EntryMaps().to(edge_of(half + z), [edge_of(h), edge_of(z)])
    assert not seen and not entry_map.opaque


def test_a_sum_over_all_steps_is_not_followed():
    states = [two_states()[0] for _ in range(entry_maps.MOST_SITES + 1)]
    entry_map = EntryMaps().to(edge_of(sum(states)), [edge_of(state) for state in states])
    assert not entry_map.terms and len(entry_map.opaque) == len(states)


def weights_for(cell):
    return [
        {name: p.detach().clone().requires_grad_() for name, p in cell.named_parameters()}
        for _ in range(T)
    ]


def lstm(w, x, h, c):
    gates = nn.functional.linear(x, w["weight_ih"], w["bias_ih"])
    gates = gates + nn.functional.linear(h, w["weight_hh"], w["bias_hh"])
    i, f, g, o = gates.chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def norms_and_residual(between, read):
    """`flow.by_time` of a loop, and the norms of a loop whose steps have weights of their own."""
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(2, H, dtype=D), torch.randn(T, B, 2, dtype=D)

    def loop(step):
        h, c, total = *torch.zeros(2, B, H, dtype=D).unbind(), []
        for t in range(T):
            torch.manual_seed(t)
            new = step(t, h, c)
            h, c = between(new[0], h), between(new[1], c)
            total.append(read(new, (h, c)).square().sum())
        return total

    with retrograde.record(cell) as recording:
        sum(loop(lambda t, h, c: cell(x[t], (h, c)))).backward()
    flow = retrograde.decompose(recording)
    copies = weights_for(cell)
    expected = torch.zeros(T, T, dtype=D)
    for t, loss in enumerate(loop(lambda t, h, c: lstm(copies[t], x[t], h, c))):
        each = [w["weight_hh"] for w in copies]
        for k, g in enumerate(
            torch.autograd.grad(loss, each, retain_graph=True, allow_unused=True)
        ):
            expected[t, k] = 0 if g is None else g.norm()
    return flow, expected


@pytest.mark.parametrize("read", ["new", "kept"])
@pytest.mark.parametrize("name", STEPS)
def test_every_contribution_of_a_loop_with_something_between_its_steps(name, read):
    between = STEPS[name]
    # A loss that reads h_new itself depends on it alone; one that reads what is kept reads both.
    with nullcontext() if read == "kept" else unchecked():  # types, once for every way
        flow, expected = norms_and_residual(
            between, lambda new, kept: (new if read == "new" else kept)[0]
        )
        assert flow.residual < 1e-12 and not flow.recorded.boundaries.get(0)
        found = torch.zeros(T, T, dtype=D)
        found[flow.entries.steps] = flow.by_time("weight_hh").norm
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)
        whole = flow.by_lag("weight_hh", bins="every").parts().sum(0)
        for split in (flow.by_route("weight_hh"), flow.by_crossing("weight_hh", 2)):
            torch.testing.assert_close(split.parts().flatten(0, 1).sum(0), whole)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_entries_ends_lags_and_the_parts_still_sum_to_the_gradient(name):
    flow, _ = norms_and_residual(MIXING[name], lambda new, kept: kept[0])
    assert flow.residual < 1e-12
    assert any("lags end there" in note for note in flow.recorded.notes)


def test_a_loop_that_goes_on_after_a_pass_whose_loss_read_a_mix_of_its_states():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(2, H, dtype=D), torch.randn(T, B, 2, dtype=D)
    with retrograde.record(cell) as recording:
        h = torch.zeros(B, H, dtype=D)
        for x_t in x[:3]:
            new, old = cell(x_t, h), h
            h = torch.where(ENTRIES, new, old)
        mix = torch.lerp(old, new, 0.3)
        mix.square().sum().backward(retain_graph=True)
        for x_t in x[3:]:
            h = torch.where(ENTRIES, cell(x_t, h), h)
        (h.square().sum() + mix.square().sum()).backward()
    for one in recording.passes:
        flow = retrograde.decompose(one)
        assert flow.residual < 1e-12 and not flow.recorded.lags_end
    assert flow.entries.steps.tolist() == [2, T - 1]


def test_states_of_several_earlier_calls_end_lags_and_the_reason_is_named():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(2, H, dtype=D), torch.randn(T, B, 2, dtype=D)
    with retrograde.record(cell) as recording:
        states = [torch.zeros(B, H, dtype=D)]
        for x_t in x:
            states.append(cell(x_t, sum(states[-3:])))
        states[-1].square().sum().backward()
    flow = retrograde.decompose(recording)
    assert flow.residual < 1e-12 and flow.reach_is_lower_bound
    assert any("states of several earlier calls" in note for note in flow.recorded.notes)


def test_a_hook_that_changes_what_comes_back_ends_lags():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(2, H, dtype=D), torch.randn(T, B, 2, dtype=D)
    with retrograde.record(cell) as recording:
        h = torch.zeros(B, H, dtype=D)
        for x_t in x:
            h = cell(x_t, h) * 0.9
            h.register_hook(lambda g: g * 0.5)
        h.square().sum().backward()
    flow = retrograde.decompose(recording)
    assert flow.residual < 1e-12
    assert any("lags end there" in note for note in flow.recorded.notes)


@pytest.mark.parametrize(
    "fault",
    ["factor lost", "places mixed up", "the other state forgotten", "loss in between forgotten"],
)
def test_faults(fault, monkeypatch):
    """Each is rejected by the norms above."""
    name, read = "zoneout", lambda new, kept: kept[0]
    if fault == "factor lost":
        name = "scaled"
        monkeypatch.setattr(
            entry_maps, "_ones_through", lambda node, *_: torch.ones(B * H, dtype=torch.float64)
        )
    elif fault == "places mixed up":
        name = "permuted"
        true = entry_maps._probed
        monkeypatch.setattr(
            entry_maps, "_probed", lambda *a: (lambda r: r and (r[0].flip(0), r[1]))(true(*a))
        )
    elif fault == "the other state forgotten":
        monkeypatch.setattr(
            sequences._LossGradients, "pass_early", lambda self, before, origin: None
        )
        name, read = "residual", lambda new, kept: kept[0]
        true = sequences.origin_in

        def without(call, backward):
            origin = true(call, backward)
            reads = tuple(read for read in origin.reads if not read.entered)
            return replace(origin, reads=reads)

        monkeypatch.setattr(sequences, "origin_in", without)
    else:
        true_add = sequences._LossGradients.add
        monkeypatch.setattr(
            sequences._LossGradients, "add", lambda self, tensor, g: true_add(self, tensor, g * 0)
        )
    try:
        flow, expected = norms_and_residual(STEPS[name], read)
    except retrograde.VoidDecompositionWarning:  # the residual has rejected it
        return
    found = torch.zeros(T, T, dtype=D)
    found[flow.entries.steps] = flow.by_time("weight_hh").norm
    assert not torch.allclose(found, expected, rtol=1e-6, atol=1e-12)
