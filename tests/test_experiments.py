"""Troubles of whole models are named first, and healthy models are left alone."""

import warnings

import pytest
import torch
from troubles import HEALTHY, SICK

import retrograde

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
    serious = "warning" if rule in ("initial-state", "target-scale", "no-time") else "error"
    assert first.severity in (serious, "error")
    assert first.message and first.evidence and first.causes and first.advice
    assert next(check.status for check in report.checks if check.name == rule) == "found"


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_is_left_alone(name):
    report = looked_at(HEALTHY[name])
    memory = ("forget-gate-too-short", "vanishing", "near-lags-dominate")
    said = [f for f in report.findings if f.severity != "info" and f.rule not in memory]
    assert not said, [(f.rule, f.message) for f in said]
