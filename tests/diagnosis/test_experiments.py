"""Troubles of whole models are named first, and healthy models are left alone."""

import warnings

import pytest
import torch

import retrograde
from support.troubles import HEALTHY, SICK

pytestmark = pytest.mark.usefixtures("unchecked")


def looked_at(build):
    model, batch, loss_fn, lag = build()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some troubles are warned of by torch itself
        report = retrograde.diagnose(model, batch, loss_fn, needs_lag=lag, remedies=False)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    return report


@pytest.mark.parametrize("name", SICK)
def test_the_trouble_is_named_first(name):
    rule, build = SICK[name]
    report = looked_at(build)
    assert report.findings, [check for check in report.checks if check.name == rule]
    first = report.findings[0]
    assert first.rule == rule, [(f.rule, f.message) for f in report.findings]
    serious = (
        "warning"
        if rule in ("initial-state", "target-scale", "input-scale", "no-time", "weight-scale")
        else "error"
    )
    assert first.severity in (serious, "error")
    assert first.message and first.evidence and first.causes and first.advice
    assert next(check.status for check in report.checks if check.name == rule) == "found"


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_is_left_alone(name):
    report = looked_at(HEALTHY[name])
    memory = ("forget-gate-too-short", "vanishing", "near-lags-dominate")
    said = [f for f in report.findings if f.severity != "info" and f.rule not in memory]
    assert not said, [(f.rule, f.message) for f in said]


@pytest.mark.parametrize(
    ("threshold", "value", "name"),
    [
        ("target_scale", 1e9, "targets of 10,000"),
        ("flushed_share", 1.0, "float16 without scaling"),
        ("depth_ratio", -99.0, "eight layers"),
        ("input_scale", 1e9, "features of 1,000"),
        ("saturated_share", 1.0, "features of 1,000"),
    ],
)
def test_every_threshold_of_an_experiment_changes_its_finding(threshold, value, name):
    rule, build = SICK[name]
    model, batch, loss_fn, _ = build()
    found = [
        retrograde.diagnose(model, batch, loss_fn, thresholds=changed, remedies=False).findings
        for changed in ({}, {threshold: value})
    ]
    assert [rule in {each.rule for each in some} for some in found] == [True, False]


def test_a_solved_model_is_not_sick():
    """What the gradient of a solved model cannot do is a remark."""
    torch.manual_seed(0)
    model, x = torch.nn.GRU(1, 8, batch_first=True), torch.randn(16, 30, 1)
    y = x.roll(1, 1) * (torch.arange(30) > 0)[:, None]  # the input one step ago
    optimizer = torch.optim.Adam(model.parameters(), 0.02)

    def loss_fn(model, batch):
        return (model(batch[0])[0][..., :1] - 0.3 * batch[1]).square().mean()

    options = {"needs_lag": 25, "remedies": False}
    fresh = retrograde.diagnose(model, (x, y), loss_fn, **options)
    for _ in range(300):
        optimizer.zero_grad()
        loss_fn(model, (x, y)).backward()
        optimizer.step()
    solved = retrograde.diagnose(model, (x, y), loss_fn, **options)
    assert not fresh.ok and "solved" not in {each.rule for each in fresh.findings}
    assert solved.ok and "solved" in {each.rule for each in solved.findings}
    assert {each.severity for each in solved.findings} == {"info"}
    strict = retrograde.diagnose(model, (x, y), loss_fn, thresholds={"solved_share": 0}, **options)
    assert "solved" not in {each.rule for each in strict.findings}


def test_an_experiment_that_cannot_be_made_says_why():
    """A loss that runs once alone, and one in which nothing is compared."""
    model, (x, y), _, _ = HEALTHY["batch first"]()
    calls = []

    def once(model, batch):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("only once")
        return model(batch[0]).square().mean()

    report = retrograde.diagnose(model, (x, y), once, remedies=False)
    why = {check.reason for check in report.checks if check.name == "samples-mixed"}
    assert why == {"the model could not be run again: RuntimeError: only once"}
    report = retrograde.diagnose(
        model, (x, y), lambda m, b: m(b[0]).square().mean(), remedies=False
    )
    status = {check.name: (check.status, check.reason) for check in report.checks}
    assert status["broadcast"][0] == "not applicable" and status["samples-mixed"][0] == "passed"
    assert status["vanishing-in-depth"] == ("not applicable", "there is one recurrent layer")


def test_one_layer_alone():
    rule, build = SICK["encoder cut off by .data"]
    model, batch, loss_fn, _ = build()
    report = retrograde.diagnose(model, batch, loss_fn, layer="decoder", remedies=False)
    assert rule not in {each.rule for each in report.findings}
