"""Clipping at the end: every policy against torch, published code or plain arithmetic."""

import copy
import gc
import math
import pickle
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import retrograde
from retrograde.clipping import (
    AGC,
    AbstractPolicy,
    AutoClip,
    ByGroup,
    Clipper,
    GlobalNorm,
    Value,
    ZClip,
    chain,
    clip,
    scope_of,
    suggest,
)
from retrograde.errors import ArgumentError, ClippingError, NonFiniteError

GROUPS = ("recurrent", "input", "output")


class Model(nn.Module):
    def __init__(self, dtype=torch.float64, outputs=1):
        super().__init__()
        self.rnn = nn.LSTM(2, 3, dtype=dtype)
        self.head = nn.Linear(3, outputs, dtype=dtype)  # its bias is a tensor of one element

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def backward(model, scale=1.0, seed=0, zeros=()):
    """A random gradient of about this size in every parameter but some."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale
        p.grad = (grad * (name not in zeros)).to(p.dtype)


def grads(model, group="all"):
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None and group in ("all", scope_of(name))
    }


def flat(model, group="all"):
    return torch.cat([grad.flatten().double() for grad in grads(model, group).values()])


def norm(model, group="all"):
    return float(flat(model, group).norm())


seeds, sizes = st.integers(0, 2**31), st.floats(-8, 8).map(lambda power: 10.0**power)
ratios = st.floats(0.01, 0.99)
zeros = st.sets(st.sampled_from([name for name, _ in Model().named_parameters()]))

# What scales a part to a norm, and the parts that it does that to, each apart.
SCALING = {
    "GlobalNorm": (GlobalNorm, ("all",)),
    "ByGroup": (lambda c: ByGroup({g: GlobalNorm(c) for g in GROUPS}), GROUPS),
    "recurrent only": (lambda c: ByGroup({"recurrent": GlobalNorm(c)}), ("recurrent",)),
    "all": (lambda c: ByGroup({"all": GlobalNorm(c)}), ("all",)),
    "chain": (lambda c: chain(GlobalNorm(3 * c), GlobalNorm(c)), ("all",)),
    "nested": (lambda c: ByGroup({"input": chain(Value(math.inf), GlobalNorm(c))}), ("input",)),
}


@pytest.mark.parametrize("name", SCALING)
@settings(max_examples=25)  # of each of six
@given(seed=seeds, size=sizes, ratio=ratios, zeros=zeros)
def test_scaling_changes_nothing_below_and_gives_the_norm_above(name, seed, size, ratio, zeros):
    make, parts = SCALING[name]
    model = Model()
    backward(model, size, seed, zeros)
    before, largest = grads(model), max(norm(model, part) for part in parts)
    whole = norm(model)
    # Torch's small constant in the denominator lets the factor fall below 1 that much earlier.
    found = clip(model, make(largest / ratio + 2e-6))
    assert all(before[n].equal(g) for n, g in grads(model).items())
    assert float(found) == pytest.approx(whole, rel=1e-12)

    limit = largest * ratio
    if limit == 0:
        return
    backward(model, size, seed, zeros)
    true = {group: flat(model, group) for group in (*GROUPS, "all")}
    found = clip(model, make(limit))
    assert float(found) == pytest.approx(whole, rel=1e-12)
    for group in GROUPS:
        if group not in parts and parts != ("all",):
            assert flat(model, group).equal(true[group])
    for part in parts:
        was, now = float(true[part].norm()), norm(model, part)
        # n c / (n + 1e-6), twice in a chain
        expected = min(was, limit)
        assert expected - 3e-6 <= now <= expected * (1 + 1e-12)
        if was:
            torch.testing.assert_close(flat(model, part), true[part] * (now / was))
    once = flat(model)
    clip(model, make(limit))
    # The norm is lower than the threshold by at most 3e-6, and falls no lower than 6e-6 below it.
    assert float((flat(model) - once).norm()) <= len(parts) * 3e-6
    if limit > 1:
        torch.testing.assert_close(flat(model), once, rtol=3e-6, atol=0)


@given(seed=seeds, size=sizes, ratio=ratios, zeros=zeros)
def test_by_value_only_elements_above_change_to_the_threshold(seed, size, ratio, zeros):
    model = Model()
    backward(model, size, seed, zeros)
    before = flat(model)
    limit = float(before.abs().max()) * ratio or 1.0
    clip(model, Value(limit))
    after = flat(model)
    inside = before.abs() <= limit
    assert after[inside].equal(before[inside])
    assert (after[~inside] == limit * before[~inside].sign()).all()
    clip(model, Value(limit))
    assert flat(model).equal(after)


def unitwise(x):
    """The norm of a row, as timm's AGC takes it: a vector is one row."""
    return x.norm() if x.ndim <= 1 else x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


