"""What the diagnosis knows of a cell it learns from the cell: gates by role, layers by position."""

import csv
import io

import pytest
import torch
from torch import nn

import retrograde
from retrograde.cells import Gate, Position
from retrograde.diagnosis import RULES
from retrograde.diagnosis.experiments import EXPERIMENTS
from retrograde.errors import ArgumentError
from retrograde.report import Report, Settings
from support.gated_unit import SIGMOID, TANH, Unit

pytestmark = pytest.mark.usefixtures("unchecked")


def without_roles(names=("keep", "new")):
    return Gate(names[0], SIGMOID), Gate(names[1], TANH)


def with_roles(names=("keep", "new")):
    return Gate(names[0], SIGMOID, "forget", keeps="h"), Gate(names[1], TANH, "candidate")


def unit(gates, candidate=0.0, keep=0.0):
    """A unit with biases of its gate and its candidate."""
    torch.manual_seed(0)
    bias = torch.cat((torch.full((4,), keep), torch.full((4,), candidate)))
    return Unit(torch.randn(8, 2) / 2, torch.randn(8, 4) / 3, bias_ih=bias, described=gates)


def diagnosed(gates, **options):
    recorded = retrograde.record_cell(
        unit(gates, **options), torch.randn(30, 3, 2), lambda h, s: h.square().mean()
    )
    return retrograde.diagnose(recorded)


def test_a_saturated_candidate_is_found_under_any_name():
    one = diagnosed(with_roles(("keep", "new")), candidate=9.0)
    other = diagnosed(with_roles(("update", "candidate")), candidate=9.0)
    (finding,) = (each for each in one.findings if each.rule == "saturated")
    (same,) = (each for each in other.findings if each.rule == "saturated")
    assert (finding.gate, same.gate) == ("new", "candidate")
    assert finding.evidence[0] == same.evidence[0] and finding.severity == same.severity
    assert [each.rule for each in one.findings] == [each.rule for each in other.findings]


@pytest.mark.parametrize("names", [("keep", "new"), ("update", "candidate")])
def test_without_roles_the_rules_that_need_them_say_so(names):
    """Whatever the names are: nothing is read from them."""
    report = diagnosed(without_roles(names), candidate=9.0)
    reasons = {check.name: check.reason for check in report.checks if check.layer}
    silent = {check.name for check in report.checks if check.status == "not applicable"}
    assert {"saturated", "forget-gate-too-short", "double-bias"} <= silent
    assert f"activation or role of {names[0]}, {names[1]} are not given" in reasons["saturated"]
    assert "no gate that is known to keep" in reasons["forget-gate-too-short"]
    rows = {name: (result, why) for _, name, result, _, why in report.checked}
    assert rows["saturated"] == ("not applicable", reasons["saturated"])
    looked, rules = len(report.looked), len(rows)
    assert f"Nothing found: {looked} of {rules} rules could look." in report.summary
    assert {"vanishing", "exploding", "dead-units", "void"} <= set(report.looked)


def test_what_a_rule_left_out_is_said():
    gates = (Gate("keep", SIGMOID, "forget", keeps="h"), Gate("new", None))
    report = diagnosed(gates, candidate=9.0)
    (check,) = (check for check in report.checks if check.name == "saturated")
    assert check.status == "passed" and "of new is not given" in check.reason
    (row,) = (row for row in report.checked if row[1] == "saturated")
    assert row[2:] == ("passed", check.layer, check.reason)


def test_a_forget_gate_of_any_name_is_looked_at():
    report = diagnosed(with_roles(), keep=-4.0)
    (finding,) = (each for each in report.findings if each.rule == "forget-gate-too-short")
    assert finding.gate == "keep"
    recorded = retrograde.record_cell(
        unit(with_roles()), torch.randn(30, 3, 2), lambda h, s: h.sum()
    )
    assert list(retrograde.spectrum(recorded).memory.time_constants) == ["h"]


