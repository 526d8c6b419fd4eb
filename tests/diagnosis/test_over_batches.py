"""Findings over several batches: what holds in most is told with its spread, the rest is not."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retrograde
from retrograde.diagnosis import Check, Evidence, Finding, Spread
from retrograde.diagnosis.over_batches import Seen, over_batches

pytestmark = pytest.mark.usefixtures("unchecked")


def model():
    torch.manual_seed(0)
    return nn.LSTM(3, 8)


def loss_fn(model, x):
    return model(x)[0][-1].square().mean()


def batches(large):
    """A function of a seed whose features are large for some seeds."""

    def batch(seed):
        return torch.randn(12, 6, 3) * (3000 if seed in large else 1)

    return batch


@pytest.mark.parametrize("large", [range(1, 8), (0, 1, 2, 3)])
def test_what_holds_in_most_batches_is_told_with_its_spread(large, tmp_path):
    report = retrograde.diagnose(model(), batches(large), loss_fn, remedies="pass")
    rules = {finding.rule: finding for finding in report.findings}
    checks = {check.name: check for check in report.checks}
    if len(large) == 4:  # not in most
        assert "input-scale" not in rules and "saturated" not in rules
        assert "holds in 4 of 8 batches only: input-scale" in str(report.notes)
        assert checks["input-scale"].status == "passed"
        assert checks["input-scale"].reason == "found in 4 of 8 batches only"
        return
    found = rules["input-scale"]
    assert (found.batches.found, found.batches.of) == (7, 8)
    sizes = [float(batch_rms(batches(large), seed)) for seed in range(1, 8)]
    assert found.batches.values == pytest.approx(sizes, rel=1e-4)
    assert checks["input-scale"].status == "found"
    assert not found.trials, "there is nothing to mend in the batch that is shown"
    report.to_json(tmp_path / "a.json")
    again = retrograde.Report.from_json(tmp_path / "a.json")
    assert again.findings == report.findings
    for shown in (str(again), report._repr_html_()):
        assert "in 7 of 8 batches, root mean square of the largest feature 3" in shown


def test_a_nan_in_one_batch_of_eight_is_an_error():
    def batch(seed):
        x = torch.randn(12, 6, 3)
        if seed == 5:
            x[3, 1, 0] = torch.nan
        return x

    report = retrograde.diagnose(model(), batch, loss_fn, remedies=None)
    first = report.findings[0]
    assert (first.rule, first.severity) == ("non-finite-data", "error")
    assert (first.batches.found, first.batches.of) == (1, 8)
    assert not report.ok
    assert "and errors of soundness that any of them shows" in str(report.notes)


def batch_rms(batch, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return batch(seed).double().square().mean((0, 1)).sqrt().max()


def test_a_loader_is_looked_at_in_eight_batches_and_a_batch_that_fails_is_counted():
    x = torch.randn(20, 12, 3)
    seen = []

    def loss(model, batch):
        x = batch[0].transpose(0, 1)
        seen.append(len(x[0]))
        if len(x[0]) == 1:
            raise ValueError("a batch of one")
        return loss_fn(model, x)

    report = retrograde.diagnose(model(), DataLoader(TensorDataset(x), 3), loss, remedies=None)
    assert {3, 2} <= set(seen), "20 samples in batches of three"
    assert "Findings are those of most of 7 batches." in report.notes
    alone = DataLoader(TensorDataset(x[:7]), 3)
    report = retrograde.diagnose(model(), alone, loss, remedies=None)
    assert "1 further batch could not be run." in report.notes
    one = retrograde.diagnose(model(), x.transpose(0, 1), loss_fn, remedies=None)
    assert all(finding.batches is None for finding in one.findings)


def found(severity, value):
    return Finding("vanishing", severity, "a", "words.", (Evidence("reach", value, "steps"),))


def test_the_severity_is_that_of_most_and_a_number_that_is_none_is_left_out():
    nothing = Seen((), (Check("vanishing", "a", "passed"),))
    some = [
        Seen((found(severity, value),), (Check("vanishing", "a", "found"),))
        for severity, value in (("error", 3.0), ("info", float("nan")), ("info", 5.0))
    ]
    (told,), (check,), notes = over_batches([nothing, *some])
    assert told.severity == "info" and told.batches == Spread(3, 4, (3.0, 5.0))
    assert check.status == "found" and notes == ["Findings are those of most of 4 batches."]
    (told,), _, notes = over_batches(some[:1])
    assert told.batches is None and not notes
    told, (check,), notes = over_batches([some[0], nothing])
    assert not told and check.reason == "found in 1 of 2 batches only"
    assert notes[1].endswith("vanishing (a). words.")