@given(seed=seeds, size=sizes, factor=st.floats(0.001, 2), eps=st.floats(0.001, 10), zeros=zeros)
def test_agc_is_that_of_timm(seed, size, factor, eps, zeros):
    model = Model()
    with torch.no_grad():
        model.rnn.weight_hh_l0[1] = 0.0  # a row of weights without a size
    backward(model, size, seed, zeros)
    expected = {}
    for name, p in model.named_parameters():
        most = factor * unitwise(p.detach()).clamp(min=eps)
        rows = unitwise(p.grad)
        scaled = p.grad * (most / rows.clamp(min=1e-6))
        expected[name] = torch.where(rows < most, p.grad, scaled)
    clip(model, AGC(factor, eps))
    for name, grad in grads(model).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=0)
    once = flat(model)
    clip(model, AGC(factor, eps))
    torch.testing.assert_close(flat(model), once, rtol=1e-12, atol=0)


def test_agc_with_a_threshold_below_torchs_small_constant():
    """timm divides by at least 1e-6, and would take too much away here."""
    model = Model()
    backward(model, 1e-7)
    clip(model, AGC(1e-5, 1e-3))
    rows = torch.cat([unitwise(grad).flatten() for grad in grads(model).values()])
    weights = torch.cat([unitwise(p.detach()).flatten() for p in model.parameters()])
    most = 1e-5 * weights.clamp(min=1e-3)
    assert (rows <= most * (1 + 1e-12)).all() and (rows > 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3, math.inf])
