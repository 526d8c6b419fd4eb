"""A report says one thing: every number once, every count the same, severity by what was seen."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import retrograde
from retrograde import _words
from retrograde.diagnosis import RULES, Evidence, Finding
from retrograde.diagnosis.finding import KINDS
from retrograde.diagnosis.order import in_order
from retrograde.report import compare
from retrograde.report.text import expected
from retrograde.tasks.trial_set import BY_NAME
from retrograde.tasks.trial_set.models import Forecaster, squared

pytestmark = pytest.mark.usefixtures("unchecked")

SHOWN = (
    "huge recurrent weights (RNN)",
    "input that is not scaled",
    "half of the relu units dead",
    "forget bias 1 in both biases",
    "NaN in one gate",
    "forget bias -2",
    "a fast unit drowns a slow one",
    "near and far errors opposed",
    "output layer times 100",
    "LSTM, forget bias 3",
)


def report_of(name, **options):
    trial = BY_NAME[name]
    model, batch, loss_fn = trial.build()
    options = {"remedies": None, **trial.options, **options}
    return retrograde.diagnose(model, batch, loss_fn, **options)


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_report_says_it_says_once(name):
    report = report_of(name)
    text = " ".join(str(report).split())
    assert len(re.findall(r"[.!?](?: |$)", report.summary)) == 2, report.summary
    assert not re.search(r"\(and \d+ more\)|-0\.0%|by 0\.\d+ a step|below 0", text)
    found = {finding.rule for finding in report.findings}
    assert {row[1] for row in report.checked if row[2] == "found"} >= found
    results = [row[2] for row in report.checked]
    assert len(results) == sum(results.count(r) for r in ("passed", "found", "not applicable"))
    assert all(row[4] for row in report.checked if row[2] == "not applicable")
    for finding in report.findings:
        for each in finding.evidence:
            number = _words.value(each.value, each.unit, each.name)
            if not number.lstrip("-").isdigit():  # a whole number may be a step, a layer, a lag
                assert number not in finding.message, (finding.rule, each)
                assert not any(number in words for words in (*finding.causes, *finding.advice))


def test_errors_and_warnings_come_by_question_and_remarks_after_them():
    rules = ("vanishing", "samples-mixed", "non-finite", "exploding", "window", "unreached")
    severities = ("error", "info", "error", "warning", "info", "warning")
    found = [Finding(r, s, None, "") for r, s in zip(rules, severities, strict=True)]
    assert [f.rule for f in in_order(found)] == [
        *("unreached", "non-finite", "exploding", "vanishing"),
        *("samples-mixed", "window"),
    ]
    kinds = [KINDS.index(rule.kind) for rule in RULES.values()]
    assert kinds == sorted(kinds), "the rules stand in the order in which they are told"


def test_a_lag_that_nobody_named_is_a_remark_and_one_lost_in_rounding_an_error():
    torch.manual_seed(0)
    model, batch = Forecaster(nn.RNN(3, 16)), (torch.randn(64, 4, 3), torch.randn(4, 1))

    with torch.no_grad():
        model.recurrent.weight_hh_l0.mul_(0.6)

    def severities(**options):
        found = retrograde.diagnose(model, batch, squared, remedies=None, **options).findings
        return {f.severity for f in found if f.rule == "vanishing"}

    assert severities() == {"info"}
    assert severities(needs_lag=8) == {"warning"}
    assert severities(needs_lag=60) == {"error"}


@pytest.mark.parametrize("scale", [1e-3, 0.0])
def test_an_output_layer_that_starts_small_is_no_trouble(scale):
    torch.manual_seed(0)
    model = Forecaster(nn.GRU(3, 16))
    with torch.no_grad():
        model.head.weight.mul_(scale)
        model.head.bias.fill_(5e4 if scale else 0.0)
    y = torch.randn(8, 1) + model.head.bias.detach()
    report = retrograde.diagnose(model, (torch.randn(30, 8, 3), y), squared, remedies=None)
    assert report.ok, report.findings


def test_a_solved_model_is_never_called_worse_and_the_loss_comes_first():
    torch.manual_seed(0)
    model, x = Forecaster(nn.LSTM(1, 8), 8), torch.randn(30, 16, 1)
    batch = x, x[-1].clone()
    before = retrograde.diagnose(model, batch, squared, remedies=None, needs_lag=25)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(120):
        optimizer.zero_grad()
        squared(model, batch).backward()
        optimizer.step()
    after = retrograde.diagnose(model, batch, squared, remedies=None, needs_lag=25)
    assert after.solved and after.ok
    comparison = compare(before, after)
    assert comparison.loss.verdict == "better" and not comparison.worse
    assert comparison.summary.startswith("The loss went from ")
    assert str(comparison).index("loss") < str(comparison).index("reach")
    other = compare(replace(after, loss=after.loss / 2), after)
    assert other.loss.verdict == "changed" and not other.worse
    assert compare(after, replace(before, loss=after.loss * 2)).loss.verdict == "worse"


def test_a_lag_is_judged_end_to_end():
    """Through a decoder into its encoder: each holds its own part of it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.GRU(2, 8), nn.GRU(2, 8)
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.decoder(x[20:], self.encoder(x[:20])[1])[0][-1])

    torch.manual_seed(0)
    model, batch = Model(), (torch.randn(26, 4, 2), torch.randn(4, 1))
    with torch.no_grad():
        for layer in (model.encoder, model.decoder):
            layer.bias_ih_l0[8:16] = 5.0
    open_gates = retrograde.diagnose(model, batch, squared, remedies=None, needs_lag=20)
    assert open_gates.ok and "within reach" in open_gates.summary
    with torch.no_grad():
        model.encoder.bias_ih_l0[8:16] = -1.0
    shut = retrograde.diagnose(model, batch, squared, remedies=None, needs_lag=20)
    (finding,) = (f for f in shut.findings if f.rule == "vanishing")
    assert finding.layer == "encoder" and finding.evidence[0].threshold == 14  # of 20, 6 in decoder


@pytest.mark.parametrize(
    ("value", "unit", "threshold", "healthy", "words"),
    [
        (3.0, "values", 0.0, "below", "none expected"),
        (0.4, "of the units", 0.1, "below", "at most 10.0% expected"),
        (9.1, "powers of two", 6.64, "below", "at most 2^6.6 expected"),
        (7.0, "steps", 20.0, "above", "at least 20 expected"),
        (0.3, "", None, "above", ""),
    ],
)
def test_what_a_number_was_compared_with(value, unit, threshold, healthy, words):
    assert expected(Evidence("number", value, unit, threshold, healthy)) == words
