"""The set that the diagnosis is held to: well formed, and the half to develop on answered right."""

import hashlib
import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrograde.diagnosis import RULES
from retrograde.diagnosis.experiments import EXPERIMENTS
from retrograde.errors import RetrogradeError
from retrograde.tasks.trial_set import BY_NAME, CASES, HALVES, half
from retrograde.tasks.trial_set.case import HEALTHY, REFUSED
from retrograde.tasks.trial_set.judging import judge, judgement_of, report_on

pytestmark = pytest.mark.usefixtures("unchecked")

SLOW = (
    "2,000 steps of a cell, of which the last hundred matter",
    "eight layers in one module, classes of the last five steps",
    "classes of the means of sequences, batch first not said",
    "the adding problem over 100 steps, GRU as torch draws it",
    "64 units with weights from N(0, 1), the middle of 25 steps",
    "classes of the last two of up to 60 steps, read after the padding",
    "autocast to float16, a loss of weight 1e-4",
    "sums of the ends of sequences, from h_n[-1] of both directions",
    "63 of 64 packed samples read from their padding",
    "engine speeds of 10,000 beside features of 1",
)
QUICK = [
    case
    for case in half("development")
    if case.seen and case.training is None and case.name not in SLOW
]
GRADUAL = ("initial-state", "target-scale", "input-scale", "no-time", "weight-scale")
"""Experiments whose finding may be a warning; what others find is an error."""


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_the_trouble_is_named_and_a_healthy_model_is_left_alone(case):
    model, batch, loss_fn = case.build()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    try:
        report = report_on(case, model, batch, loss_fn)
    except RetrogradeError:
        assert REFUSED in case.rules
        return
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(
        torch.equal(value.nan_to_num(), state[name].nan_to_num())
        for name, value in model.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    outcome = judgement_of(case, report.findings, report.checks).outcome
    told = [(finding.severity, finding.rule, finding.message) for finding in report.findings]
    if case.sound and case.kind == HEALTHY:
        assert outcome == "nothing", told
        return
    assert outcome == "first", told
    named = next(finding for finding in report.findings if finding.rule in case.rules)
    assert named.message and named.advice and (named.causes or case.sound)
    if case.least == "warning" and named.rule in EXPERIMENTS and named.rule not in GRADUAL:
        assert named.severity == "error"
    assert named.evidence or named.rule not in EXPERIMENTS
    assert "found" in {check.status for check in report.checks if check.name == named.rule}


def test_the_set_is_well_formed():
    """Names are unique, every rule is meant by some case, and both halves hold every kind."""
    assert len(BY_NAME) == len(CASES)
    meant = {rule for case in CASES for rule in (*case.rules, *case.also)}
    assert meant - {REFUSED} == set(RULES)
    kinds = [{case.kind for case in half(name)} for name in HALVES]
    assert kinds[0] == kinds[1]
    assert not any(case.seen for case in half("judgement"))


def test_the_half_to_judge_by_is_that_of_the_split():
    """Nothing enters or leaves it: cases that are added later are to develop on."""
    names = "\n".join(sorted(case.name for case in half("judgement")))
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == "98c22449ebda36fe"


def test_the_command_prints_the_table_and_every_miss(monkeypatch, capsys):
    """Of three cases, of which one is said to be another than it is."""
    command = importlib.import_module("retrograde.tasks.trial_set.__main__")
    wrong = replace(BY_NAME["batch first"], name="taken for sick", rules=("broadcast",))
    few = (BY_NAME["[B, 1] against [B]"], BY_NAME["batch first"], wrong)
    monkeypatch.setattr(command, "half", lambda name: few if name == "development" else ())
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    command.main(command.Which.DEVELOPMENT)
    printed = capsys.readouterr().out
    assert rows_of(printed) == {
        "broadcast": {"cases": 2, "first": 1, "nothing": 1},
        "all of these": {"cases": 2, "first": 1, "nothing": 1},
        "healthy": {"cases": 1, "nothing": 1},
    }
    assert [line for line in printed.splitlines() if line.startswith("- ")] == [
        "- taken for sick (broadcast): nothing; said: nothing"
    ]


def rows_of(printed):
    """The rows of a printed table, without empty cells."""
    lines = [line for line in printed.splitlines() if line[:1] in ("│", "┃")]
    head, *rows = ([cell.strip() for cell in line.strip("│┃").split(line[0])] for line in lines)
    return {
        kind: {name: int(cell) for name, cell in zip(head[1:], cells, strict=True) if cell}
        for kind, *cells in rows
    }


@pytest.mark.parametrize(
    ("name", "kind"), [("development", "kept-graph"), ("judgement", "broadcast")]
)
def test_the_page_shows_what_the_set_gives(name, kind):
    """How many cases there are of each kind, and what is said of those of one."""
    page = (Path(__file__).parents[2] / "docs" / "trial-set.md").read_text()
    _, shown = page.split(f"{name} half, ")
    shown = rows_of(shown.split("```")[0])
    cases = half(name)
    counts = Counter(case.kind for case in cases)
    counts["all of these"] = len(cases) - counts["healthy"]
    assert {row: cells["cases"] for row, cells in shown.items()} == counts
    found = Counter(judge(case).outcome for case in cases if case.kind == kind)
    assert shown[kind] == {"cases": counts[kind], **found}