def test_bit_for_bit_as_torch(dtype, limit):
    model, other = Model(dtype), Model(dtype)
    for seed in range(5):
        for ours, theirs in (
            (GlobalNorm(limit), nn.utils.clip_grad_norm_),
            (Value(limit), nn.utils.clip_grad_value_),
        ):
            backward(model, seed=seed)
            backward(other, seed=seed)
            expected = nn.utils.get_total_norm([p.grad for p in other.parameters()])
            theirs(other.parameters(), limit)
            assert clip(model, ours).equal(expected)
            assert all(
                a.equal(b)
                for a, b in zip(grads(model).values(), grads(other).values(), strict=True)
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_16_bit_gradients_are_those_of_float32(dtype):
    """Their squares leave the range of float16 long before they do."""
    model = Model(dtype)
    backward(model, 1e4)
    expected = norm(model)
    clipper = Clipper(model, GlobalNorm(1.0))
    found = clipper()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert norm(model) == pytest.approx(1, rel=1e-2)
    assert {p.grad.dtype for p in model.parameters()} == {dtype}
    assert clipper.norms()["all"].tolist() == pytest.approx([expected], rel=1e-6)


def test_parameters_of_several_precisions():
    model = Model(torch.float32)
    model.head.double()
    backward(model)
    expected = norm(model)
    assert float(clip(model, GlobalNorm(0.5))) == pytest.approx(expected, rel=1e-6)
    assert norm(model) == pytest.approx(0.5, rel=1e-5)


HISTORIES = {
    "steady": [1.0, 1.1, 0.9, 1.0, 1.05, 0.95] * 6,
    "spikes": [1.0, 1.2, 0.8, 30.0, 1.1, 0.9, 1.0, 500.0, 1.0, 1e-3] * 4,
    "rising": [0.01 * 1.5**k for k in range(40)],
    "falling": [100 * 0.7**k for k in range(40)],
    "constant, then not": [2.0] * 30 + [2.5, 2.0, 9.0, 2.0],
}


def runs(policy, norms, **options):
    """The norm after clipping for gradients of these norms, step by step."""
    model = Model()
    clipper, after = Clipper(model, policy, **options), []
    for seed, value in enumerate(norms):
        backward(model, seed=seed)
        drawn = norm(model)
        for p in model.parameters():
            p.grad.mul_(value / drawn)
        assert float(clipper()) == pytest.approx(value, rel=1e-12)
        after.append(norm(model))
    return after


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("percentile", [0.0, 10.0, 50.0, 90.0, 100.0])
@pytest.mark.parametrize("window", [None, 4])
def test_autoclip_is_its_published_code(name, percentile, window, unchecked):
    history, expected = [], []
    for value in HISTORIES[name]:
        history.append(value)
        limit = np.percentile(history[-window:] if window else history, percentile)
        expected.append(value * min(1.0, limit / (value + 1e-6)))
    found = runs(AutoClip(percentile, history=window), HISTORIES[name])
    assert found == pytest.approx(expected, rel=1e-10)


class PublishedZClip:
    """The authors' class in plain numbers: adaptive scaling, without their max_grad_norm."""

    def __init__(self, alpha, z_thresh, warmup_steps, clip_factor, eps):
        self.alpha, self.z_thresh, self.warmup_steps = alpha, z_thresh, warmup_steps
        self.clip_factor, self.eps = clip_factor, eps
        self.buffer, self.initialized = [], False

    def step(self, grad_norm):
        if not self.initialized:
            self.buffer.append(grad_norm)
            if len(self.buffer) >= self.warmup_steps:
                self.mean = sum(self.buffer) / len(self.buffer)
                squares = [(x - self.mean) ** 2 for x in self.buffer]
                self.var = sum(squares) / len(squares)
                self.initialized = True
            return grad_norm
        std = self.var**0.5
        z = (grad_norm - self.mean) / (std + self.eps)
        clipped, fed = grad_norm, grad_norm
        if z > self.z_thresh:
            eta = z / self.z_thresh
            fed = (self.mean + self.z_thresh * std / eta) * self.clip_factor
            clipped = grad_norm * fed / (grad_norm + 1e-6)
        self.mean = self.alpha * self.mean + (1 - self.alpha) * fed
        self.var = self.alpha * self.var + (1 - self.alpha) * (fed - self.mean) ** 2
        return clipped


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize(
    "setting", [(0.97, 2.5, 25, 1.0, 1e-6), (0.9, 1.5, 3, 0.8, 1e-3), (0.5, 0.5, 1, 1.0, 1e-6)]
)
def test_zclip_is_its_published_code(name, setting, unchecked):
    published = PublishedZClip(*setting)
    expected = [published.step(value) for value in HISTORIES[name]]
    assert runs(ZClip(*setting), HISTORIES[name]) == pytest.approx(expected, rel=1e-9)


def test_the_policies_that_look_back_do_clip_and_remember_each_group_apart():
    spikes = HISTORIES["spikes"]
    for policy in (AutoClip(50.0), ZClip(warmup=3)):
        after = runs(policy, spikes)
        assert after[3] < 0.9 * spikes[3] and after[7] < 0.9 * spikes[7]
    model, policy = Model(), ByGroup({"recurrent": AutoClip(100.0), "output": ZClip(warmup=2)})
    clipper = Clipper(model, policy)
    for seed in range(3):
        backward(model, seed=seed)
        clipper()
    memory = clipper.state_dict()["memory"]
    torch.testing.assert_close(memory["recurrent"]["norms"], clipper.norms()["recurrent"])
    first = clipper.norms()["output"][:2]
    z = (clipper.norms()["output"][2] - first.mean()) / (first.std(correction=0) + 1e-6)
    assert (clipper.statistics().groups["output"].clip_rate > 0) == bool(z > 2.5)


def test_a_chain_acts_in_its_order():
    orders = {}
    for name, policy in {
        "value first": chain(Value(0.1), GlobalNorm(0.2)),
        "norm first": chain(GlobalNorm(0.2), Value(0.1)),
    }.items():
        model, other = Model(), Model()
        backward(model)
        backward(other)
        clip(model, policy)
        steps = [
            lambda p: nn.utils.clip_grad_value_(p, 0.1),
            lambda p: nn.utils.clip_grad_norm_(p, 0.2),
        ]
        for step in steps if name == "value first" else steps[::-1]:
            step(list(other.parameters()))
        torch.testing.assert_close(flat(model), flat(other), rtol=1e-12, atol=0)
        orders[name] = flat(model)
    assert not torch.allclose(*orders.values())


@pytest.mark.parametrize(
    "policy",
    [GlobalNorm(1.0), Value(1.0), AGC(), AutoClip(), ZClip(warmup=1), ByGroup({"all": AGC()})],
    ids=lambda policy: type(policy).__name__,
)
def test_zero_gradients_stay_zero_and_are_no_bite(policy):
    model = Model()
    clipper = Clipper(model, policy)
    for _ in range(3):
        backward(model, 0.0)
        assert float(clipper()) == 0
        assert not flat(model).any()
    for group in clipper.statistics().groups.values():
        assert group.clip_rate == 0 and group.cosine == 1 and group.norm[100] == 0
        assert math.isnan(group.share)


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_a_model_of_one_number(size):
    model = nn.Linear(1, 1, bias=False)
    for policy, least in ((GlobalNorm(1.0), 1e-5), (Value(1.0), 0), (AGC(1.0, 1.0), 1e-6)):
        with torch.no_grad():
            model.weight.fill_(-0.5)
        model.weight.grad = torch.tensor([[-size]])
        clip(model, policy)
        assert float(model.weight.grad) == pytest.approx(-min(size, 1.0), rel=least)


def test_policies_are_values():
    policy = chain(ByGroup({"recurrent": GlobalNorm(1.0)}), AutoClip(20.0))
    assert policy == chain(ByGroup({"recurrent": GlobalNorm(1.0)}), AutoClip(20.0))
    assert policy != chain(ByGroup({"recurrent": GlobalNorm(2.0)}), AutoClip(20.0))
    assert pickle.loads(pickle.dumps(policy)) == copy.deepcopy(policy) == policy
    with pytest.raises(AttributeError):
        GlobalNorm(1.0).max_norm = 2.0


def test_a_policy_of_ones_own():
    """The one method is enough: this one turns gradients round, which no policy here does."""

    class Reverse(AbstractPolicy):
        def apply(self, part, memory):
            part.edit(lambda parameters: [p.grad.neg_() for p in parameters])
            return None

    model = Model()
    clipper = Clipper(model, ByGroup({"output": Reverse()}))
    backward(model)
    before = flat(model, "output")
    clipper()
    assert flat(model, "output").equal(-before)
    assert clipper.statistics().groups["output"].cosine == pytest.approx(-1)


# Groups


def scopes(module):
    found = {"recurrent": set(), "input": set(), "output": set()}
    for name, _ in module.named_parameters():
        found[scope_of(name)].add(name.split(".")[-1].split("_l")[0])
    return found


def test_scopes_of_every_recurrent_layer():
    ih, hh = {"weight_ih", "bias_ih"}, {"weight_hh", "bias_hh"}
    for module, more in (
        (nn.RNN(2, 3, 2, bidirectional=True), set()),
        (nn.GRU(2, 3), set()),
        (nn.LSTM(2, 3, proj_size=2), {"weight_hr"}),
        (nn.LSTMCell(2, 3), set()),
        (nn.GRUCell(2, 3), set()),
        (nn.RNNCell(2, 3), set()),
        (retrograde.nn.LSTM(2, 3, generation="peephole"), {"weight_ch"}),
        (retrograde.nn.LSTM(2, 3, generation="fgr"), {"weight_ch", "weight_gg"}),
        (retrograde.nn.GRU(2, 3), set()),
    ):
        assert scopes(module) == {"recurrent": hh | more, "input": ih, "output": set()}


def test_scopes_through_wrappers_and_parametrizations():
    model = Model()
    nn.utils.parametrizations.orthogonal(model.rnn, "weight_hh_l0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, where torch.compile is first used
        wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    groups = Clipper(wrapped, GlobalNorm(1.0)).groups
    assert groups["recurrent"] == (
        "rnn.bias_hh_l0",
        "rnn.parametrizations.weight_hh_l0.original",
    )
    assert groups["output"] == ("head.weight", "head.bias")


def test_own_groups_come_first_and_the_scopes_get_the_rest():
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(4, 2), "core": Model(), "cell": nn.Linear(1, 1)}
    )
    groups = {"embedding": "embedding.*", "recurrent": ["cell.weight", "cell.bias"]}
    clipper = Clipper(model, GlobalNorm(1.0), groups=groups)
    assert clipper.groups == {
        "embedding": ("embedding.weight",),
        "recurrent": ("core.rnn.weight_hh_l0", "core.rnn.bias_hh_l0", "cell.weight", "cell.bias"),
        "input": ("core.rnn.weight_ih_l0", "core.rnn.bias_ih_l0"),
        "output": ("core.head.weight", "core.head.bias"),
    }


