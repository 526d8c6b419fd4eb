"""Models that keep tensors of their last pass are diagnosed, on copies, and stay as they are."""

import dataclasses
import threading
from collections import deque
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde.diagnosis.copies import copied_model, copy_of
from retrograde.errors import ArgumentError
from support.type_checks import unchecked

X = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))


def loss_of(model, x):
    return model(x).square().mean()


@dataclasses.dataclass
class Cache:
    value: object = None


class Plain:
    def __init__(self, value):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


HOLDERS = {
    "dict": lambda value: {"k": value},
    "list": lambda value: [1, value],
    "tuple": lambda value: (value, "b"),
    "set": lambda value: {value} if isinstance(value, torch.Tensor) else [value],
    "deque": lambda value: deque([value], maxlen=2),
    "dataclass": Cache,
    "object": Plain,
    "slots": Slotted,
    "partial": lambda value: partial(max, value),
}


class Keeps(nn.Module):
    def __init__(self, *holders):
        super().__init__()
        torch.manual_seed(1)
        self.lstm, self.holders, self.last = nn.LSTM(3, 5), holders, None

    def forward(self, x):
        output, _ = self.lstm(x)
        self.last = output.softmax(-1)
        for holder in self.holders:
            self.last = HOLDERS[holder](self.last)
        return output


@settings(max_examples=20)
@given(holders=st.lists(st.sampled_from(sorted(HOLDERS)), max_size=3))
def test_what_is_kept_anywhere_in_a_model_is_copied_without_its_graph(holders):
    model = Keeps(*holders)
    loss_of(model, X).backward()
    before = model.last
    with unchecked():
        copy = copy_of(model)
        (kept,) = copy.kept.values()
        loss_of(copy.model, X).backward()
    assert model.last is before and not copy.reached  # looked at by nobody
    assert kept.is_leaf and kept.shape == (6, 4, 5)
    assert all(place.startswith("model.last") for place in copy.kept)


def test_a_model_that_has_run_is_diagnosed_as_one_that_has_not():
    fresh, ran = Keeps("dict", "list"), Keeps("dict", "list")
    loss_of(ran, X).backward()
    gradients = [parameter.grad.clone() for parameter in ran.parameters()]
    reports = [retrograde.diagnose(m, X, loss_of, remedies=False) for m in (fresh, ran)]
    assert reports[0].findings == reports[1].findings
    for parameter, gradient in zip(ran.parameters(), gradients, strict=True):
        assert parameter.grad.equal(gradient)
    assert ran.last[1]["k"].grad_fn is not None


class Carries(nn.Module):
    """Hands its state on from pass to pass, with its graph or without."""

    def __init__(self, detach):
        super().__init__()
        torch.manual_seed(1)
        self.lstm, self.detach, self.memory = nn.LSTM(3, 5), detach, {"state": None}

    def forward(self, x):
        output, state = self.lstm(x, self.memory["state"])
        self.memory["state"] = tuple(part.detach() if self.detach else part for part in state)
        return output


@pytest.mark.parametrize("detach", [False, True])
def test_a_graph_that_is_carried_on_is_a_finding(detach):
    model = Carries(detach)
    loss_of(model, X).backward()
    report = retrograde.diagnose(model, X, loss_of)
    found = [finding for finding in report.findings if finding.rule == "kept-graph"]
    assert bool(found) != detach
    if found:
        assert "model.memory['state'][0]" in found[0].message and found[0].layer is None
        assert ".detach()" in found[0].advice[0] and "kept-graph" in str(report)
    assert model.memory["state"][0].requires_grad != detach


def in_place(model, x):
    model.last.mul_(0)
    return loss_of(model, x)


def test_what_is_kept_can_be_changed_in_place_and_copied_again():
    model = Keeps()
    loss_of(model, X).backward()
    copy = copied_model(copied_model(model))
    assert copy.last.requires_grad and not copy.last.is_leaf
    retrograde.diagnose(model, X, in_place, remedies=False)
    assert model.last.any()


class WeightDropout(nn.Module):
    """As fastai's: the recurrent weights are dropped out anew in each call."""

    def __init__(self, layer):
        super().__init__()
        self.layer, raw = layer, layer.weight_hh_l0
        self.raw = nn.Parameter(raw.detach().clone())
        del layer._parameters["weight_hh_l0"]
        layer.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, training=False)
        layer.flatten_parameters = lambda: None

    def forward(self, x):
        self.layer.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, training=self.training)
        return self.layer(x)[0]


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.layer = norm(nn.LSTM(3, 5), "weight_hh_l0")

    def forward(self, x):
        return self.layer(x)[0]


COMPUTED = {
    "weight_norm": lambda: Normed(nn.utils.weight_norm),
    "spectral_norm": lambda: Normed(nn.utils.spectral_norm),
    "WeightDropout": lambda: WeightDropout(nn.LSTM(3, 5)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("run_before", [False, True])
def test_weights_computed_by_older_means(kind, run_before):
    torch.manual_seed(2)
    model = COMPUTED[kind]().double().eval()
    x = X.double()
    if run_before:
        loss_of(model, x).backward()
        model.zero_grad()
    report = retrograde.diagnose(model, x, loss_of, remedies=False)
    assert [layer.name for layer in report.layers] == ["layer"]
    assert "kept-graph" not in [finding.rule for finding in report.findings]
    with retrograde.record(model) as recording:
        loss_of(model, x).backward()
    assert retrograde.decompose(recording).residual < 1e-12


@pytest.mark.parametrize(
    ("put", "place"),
    [
        (lambda m: setattr(m, "lock", threading.Lock()), r"model\.lock is"),
        (lambda m: setattr(m, "pool", {"a": [0, threading.Lock()]}), r"model\.pool\['a'\]\[1\] is"),
        (lambda m: setattr(m.lstm, "source", iter(i for i in "a")), r"model\.lstm\.source is"),
        (lambda m: setattr(m, "cache", Cache(Plain(threading.Lock()))), r"cache\.value\.value is"),
    ],
)
def test_what_cannot_be_copied_is_named_by_its_place(put, place):
    model = Keeps()
    put(model)
    with pytest.raises(ArgumentError, match=f"the model cannot be copied: .*{place} in the way"):
        retrograde.diagnose(model, X, loss_of)
