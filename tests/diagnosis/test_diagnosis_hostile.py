"""Models, batches and loss functions that stand in a diagnosis's way, each found by trying."""

import copy
import math
import random
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import retrograde
from retrograde.diagnosis import limits
from retrograde.diagnosis.need import season_of
from retrograde.diagnosis.optimising import train
from retrograde.diagnosis.remedies import REMEDIES, Remedy, Target, assignment, expression
from retrograde.errors import ArgumentError
from retrograde.tasks.trial_set import BY_NAME
from retrograde.tasks.trial_set.models import squared

pytestmark = pytest.mark.usefixtures("unchecked")


class Net(nn.Module):
    """A layer in a place that is no identifier, read at its last step."""

    def __init__(self, layer, place="0"):
        super().__init__()
        self.layers = nn.ModuleDict({place: layer})
        self.head = nn.Linear(layer.hidden_size, 1)

    def forward(self, x):
        return self.head(next(iter(self.layers.values()))(x)[0][-1])


def made(kind, dtype=torch.float32, factor=1.0, place="0"):
    torch.manual_seed(0)
    model = Net(kind(3, 6), place)
    with torch.no_grad():
        model.layers[place].weight_hh_l0 *= factor
    return model.to(dtype), (torch.randn(16, 2, 3, dtype=dtype), torch.randn(2, 1, dtype=dtype))


def loss_fn(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def trials_of(report):
    return {trial.remedy: trial for finding in report.findings for trial in finding.trials}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 12.0])
def test_remedies_in_low_precision(dtype, factor):
    model, batch = made(nn.GRU, dtype, factor)
    trials = trials_of(retrograde.diagnose(model, batch, loss_fn, needs_lag=12, remedies="pass"))
    assert {"orthogonal", "spectral-norm" if factor > 1 else "spectral-radius"} <= set(trials)
    assert all(trial.loss_after is not None for trial in trials.values()), "each could be run"


@pytest.mark.parametrize("place", ["0", "lambda", "ü x-<script>", "plain"])
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        (nn.GRU, "lstm"),
        (nn.LSTM, "no-forget-gate"),
        (nn.LSTM, "truncated-1997"),
        (nn.GRU, "chrono"),
        (nn.LSTM, "clip-inside"),
    ],
)
def test_the_printed_lines_run_wherever_the_layer_is(place, kind, remedy):
    """In float64: a layer put in the place of another must be as wide."""
    model, (x, _) = made(kind, torch.float64, place=place)
    target = Target(copy.deepcopy(model), f"layers.{place}", f"layers.{place}", 20, (), 1.0)
    applied = REMEDIES[remedy].apply(target)
    exec(applied.code, {"model": model, "torch": torch, "retrograde": retrograde})
    assert type(model.layers[place]) is type(target.layer)
    assert model.layers[place].weight_hh_l0.dtype == torch.float64
    assert model(x).shape == (2, 1)


def test_places_as_python():
    assert expression("encoder.lstm") == "model.encoder.lstm"
    assert expression("d.class") == "model.get_submodule('d.class')"
    assert assignment("", "x") == "model = x" and assignment("a.b", "x") == "model.a.b = x"
    assert assignment("a.0", "x") == "model.set_submodule('a.0', x)"


def test_the_lines_that_scale_the_input_leave_a_constant_feature_finite():
    model, (x, y) = made(nn.LSTM)
    x = torch.cat([1000 + 400 * x[..., :2], torch.full((16, 2, 1), 500.0)], -1)
    trial = trials_of(retrograde.diagnose(model, (x, y), loss_fn, remedies="pass"))[
        "standardise-input"
    ]
    names = {"x": x}
    exec(trial.code, names)
    assert bool(names["x"].isfinite().all())
    assert loss_fn(model, (names["x"], y)).item() == pytest.approx(trial.loss_after, rel=1e-4)