def test_tied_and_frozen_parameters():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    model["b"].bias.requires_grad_(False)
    clipper = Clipper(model, GlobalNorm(1.0))
    assert clipper.groups == {"output": ("a.weight", "a.bias", "b.bias")}
    for thawed in (False, True):
        model["b"].bias.requires_grad_(thawed)
        model["b"](100 * model["a"](torch.ones(2, 3))).sum().backward()
        assert (model["b"].bias.grad is not None) == thawed
        clipper()
        assert norm(model) == pytest.approx(1, rel=1e-5)


def test_gradients_that_carry_a_graph_are_clipped_outside_of_it():
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what create_graph keeps
        loss_of(model).backward(create_graph=True)
    clipper = Clipper(model, chain(AutoClip(), Value(0.1)))
    assert not clipper().requires_grad
    assert not clipper.state_dict()["memory"]["0"]["norms"].requires_grad
    assert not clipper.state_dict()["history"].requires_grad


def test_groups_without_a_gradient_in_some_steps():
    model = Model()
    policy = ByGroup({"recurrent": GlobalNorm(0.1), "output": Value(0.1)})
    clipper = Clipper(model, policy)
    backward(model)
    clipper()
    backward(model)
    model.head.weight.grad = model.head.bias.grad = None
    expected = norm(model)
    assert float(clipper()) == pytest.approx(expected)
    backward(model)
    clipper()
    assert clipper.norms()["output"][1] == 0 and (clipper.norms()["output"][[0, 2]] > 0).all()
    assert clipper.statistics().groups["output"].clip_rate == pytest.approx(2 / 3)


# Statistics, state, training


@pytest.mark.parametrize(
    "policy",
    [
        GlobalNorm(3.0),
        ByGroup({"recurrent": GlobalNorm(2.0), "output": Value(0.7)}),
        chain(Value(1.0), GlobalNorm(3.0), Value(0.8)),
        chain(GlobalNorm(3.0), ByGroup({"input": chain(GlobalNorm(1.0), AGC(0.5))})),
        AGC(0.5),
        AutoClip(50.0),
        ZClip(warmup=2, z_threshold=0.3),
    ],
    ids=str,
)
def test_statistics_are_those_of_a_second_pass(policy):
    model, kept = Model(outputs=2), []
    clipper = Clipper(model, policy)
    for seed in range(12):
        backward(model, 0.3 + seed % 3, seed)
        before = {group: flat(model, group) for group in (*GROUPS, "all")}
        clipper()
        kept.append((before, {group: flat(model, group) for group in (*GROUPS, "all")}))
    for last in (None, 5):
        seen = clipper.statistics(last)
        assert (seen.steps, seen.skipped) == (last or 12, 0)
        part = kept[-(last or 12) :]
        for group, found in seen.groups.items():
            pairs = [(before[group], after[group]) for before, after in part]
            cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs]
            norms = np.array([float(a.norm()) for a, _ in pairs])
            # 1e-6: where the threshold lies at the norm itself, as in AutoClip's first step
            clips = [float(b.norm() / a.norm()) < 1 - 1e-6 for a, b in pairs]
            quotients = [float(b.norm() / a.norm()) for a, b in pairs if b.norm() < a.norm()]
            whole = np.array([float(before["all"].norm()) for before, _ in part])
            assert found.clip_rate == pytest.approx(np.mean(clips))
            assert found.cosine == pytest.approx(np.mean(cosines), rel=1e-9)
            assert found.least_cosine == pytest.approx(min(cosines), rel=1e-9)
            assert found.share == pytest.approx(np.mean((norms / whole) ** 2))
            for percent, value in found.norm.items():
                assert value == pytest.approx(np.percentile(norms, percent))
            if any(clips) and not policy == AutoClip(50.0):
                assert found.kept == pytest.approx(np.mean(quotients))
        assert sum(seen.groups[group].share for group in GROUPS) == pytest.approx(1)
        lines = str(seen).splitlines()
        assert [line.split()[0] for line in lines[2:]] == [*GROUPS, "all"]
    for group, values in clipper.norms().items():
        expected = torch.stack([before[group].norm() for before, _ in kept])
        torch.testing.assert_close(values, expected)