def test_a_cell_of_a_test_is_diagnosed_by_the_rules_that_apply():
    report = diagnosed(with_roles())
    assert {check.name for check in report.checks} == set(RULES)
    status = {check.name: check.status for check in report.checks}
    silent = {name for name, value in status.items() if value == "not applicable"}
    assert silent == {
        *("double-bias", "output-outweighs", "misleading-radius"),
        *EXPERIMENTS,
        *(["near-lags-dominate"] if status["vanishing"] == "found" else []),
    }
    assert all(check.reason for check in report.checks if check.status == "not applicable")
    assert {each.rule for each in report.findings} == {
        name for name, value in status.items() if value == "found"
    }


def test_bounds_of_a_cell_are_those_of_its_gates_or_a_reason():
    def bounds(gates):
        cell = unit(gates)
        recorded = retrograde.record_cell(cell, torch.randn(30, 3, 2), lambda h, s: h.sum())
        return retrograde.spectrum(recorded)

    known = bounds(without_roles())  # what counts is how they are activated
    assert {bound.route: bound.threshold for bound in known.bounds} == {
        "recurrent.keep": 4.0,
        "recurrent.new": 1.0,
    }
    assert not any(bound.proven for bound in known.bounds) and known.without_bounds == ()
    partly = bounds((Gate("keep", SIGMOID), Gate("new", None)))
    assert {bound.route for bound in partly.bounds} == {"recurrent.keep"}
    (why,) = partly.without_bounds
    assert why.startswith("recurrent.new: ") and "activation" in why

    def step(w, x, h):
        return torch.tanh(x + h @ w["w"].T)

    cell = retrograde.cells.from_function(step, {"w": torch.eye(2)}, input_size=2, state=2)
    recorded = retrograde.record_cell(cell, torch.randn(30, 3, 2), lambda h, s: h.sum())
    opaque = retrograde.spectrum(recorded)
    assert opaque.bounds == () and "which of its weights are recurrent" in opaque.without_bounds[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Gate("keep", SIGMOID, "forgets"), "role must be one of input, forget"),
        (lambda: Gate("keep", SIGMOID, "forget"), "keeps= names the part of the state"),
        (lambda: Gate("new", TANH, "candidate", keeps="h"), "keeps= names the part of the state"),
        (lambda: unit(("keep", "new")), "must hold Gate values.* got 'keep'"),
    ],
)
def test_gates_that_cannot_be_are_refused(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_nothing_is_said_to_have_looked_that_did_not():
    bare = Report("title", (), settings=Settings(rules=("vanishing",)))
    assert "Nothing found" not in bare.summary
    one_step = retrograde.diagnose(nn.LSTM(2, 3), torch.ones(1, 1, 2), last, remedies=False)
    status = {check.name: (check.status, check.reason) for check in one_step.checks}
    assert status["vanishing"] == ("not applicable", "its sequence has a single step")
    assert status["saturated"][0] == "not applicable" and status["double-bias"][0] == "passed"
    assert "vanishing" not in one_step.looked
    model = nn.LSTM(2, 3)
    with retrograde.record(model) as recording:
        last(model, torch.ones(1, 1, 2)).backward()
    (row,) = (row for row in retrograde.diagnose(recording).checked if row[1] == "vanishing")
    assert row[2:] == ("not applicable", "LSTM", "its sequence has a single step")


def test_a_recording_says_that_the_model_was_not_run():
    model = nn.LSTM(2, 4)
    with retrograde.record(model) as recording:
        last(model, torch.randn(20, 3, 2)).backward()
    report = retrograde.diagnose(recording)
    reasons = {check.name: check.reason for check in report.checks}
    assert reasons["kept-graph"] == "the model itself was not run here"
    assert reasons["output-outweighs"] == "no output layer is known to read it directly"
    whole = retrograde.diagnose(model, torch.randn(20, 3, 2), last, remedies=False)
    assert {check.name: check.status for check in whole.checks}["kept-graph"] == "passed"
    assert any("Remedies were not tried" in note for note in whole.notes)


def last(model, x):
    return model(x)[0].square().mean()


def one_saturated(suffix, layers=1):
    """A bidirectional LSTM with the input gate of one layer and direction saturated."""
    torch.manual_seed(0)
    model = nn.LSTM(2, 4, layers, bidirectional=True)
    with torch.no_grad():
        getattr(model, f"bias_ih{suffix}")[:4] = 12.0
    return retrograde.diagnose(model, torch.randn(20, 3, 2), last, remedies=False)


def names_in(chart):
    """The names of the gates in the data of a chart."""
    rows = csv.DictReader(io.StringIO(chart.to_dict()["data"]["values"]))
    return {row["gate"] for row in rows}


@pytest.mark.parametrize(
    ("suffix", "layers", "position"),
    [
        ("_l0_reverse", 1, Position(0, reverse=True)),
        ("_l0", 1, Position(0)),
        ("_l1_reverse", 2, Position(1, reverse=True)),
    ],
)
def test_the_evidence_is_that_of_the_direction_concerned(suffix, layers, position):
    report = one_saturated(suffix, layers)
    (finding,) = (each for each in report.findings if each.rule == "saturated")
    assert (finding.gate, finding.position) == ("input", position)
    assert str(position) in str(report)
    (layer,) = report.layers
    for chart in (layer.saturation_chart, layer.gates_chart):
        assert names_in(chart(finding.gate, finding.position)) == {f"input{suffix}"}
    everywhere = names_in(layer.saturation_chart("input"))
    assert len(everywhere) == 2 * layers and f"input{suffix}" in everywhere


def test_a_position_is_told_only_where_there_are_several():
    model, x = nn.LSTM(2, 4), torch.randn(20, 3, 2)
    with torch.no_grad():
        model.bias_ih_l0[:4] = 12.0
    report = retrograde.diagnose(model, x, last, remedies=False)
    assert {finding.position for finding in report.findings} == {None}
    assert all(series.position is None for series in report.layers[0].gate_series)


@pytest.mark.parametrize("suffix", ["", "_l", "_l1_backwards", "l1", "_l1_reverse_reverse", "_lx"])
def test_no_other_suffix_is_a_position(suffix):
    assert Position.of(suffix) is None


def test_positions_are_written_as_they_are_read():
    every = Position.every(3, bidirectional=True)
    assert [Position.of(position.suffix) for position in every] == list(every)
    names = [name for name, _ in nn.LSTM(2, 4, 3, bidirectional=True).named_parameters()]
    assert list(dict.fromkeys(name.removeprefix("weight_ih") for name in names[::4])) == [
        position.suffix for position in every
    ]


@pytest.mark.parametrize(
    ("module", "gate"),
    [
        (lambda: nn.GRU(2, 4, 2), "update"),
        (lambda: nn.LSTM(2, 4, 2), "forget"),
        (lambda: nn.LSTM(2, 4, 2, proj_size=3), "forget"),
    ],
    ids=["GRU", "LSTM", "projected LSTM"],
)
def test_the_bias_of_any_forget_gate_of_torchs_may_be_set_twice(module, gate):
    torch.manual_seed(0)
    model = module().double()
    with torch.no_grad():
        for bias in (model.bias_ih_l1, model.bias_hh_l1):
            bias[4:8] = 1.5
    report = retrograde.diagnose(model, torch.randn(20, 3, 2).double(), last, remedies="pass")
    (finding,) = (each for each in report.findings if each.rule == "double-bias")
    assert (finding.gate, finding.position) == (gate, Position(1))
    assert finding.evidence[0].value == 1.5 and finding.evidence[1].value == 3.0
    (trial,) = finding.trials
    assert trial.remedy == "one-bias" and trial.closer and trial.after == 0
