"""What the diagnosis knows of a cell it learns from the cell: gates by role, layers by position."""

import csv
import io

import pytest
import torch
from torch import nn

import retrograde
from retrograde.cells import Position

pytestmark = pytest.mark.usefixtures("unchecked")


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
    assert all(course.position is None for course in report.layers[0].courses)


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