def test_cosine_and_norms_of_gradients_whose_squares_leave_the_range():
    model = Model(torch.float32)
    clipper = Clipper(model, Value(1e15))
    backward(model, 1e16)
    before = flat(model)
    clipper()
    cosine = float(torch.cosine_similarity(before, flat(model), dim=0))
    assert clipper.statistics().groups["all"].cosine == pytest.approx(cosine, rel=1e-5)


def test_scalars_have_stable_names():
    model = Model()
    clipper = Clipper(model, GlobalNorm(1.0), nonfinite="skip")
    assert clipper.scalars() == {"retrograde/clipping/skipped": 0}
    backward(model)
    clipper()
    scalars = clipper.scalars()
    assert set(scalars) == {"retrograde/clipping/skipped"} | {
        f"retrograde/clipping/{group}/{name}"
        for group in (*GROUPS, "all")
        for name in ("norm", "clip_rate", "cosine", "share")
    }
    assert (
        scalars["retrograde/clipping/all/clip_rate"]
        == scalars["retrograde/clipping/all/share"]
        == 1
    )


@pytest.mark.parametrize("at", [10, 270])
def test_a_resumed_clipper_goes_on_bit_for_bit(at, tmp_path, unchecked):
    policy = ByGroup(
        {
            "recurrent": chain(ZClip(warmup=15), GlobalNorm(4.0)),
            "input": AutoClip(50.0, history=20),
            "output": AutoClip(90.0),
        }
    )
    model, resumed = Model(torch.float32), None
    clipper = Clipper(model, policy, nonfinite="skip")
    for step in range(300):
        if step == at:
            torch.save(clipper.state_dict(), tmp_path / "state.pt")
            other = Model(torch.float32)
            resumed = Clipper(other, policy, nonfinite="skip")
            resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        size = math.nan if step in (5, 280) else 1 + step % 7
        backward(model, size, step)
        clipper()
        if resumed is not None:
            backward(other, size, step)
            resumed()
            assert grads(model).keys() == grads(other).keys()
            assert all(grads(model)[name].equal(grad) for name, grad in grads(other).items())
    assert clipper.skipped == 2
    assert same(clipper.state_dict(), resumed.state_dict())
    assert clipper.statistics() == resumed.statistics()


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("keep", [1, 100, 256, 300, 1000])
def test_only_so_many_steps_are_kept(keep, unchecked):
    model = nn.Linear(1, 1, bias=False)
    clipper = Clipper(model, GlobalNorm(math.inf), keep=keep)
    for step in range(1, 701):
        model.weight.grad = torch.tensor([[float(step)]])
        clipper()
    expected = list(range(max(1, 701 - keep), 701))
    assert clipper.norms()["all"].tolist() == expected
    assert len(clipper._history._blocks) * 256 <= keep + 256
    other = Clipper(nn.Linear(1, 1, bias=False), GlobalNorm(math.inf), keep=keep)
    other.load_state_dict(clipper.state_dict())
    assert other.norms()["all"].tolist() == expected


def train(how, steps=20):
    torch.manual_seed(0)
    model = Model(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    clipper = Clipper(model, GlobalNorm(0.05))
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 2)).square().mean().backward()
        if how == "torch":
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        else:
            clipper()
        optimizer.step()
    return model, clipper


def test_training_is_that_with_torchs_own():
    (expected, _), (model, clipper) = train("torch"), train("ours")
    for name, value in expected.state_dict().items():
        assert value.equal(model.state_dict()[name])
    assert 0 < clipper.statistics().groups["all"].clip_rate <= 1


