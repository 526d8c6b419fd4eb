"""What the experiments on whole models rest on, and where they cannot be made."""

import pytest
import torch

import retrograde
from retrograde.tasks.trial_set import BY_NAME

pytestmark = pytest.mark.usefixtures("unchecked")


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
    case = BY_NAME[name]
    model, batch, loss_fn = case.build()
    found = [
        retrograde.diagnose(model, batch, loss_fn, thresholds=changed, remedies=False).findings
        for changed in ({}, {threshold: value})
    ]
    assert [case.kind in {each.rule for each in some} for some in found] == [True, False]


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
    model, (x, y), _ = BY_NAME["batch first"].build()
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
    model, batch, loss_fn = BY_NAME["encoder cut off by .data"].build()
    report = retrograde.diagnose(model, batch, loss_fn, layer="decoder", remedies=False)
    assert "unreached" not in {each.rule for each in report.findings}