@pytest.mark.parametrize("make", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_computed_weights(make):
    model, batch = made(nn.LSTM, factor=20.0)
    make(model.layers["0"], "weight_hh_l0")
    report = retrograde.diagnose(model, batch, loss_fn, needs_lag=12, remedies="pass")
    assert report.findings and "truncated-1997" not in trials_of(report)


def test_a_remedy_that_fails_is_said(monkeypatch):
    def fails(target):
        raise RuntimeError("not for this one")

    monkeypatch.setitem(REMEDIES, "chrono", Remedy("chrono", "Something.", fails))
    model, batch = made(nn.LSTM)
    trial = trials_of(retrograde.diagnose(model, batch, loss_fn, needs_lag=12, remedies="pass"))[
        "chrono"
    ]
    assert trial.note == "RuntimeError: not for this one"
    assert trial.title == "Something" and trial.after is None


def test_models_that_cannot_be_copied():
    model, batch = made(nn.LSTM)
    model.lock = threading.Lock()
    with pytest.raises(
        ArgumentError, match="cannot be copied: model.lock is in the way .TypeError: cannot pickle"
    ):
        retrograde.diagnose(model, batch, loss_fn)
    model.lock = model(batch[0])  # what an earlier pass left behind, with its graph
    assert retrograde.diagnose(model, batch, loss_fn, remedies=False).layers


def test_a_loss_that_runs_the_original():
    model, batch = made(nn.LSTM)
    model.norm = nn.BatchNorm1d(3)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = copy.deepcopy(model.state_dict())

    def original(_, batch):
        model.eval().norm.train()
        return loss_fn(model, batch) + model.norm(batch[0][0]).sum()

    with pytest.raises(ArgumentError, match="must use the model that it is given"):
        retrograde.diagnose(model, batch, original)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert model.training and torch.equal(model.head.weight.grad, torch.ones(1, 6))
    assert model.head.bias.grad is None


def test_a_loss_that_goes_backward_itself():
    def backward(model, batch):
        loss = loss_fn(model, batch)
        loss.backward()
        return loss

    model, batch = made(nn.LSTM)
    with pytest.raises(ArgumentError, match="must leave backward.. to retrograde"):
        retrograde.diagnose(model, batch, backward)


def test_a_batch_that_the_loss_changes():
    """Every pass gets the batch as it was given."""
    model, (x, y) = made(nn.LSTM)
    batch = {"x": x.clone().requires_grad_(), "y": y.clone()}

    def changing(model, batch):
        return loss_fn(model, (batch["x"], batch.pop("y").mul_(2.0)))

    report = retrograde.diagnose(model, batch, changing, needs_lag=12, remedies="pass")
    assert all(trial.after is not None for trial in trials_of(report).values())
    assert torch.equal(batch["y"], y) and batch["x"].grad is None
    given = iter([(x, y)] * 100)  # cannot be copied
    again = retrograde.diagnose(
        model, given, lambda m, b: loss_fn(m, next(b)), needs_lag=12, remedies="pass"
    )
    assert trials_of(again)


def test_random_numbers_of_python_are_seeded_and_left_alone():
    """Teacher forcing by random.random(), as in torch's tutorials."""
    model, (x, y) = made(nn.LSTM)

    def forced(model, batch):
        return loss_fn(model, (x, y)) * random.random()

    random.seed(5)
    state = random.getstate()
    report = retrograde.diagnose(model, None, forced, needs_lag=12, remedies="pass")
    assert random.getstate() == state
    random.seed(6)
    assert (
        retrograde.diagnose(model, None, forced, needs_lag=12, remedies="pass").findings
        == report.findings
    )


def test_twice_a_season_is_no_season():
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(100.0).view(-1, 1, 1)
    for period in (7, 10, 12, 24):
        for _ in range(10):
            phase = 7 * torch.rand(1, 8, 1, generator=generator)
            noise = 0.2 * torch.randn(100, 8, 1, generator=generator)
            season = torch.sin(2 * math.pi * time / period + phase)
            assert season_of(season + noise, 0.5)[0] == period


def test_the_clipping_of_the_parts_is_trained_with():
    model, batch, _ = BY_NAME["output layer times 100"].build()
    target = Target(copy.deepcopy(model), "recurrent", "recurrent", 1, ("head",), 1.0)
    applied = REMEDIES["clip-groups"].apply(target)

    def trained(afterwards=None):
        one = copy.deepcopy(model)
        adam = torch.optim.Adam(one.parameters(), lr=1e-3)
        return train(one, lambda step: batch, squared, adam, 4, afterwards)

    plain, clipped = trained(), trained(applied.afterwards)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = squared(model, batch)
        losses.append(float(loss.detach()))
        loss.backward()
        applied.afterwards(model)
        optimizer.step()
    assert clipped == pytest.approx(losses, rel=1e-5)
    assert clipped != plain


def test_training_that_fails_is_said():
    model, batch = made(nn.LSTM)
    passes = 0

    def fails(model, batch):
        nonlocal passes
        passes += 1
        if passes > 9:
            raise RuntimeError("worn out")
        return loss_fn(model, batch)

    report = retrograde.diagnose(model, batch, fails, needs_lag=12, try_training=3)
    notes = [trial.note for trial in trials_of(report).values()]
    assert any(note.endswith("could not be trained: RuntimeError: worn out") for note in notes)


@pytest.mark.parametrize("wrong", ["24", 2.5, math.nan, True, 0])
def test_lags_and_steps_that_are_none(wrong):
    model, batch = made(nn.LSTM)
    with pytest.raises(ArgumentError, match="needs_lag must be a positive number of steps"):
        retrograde.diagnose(model, batch, loss_fn, needs_lag=wrong)
    if wrong != 0:
        with pytest.raises(ArgumentError, match="try_training must be a number of steps"):
            retrograde.diagnose(model, batch, loss_fn, try_training=wrong)
    lag = torch.tensor(20)  # a number of another kind
    assert retrograde.diagnose(model, batch, loss_fn, needs_lag=lag).settings.needs_lag == 20


def test_what_is_no_model():
    with pytest.raises(ArgumentError, match="a recording, or a model"):
        retrograde.diagnose("model", None, loss_fn)


@pytest.mark.parametrize("value", [math.nan, "a", None])
def test_thresholds_that_are_no_numbers(value):
    with pytest.raises(ArgumentError, match="the threshold 'conflict' must be a number"):
        limits({"conflict": value})


@pytest.mark.parametrize("fraction", [-math.inf, -1.0, 5.0, math.inf])
def test_a_part_of_the_sequence_that_is_none_is_refused(fraction):
    with pytest.raises(ArgumentError, match="'reach_fraction' must be a number from 0 to 1; got"):
        limits({"reach_fraction": fraction})


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_part_of_the_sequence_is_at_most_all_of_it(fraction):
    model, batch = made(nn.LSTM)
    thresholds = {"reach_fraction": fraction}
    report = retrograde.diagnose(model, batch, loss_fn, thresholds=thresholds, remedies=False)
    needed = {f.rule: f.evidence[0].threshold for f in report.findings}.get("vanishing")
    assert needed == (15 if fraction > 0 else None)


def test_inside_inference_mode():
    with torch.inference_mode():
        model, batch = made(nn.LSTM)
        assert retrograde.diagnose(model, batch, loss_fn, needs_lag=12, remedies="pass").findings
        assert torch.is_inference_mode_enabled()


def test_seeds_that_are_none():
    model, batch = made(nn.LSTM)
    with pytest.raises(ArgumentError, match="seed must be an integer from .*; got 'a'"):
        retrograde.diagnose(model, batch, loss_fn, seed="a")