class Reads(TorchDispatchMode):
    """Counts what would wait for a device: numbers read from it, and numbers sent there."""

    def __init__(self):
        super().__init__()
        self.read, self.sent = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.read += function is torch.ops.aten._local_scalar_dense.default
        self.sent += function is torch.ops.aten.lift_fresh.default  # torch.tensor(...)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "policy",
    [GlobalNorm(1.0), Value(0.1), AGC(), AutoClip(30.0), ZClip(warmup=2)]
    + [ByGroup({"recurrent": GlobalNorm(1.0), "output": chain(Value(0.1), AutoClip())})],
    ids=lambda policy: type(policy).__name__,
)
def test_a_step_reads_one_number_from_the_device(policy):
    """As clip_grad_norm_ with error_if_nonfinite does, and the first step lays out the groups."""
    model = Model()
    clipper = Clipper(model, policy)
    for seed in range(5):
        backward(model, seed=seed)
        with Reads() as reads:
            clipper()
        if seed:
            assert (reads.read, reads.sent) == (1, 0)
    backward(model)
    with Reads() as reads:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    assert reads.read >= 1


def test_no_trace_is_left():
    model = Model()
    state = torch.get_rng_state()
    clipper = Clipper(model, chain(AutoClip(), AGC()))
    model(torch.ones(4, 3, 2, dtype=torch.float64)).sum().backward()
    weights = copy.deepcopy(model.state_dict())
    clipper()
    assert all(weights[name].equal(value) for name, value in model.state_dict().items())
    assert state.equal(torch.get_rng_state())
    assert all(p.requires_grad and p.grad.grad_fn is None for p in model.parameters())
    del clipper
    gc.collect()
    for p in model.parameters():
        assert not p._post_accumulate_grad_hooks and not p._backward_hooks


def test_gradients_are_not_kept_alive():
    model = Model()
    clipper = Clipper(model, Value(0.1))
    backward(model)
    clipper()
    seen = [reference for reference, _ in clipper._seen._clipped]
    model.zero_grad()
    gc.collect()
    assert seen and not any(reference() is not None for reference in seen)


# Refusals


@pytest.mark.parametrize("value", [0, -1.0, math.nan, True, "1", None])
def test_thresholds_are_positive_numbers(value):
    for name, make in (
        ("max_norm", GlobalNorm),
        ("max_value", Value),
        ("factor", AGC),
        ("eps", lambda v: AGC(eps=v)),
        ("z_threshold", lambda v: ZClip(z_threshold=v)),
        ("clip_factor", lambda v: ZClip(clip_factor=v)),
        ("eps", lambda v: ZClip(eps=v)),
    ):
        with pytest.raises(ArgumentError, match=f"{name} must be a positive number; got"):
            refusing(make, value)


def refusing(make, *arguments, **options):
    """Without the tests' own type checks, which come before ours."""
    from support.type_checks import unchecked

    with unchecked():
        return make(*arguments, **options)


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_are_positive_integers(value):
    model = Model()
    clipper = Clipper(model, GlobalNorm(1.0))
    for name, make in (
        ("warmup", lambda v: ZClip(warmup=v)),
        ("history", lambda v: AutoClip(history=v)),
        ("keep", lambda v: Clipper(model, GlobalNorm(1.0), keep=v)),
        ("last", lambda v: clipper.statistics(v)),
    ):
        with pytest.raises(ArgumentError, match=f"{name} must be a positive integer; got"):
            refusing(make, value)


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan, "10"])
def test_a_percentile_and_an_alpha_have_their_ranges(value):
    with pytest.raises(ArgumentError, match="percentile must be from 0 to 100"):
        refusing(AutoClip, value)
    with pytest.raises(ArgumentError, match="alpha must be between 0 and 1"):
        refusing(ZClip, value)


def test_a_group_that_matches_nothing_lists_what_there_is():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with pytest.raises(ArgumentError, match="'recurrent' matches no parameter.*'output': 0.weight"):
        Clipper(model, ByGroup({"recurrent": GlobalNorm(1.0)}))
    with pytest.raises(ArgumentError, match="'inner' matches no parameter"):
        clip(Model(), chain(Value(1.0), ByGroup({"inner": GlobalNorm(1.0)})))
    with pytest.raises(ArgumentError, match="'input' matches no parameter.*there are 'recurrent'"):
        Clipper(Model(), ByGroup({"recurrent": ByGroup({"input": Value(1.0)})}))
    with pytest.raises(ArgumentError, match=r"'enc\*' of group 'own' matches no.*rnn.weight_ih_l0"):
        Clipper(Model(), GlobalNorm(1.0), groups={"own": ["rnn.*", "enc*"]})
    with pytest.raises(ArgumentError, match="no parameter of Linear has requires_grad=True"):
        Clipper(nn.Linear(1, 1).requires_grad_(False), GlobalNorm(1.0))


def test_overlapping_groups_are_refused():
    with pytest.raises(ArgumentError, match="'a' and 'b' overlap: both hold 'rnn.weight_ih_l0'"):
        Clipper(Model(), GlobalNorm(1.0), groups={"a": "rnn.*", "b": "*weight*"})
    with pytest.raises(ArgumentError, match="'all' and 'recurrent' overlap"):
        ByGroup({"all": GlobalNorm(1.0), "recurrent": GlobalNorm(1.0)})
    with pytest.raises(ArgumentError, match="a group cannot be called 'all'"):
        Clipper(Model(), GlobalNorm(1.0), groups={"all": "rnn.*"})


