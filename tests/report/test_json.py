"""The report as JSON: strict, as its schema says, and read back without loss."""

import json
import math
import runpy
from dataclasses import fields

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import retrograde
from retrograde import diagnosis, report
from retrograde.cells import Position
from retrograde.decomposition import Parts
from retrograde.errors import InputError
from retrograde.report import Report
from retrograde.report.json import render, schema
from retrograde.report.layer import Layer
from retrograde.report.written_parts import WrittenParts
from support import ROOT
from support.type_checks import unchecked

TYPES = (
    *(report.NeededLag, diagnosis.GateSeries, Layer),
    *(diagnosis.Evidence, diagnosis.Training, diagnosis.Trial, diagnosis.Finding),
    *(diagnosis.Threshold, report.Settings, Report),
)


def arbitrary(kind):
    """Any value of a dataclass: every field drawn from its type, NaN and hostile text included."""
    drawn = {field.name: ... for field in fields(kind)}
    words = st.dictionaries(st.text(), st.text(), max_size=3)
    drawn |= {name: words for name in ("versions", "figures") if name in drawn}
    return st.builds(kind, **drawn)


st.register_type_strategy(Position, st.builds(Position, st.integers(0, 99), st.booleans()))


@st.composite
def arbitrary_parts(draw):
    """Parts along one or two axes, of any labels and numbers."""
    label = st.one_of(st.none(), st.text(), st.integers(), st.builds(range, *2 * [st.integers()]))
    axes, shape = [], draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    for size in shape:
        labels = st.lists(label, min_size=size, max_size=size).map(tuple)
        axes.append(draw(st.dictionaries(st.text(), labels, min_size=1, max_size=2)))
    count = math.prod(shape)
    numbers = st.lists(st.floats(), min_size=count, max_size=count)
    log2, share = (torch.tensor(draw(numbers), dtype=torch.float64).view(shape) for _ in range(2))
    return Parts.measured(axes, draw(st.none() | st.text()), log2, share)


st.register_type_strategy(Parts, arbitrary_parts())
for each in TYPES:
    st.register_type_strategy(each, arbitrary(each))


def read_strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def validator():
    jsonschema.Draft202012Validator.check_schema(schema(Report))
    return jsonschema.Draft202012Validator(schema(Report))


@pytest.fixture(scope="module")
def real():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(2, 3))
    return retrograde.diagnose(model, torch.randn(12, 2, 2), lambda model, x: model(x)[0].sum())


VALIDATOR = validator()


def test_any_report_is_as_its_schema_says_and_survives(tmp_path):
    path = tmp_path / "report.json"

    # No shrinking: of a value with hundreds of fields it takes minutes.
    @settings(
        max_examples=8,  # of hundreds of fields each
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    @given(written=st.from_type(Report))
    def check(written):
        written.to_json(path)
        VALIDATOR.validate(read_strictly(path.read_text(encoding="utf-8")))
        # repr tells a tuple from a list and 0.0 from -0.0, and takes NaN for NaN.
        back = Report.from_json(path)
        assert repr(back) == repr(written)
        for one, other in zip(back.layers, written.layers, strict=True):
            for name in (field.name for field in fields(Layer) if field.name.startswith("by_")):
                of_both = (getattr(layer, name) for layer in (one, other))
                read, wrote = (parts and WrittenParts.of(parts) for parts in of_both)
                assert repr(read) == repr(wrote)

    with unchecked():  # the type checks draw random numbers, which strategies must not
        check()


def test_a_real_report_is_as_its_schema_says_and_survives(real, tmp_path):
    path = tmp_path / "report.json"
    real.to_json(path)
    document = read_strictly(path.read_text())
    VALIDATOR.validate(document)
    back = Report.from_json(path)
    assert repr(back) == repr(real)
    assert str(back) == str(real) and back.scalars() == real.scalars()
    assert document["schema"] == "retrograde-report/6"
    by_time, layer = document["layers"][0]["by_time"], real.layers[0]
    assert by_time["log2"][-1] == layer.by_time.log2[-1].tolist()
    assert by_time["axes"][0] == {"loss_step": list(range(12))}
    assert back.layers[0].by_time == layer.by_time
    assert back.layers[0].by_octave.lags == layer.by_octave.lags


def test_half_a_surrogate_pair_is_no_text():
    assert read_strictly(render(Report("a\ud800b", ())))["title"] == "a?b"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("schema"),
        lambda document: document.pop("layers"),
        lambda document: document["layers"][0].pop("reach"),
        lambda document: document["layers"][0].update(reach="far"),
        lambda document: document["layers"][0].update(reach=1.5),
        lambda document: document["layers"][0].update(half_life="far"),
        lambda document: document["settings"].update(surplus=1),
        lambda document: document.update(surplus=1),
        lambda document: document.update(findings=[{"rule": "r", "severity": "grave"}]),
    ],
)
def test_schema_and_reader_refuse_the_same(real, spoil, tmp_path):
    document = json.loads(render(real))
    VALIDATOR.validate(document)
    spoil(document)
    assert not VALIDATOR.is_valid(document)
    path = tmp_path / "spoilt.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="is no report"):
        Report.from_json(path)


def test_a_reader_says_what_is_wrong_and_where(real, tmp_path):
    path = tmp_path / "spoilt.json"
    document = json.loads(render(real))
    del document["layers"][0]["reach"]
    document["surplus"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        Report.from_json(path)
    message = str(error.value)
    assert f"{path} is no report of schema 'retrograde-report/6'" in message
    assert "layers.0.reach: " in message and "surplus: " in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "there is no file .*; give a file that to_json wrote"),
        ("", "cannot read .*: Expecting value"),
        ("{", "cannot read "),
        ("[" * 100_000, "cannot read "),
        ('{"schema": NaN}', "cannot read .*: NaN is not JSON"),
        ("[]", "is no report: expected schema 'retrograde-report/6', got None"),
        ("{}", "is no report: expected schema 'retrograde-report/6', got None"),
        ('{"schema": 2}', "got 2 .give a file that to_json wrote"),
        ('{"schema": "x"}', "got 'x' .give a file that to_json wrote"),
        (
            '{"schema": "retrograde-report/1", "layers": []}',
            r"got 'retrograde-report/1' \(another version of retrograde wrote it; make it once",
        ),
    ],
)
def test_what_is_no_report_is_refused(text, sentence, tmp_path):
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        Report.from_json(path)


def test_bytes_and_folders_are_refused(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "bytes.json", tmp_path):
        with pytest.raises(InputError, match="cannot read|is a folder"):
            Report.from_json(path)


def test_the_schema_in_the_docs_is_this_one():
    """`python scripts/report_schema.py` brings it up to date."""
    render = runpy.run_path(str(ROOT / "scripts" / "report_schema.py"))["render"]
    assert render() == (ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8")