def test_what_is_no_policy_is_refused():
    for make in (
        lambda: chain(1.0),
        lambda: ByGroup({"all": 1.0}),
        lambda: Clipper(Model(), 1.0),
        lambda: clip(Model(), "norm"),
    ):
        with pytest.raises(ArgumentError, match="a clipping policy is needed.*got"):
            refusing(make)
    with pytest.raises(ArgumentError, match="chain needs at least one policy"):
        chain()
    with pytest.raises(ArgumentError, match="name a group and its policy"):
        ByGroup({})
    for policy in (AutoClip(), chain(ByGroup({"input": ZClip()}))):
        with pytest.raises(ArgumentError, match="looks back at earlier steps; keep a Clipper"):
            clip(Model(), policy)
    for make in (clip, Clipper):
        with pytest.raises(ArgumentError, match="nonfinite must be one of raise, skip; got"):
            refusing(make, Model(), GlobalNorm(1.0), nonfinite="ignore")


def loss_of(model):
    return model(torch.ones(4, 3, 2, dtype=torch.float64)).square().sum()


def test_clipping_before_backward_is_said():
    model = Model()
    clipper = Clipper(model, GlobalNorm(1.0))
    for call in (clipper, lambda: clip(model, GlobalNorm(1.0))):
        with pytest.raises(ClippingError, match="there are no gradients.*after loss.backward"):
            call()
    with pytest.raises(ClippingError, match="nothing has been clipped yet"):
        clipper.statistics()


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_clipping_after_the_optimisers_step_is_said(optimizer, foreach):
    model = Model()
    optimizer = optimizer(model.parameters(), lr=0.1, foreach=foreach)
    clipper = Clipper(model, GlobalNorm(1e-3))
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        with pytest.raises(ClippingError, match="the weights have changed since the backward pass"):
            clipper()
    optimizer.zero_grad()
    loss_of(model).backward()
    clipper()


@pytest.mark.parametrize("policy", [GlobalNorm(1e-3), GlobalNorm(math.inf), Value(math.inf), AGC()])
@pytest.mark.parametrize("step", [True, False])
def test_clipping_twice_is_said(policy, step):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipper = Clipper(model, policy)
    loss_of(model).backward()
    assert clipper.fresh
    clipper()
    assert not clipper.fresh
    if step:
        optimizer.step()
    with pytest.raises(ClippingError, match="have been clipped already"):
        clipper()


def test_accumulated_gradients_and_unused_parameters_are_no_mistake():
    """Clipping after each of several passes; a step in which the last layer has no part."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipper = Clipper(model, GlobalNorm(1.0))
    for set_to_none in (True, False):
        loss_of(model).backward()
        clipper()
        loss_of(model).backward()
        clipper()
        optimizer.step()
        model.rnn(torch.ones(4, 3, 2, dtype=torch.float64))[0].sum().backward()
        clipper()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model).backward()
        loss_of(model).backward()
        clipper()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_gradients_raise_or_are_skipped(value):
    model = Model()
    clipper = Clipper(model, chain(AutoClip(), ZClip(warmup=1)))
    backward(model)
    clipper()
    memory = clipper.state_dict()
    for call in (clipper, lambda: clip(model, GlobalNorm(1.0))):
        backward(model)
        model.head.bias.grad[0] = value
        before = flat(model)
        with pytest.raises(NonFiniteError, match="not finite in head.bias. They were left"):
            call()
        torch.testing.assert_close(flat(model), before, rtol=0, atol=0, equal_nan=True)
    assert same(clipper.state_dict(), memory)

    optimizer = torch.optim.Adam(model.parameters())
    skips = Clipper(model, GlobalNorm(1.0), nonfinite="skip")
    for step in range(3):
        backward(model)
        if step == 1:
            model.head.bias.grad[0] = value
        weights = copy.deepcopy(model.state_dict())
        assert skips().isfinite() == (step != 1)
        optimizer.step()
        changed = any(not weights[n].equal(w) for n, w in model.state_dict().items())
        assert changed == (step != 1)
    assert skips.skipped == skips.statistics().skipped == 1
    assert skips.statistics().steps == 2 and "1 more skipped" in str(skips.statistics())


def test_a_norm_beyond_the_range_is_not_passed_over():
    model = Model(torch.float32)
    backward(model, 1e18)
    model.rnn.weight_hh_l0.grad.fill_(1e38)
    with pytest.raises(NonFiniteError, match="norm of the gradients is inf"):
        Clipper(model, GlobalNorm(1.0))()


def test_scaled_gradients_are_refused_until_they_are_unscaled():
    model = Model(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    clipper = Clipper(model, GlobalNorm(math.inf), scaler=scaler, optimizer=optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(torch.ones(4, 3, 2)).square().sum()
        scaler.scale(loss).backward()
        with pytest.raises(ClippingError, match=r"still scaled.*scaler.unscale_\(optimizer\)"):
            clipper()
        scaler.unscale_(optimizer)
        plain = torch.autograd.grad(model(torch.ones(4, 3, 2)).square().sum(), model.parameters())
        assert float(clipper()) == pytest.approx(float(nn.utils.get_total_norm(plain)), rel=1e-5)
        scaler.step(optimizer)
        with pytest.raises(ClippingError, match=r"scaler.step\(optimizer\) has been called"):
            clipper()
        scaler.update()
    with pytest.raises(ArgumentError, match="scaler and optimizer must be given together"):
        Clipper(model, GlobalNorm(1.0), scaler=scaler)
    off = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.zero_grad()
    model(torch.ones(4, 3, 2)).square().sum().backward()
    Clipper(model, GlobalNorm(1.0), scaler=off, optimizer=optimizer)()


def test_a_scaler_that_overflows_skips_with_the_clipper():
    model = Model(torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    clipper = Clipper(model, GlobalNorm(1.0), nonfinite="skip", scaler=scaler, optimizer=optimizer)
    weights = copy.deepcopy(model.state_dict())
    scaler.scale(100 * model(torch.ones(4, 3, 2)).square().sum()).backward()
    scaler.unscale_(optimizer)
    clipper()
    scaler.step(optimizer)
    scaler.update()
    assert clipper.skipped == 1 and scaler.get_scale() == 2.0**126
    assert all(weights[name].equal(value) for name, value in model.state_dict().items())


def test_sparse_gradients_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ArgumentError, match="gradient of 'weight' is sparse"):
        Clipper(model, GlobalNorm(1.0))()


def test_a_state_of_another_clipper_is_refused():
    model = Model()
    state = Clipper(model, GlobalNorm(1.0)).state_dict()
    with pytest.raises(ArgumentError, match=r"belongs to the policy GlobalNorm\(max_norm=1.0\)"):
        Clipper(model, GlobalNorm(2.0)).load_state_dict(state)
    with pytest.raises(ArgumentError, match="belongs to the groups"):
        Clipper(model, GlobalNorm(1.0), groups={"own": "rnn.*"}).load_state_dict(state)


# Advice


@given(
    values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=200),
    rate=st.floats(0.001, 0.9),
)
def test_the_suggested_threshold_clips_as_often_as_it_says(values, rate):
    found = suggest(values, rate)
    share = np.mean(np.array(values) > found.threshold)
    assert found.clip_rate == found.bit == found.groups["all"].clip_rate == pytest.approx(share)
    assert share <= rate
    # A threshold lower by more than the rounding to three digits would clip too often.
    assert np.mean(np.array(values) >= found.threshold / 1.0101) > rate
    assert found.policy == GlobalNorm(found.threshold)


def test_suggestions_say_what_they_mean_for_each_group():
    recurrent = torch.tensor([3.0] * 95 + [40.0] * 5)
    output = torch.full((100,), 0.1, dtype=torch.float64)
    history = {
        "recurrent": recurrent,
        "output": output,
        "all": (recurrent**2 + output**2).sqrt(),
    }
    found = suggest(history, clip_rate=0.1)
    assert found.threshold == pytest.approx(3.01)
    assert (
        found.clip_rate,
        found.groups["recurrent"].clip_rate,
        found.groups["output"].clip_rate,
    ) == (0.05, 0.05, 0)
    text = str(found)
    assert "Clip the norm at 3.01: it would have clipped 5 % of the steps (100 steps)." in text
    assert "Applied to the output group alone it would have clipped no step; 0.1 would be" in text
    assert "13.3 times the median" in text


def test_suggestions_from_a_clipper_and_from_few_or_broken_norms():
    model = Model()
    clipper = Clipper(model, GlobalNorm(math.inf))
    for seed in range(30):
        backward(model, 1 + 20 * (seed == 7), seed)
        clipper()
    found = suggest(clipper.norms(), 0.05)
    assert list(found.groups) == [*GROUPS, "all"] and found.steps == 30
    assert found.clip_rate == found.groups["output"].clip_rate == pytest.approx(1 / 30)
    few = suggest({"own": [1.0, 2.0, math.inf, math.nan]})
    assert (few.steps, few.unused, few.groups["own"].largest) == (2, 2, 2.0)
    assert "2 more not finite" in str(few) and "few norms" in str(few)


def test_histories_that_say_nothing_are_refused():
    for history, match in (
        ([], "must hold a finite norm above zero"),
        ([0.0, 0.0], "must hold a finite norm above zero"),
        ([math.nan], "must hold a finite norm above zero"),
        ([1.0, -1.0], "norms must not be negative"),
        ({"a": [1.0], "b": [1.0]}, "the norms of the whole gradient are missing"),
        ({"all": [1.0], "b": [1.0, 2.0]}, "one number per step, as many in every group"),
        (torch.ones(2, 2), "one number per step"),
    ):
        with pytest.raises(ArgumentError, match=match):
            suggest(history)
    for rate in (0, 1, math.nan, True):
        with pytest.raises(ArgumentError, match="clip_rate must be a share between 0 and 1"):
            refusing(suggest, [1.0], rate)
