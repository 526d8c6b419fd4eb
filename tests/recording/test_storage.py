"""Recordings in files, in pickles and as copies: the same numbers, and nothing executed."""

import copy
import dataclasses
import io
import json
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import retrograde
from retrograde import clipping
from retrograde.cells import AbstractCell, Clipped, Cut, clipped, truncated
from retrograde.cells.function_cell import FunctionCell
from retrograde.clipping import AbstractInside
from retrograde.errors import (
    ArgumentError,
    InputError,
    NonFiniteError,
    RecordingError,
    UnsupportedModelError,
)
from retrograde.recording.storage import KEY, WRITTEN
from support.problems import PROBLEMS, B, T

pytestmark = [
    pytest.mark.usefixtures("unchecked"),  # cells/test_cells.py and others check the same shapes
    # Cells that cut or clip are not what autograd differentiates; here the file is compared.
    pytest.mark.filterwarnings("ignore::retrograde.VoidDecompositionWarning"),
]


def pass_through(cell, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cell = cell.with_parameters({name: w.to(dtype) for name, w in cell.parameters.items()})
    x = torch.randn(T, B, cell.input_size, generator=generator, dtype=dtype)
    return retrograde.record_cell(cell, x, lambda h, s: h.square().sum() + s.sum(), name="a cell")


def recorded(model, x, loss=lambda out: out[0].square().sum()):
    with retrograde.record(model) as recording:
        loss(model(x)).backward()
    return recording


def there_and_back(subject, folder):
    path = folder / "a pass.safetensors"
    retrograde.save(subject, path)
    return retrograde.load(path)


def assert_same(a, b):
    """Bit for bit, as far as anything can be asked of a pass."""
    assert type(a.cell) is type(b.cell) and a.name == b.name and a.notes == b.notes
    flows = [retrograde.decompose(one) for one in (a, b)]
    assert flows[0].parameters == flows[1].parameters
    assert flows[0].routes == flows[1].routes
    assert flows[0].residual == flows[1].residual
    for name in flows[0].parameters:
        norms, sums, routes = (
            [method(flow) for flow in flows]
            for method in (
                lambda flow, name=name: flow.by_time(name).log2,
                lambda flow, name=name: flow.by_lag(name).parts(),
                lambda flow, name=name: flow.by_route(name).log2,
            )
        )
        for one, other in (norms, sums, routes):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


OWN = [p for p in PROBLEMS if "own" not in p.name]
DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("problem", OWN, ids=lambda problem: problem.name)
def test_every_cell_of_the_package_survives(problem, tmp_path):
    before = pass_through(clipped(truncated(problem.make()), clipping.StateNorm(0.5)))
    assert_same(before, there_and_back(before, tmp_path))


POLICIES = (
    clipping.PreActivationValue(0.5),
    clipping.StateNorm(float("inf")),
    clipping.chain(clipping.StateNorm(2.0), clipping.PreActivationValue(0.1)),
)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_inside_survive(policy, tmp_path):
    cell = clipped(PROBLEMS[8].make(), policy)
    before = pass_through(cell, dtype=torch.float32)
    after = there_and_back(before, tmp_path)
    assert retrograde.cells.policy_of(after.cell) == policy
    assert_same(before, after)


def test_no_cell_and_no_policy_of_the_package_is_forgotten():
    """What is added must be named in `WRITTEN`; a function of the user's own cannot be."""

    def concrete(kind):
        found = {kind} if not kind.__name__.startswith("Abstract") else set()
        return found.union(*(concrete(each) for each in kind.__subclasses__()))

    every = concrete(AbstractCell) | concrete(AbstractInside)
    ours = {kind for kind in every if kind.__module__.startswith("retrograde.")}
    assert ours - {FunctionCell} <= set(WRITTEN.values())
    assert {Cut, Clipped} <= ours
    for kind in WRITTEN.values():
        assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen


class Chunked(nn.Module):
    """A layer whose state is detached, and one that no loss reaches."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.idle = layer, nn.GRU(1, 2)

    def forward(self, x):
        state, outputs = None, []
        for part in x.split(2):
            output, state = self.layer(part, state)
            state = tuple(piece.detach() for piece in state)
            outputs.append(output)
        return (torch.cat(outputs),)


@settings(max_examples=6)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN"]),
    layers=st.integers(1, 2),
    both=st.booleans(),
    batch_first=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    packed=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_whatever_a_layer_is_the_numbers_are_the_same(
    tmp_path_factory, kind, layers, both, batch_first, dropout, packed, dtype, seed
):
    torch.manual_seed(seed)
    options = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first}
    options["dropout"] = dropout if layers > 1 else 0.0
    model = getattr(nn, kind)(2, 3, **options, dtype=dtype)
    x = torch.randn(5, 4, 2, dtype=dtype)
    if packed:
        x = pack_sequence([x[:n, k] for k, n in enumerate((5, 3, 3, 1))])
    recording = recorded(model, x, lambda out: out[1][0].square().sum())
    after = there_and_back(recording, tmp_path_factory.mktemp("a"))
    assert_same(recording[kind], after[kind])
    assert_same(recording[kind], pickle.loads(pickle.dumps(recording))[kind])


def same_recording(one, other):
    assert list(one) == list(other)
    assert dict(one.refused) == dict(other.refused)
    for name in {*one.refused}:
        with pytest.raises(Exception) as errors:  # noqa: B017, PT011  whichever it was
            one[name]
        with pytest.raises(type(errors.value), match="."):
            other[name]
    for name in one:
        if name not in one.refused:
            assert_same(one[name], other[name])
    assert len(one.passes) == len(other.passes)
    for a, b in zip(one.passes, other.passes, strict=True):
        same_recording(a, b)


def ways(recording, folder):
    return [
        there_and_back(recording, folder),
        pickle.loads(pickle.dumps(recording)),
        copy.deepcopy(recording),
        copy.copy(recording),
    ]


def test_reasons_passes_and_borders_survive(tmp_path):
    torch.manual_seed(0)
    model = Chunked(nn.LSTM(1, 2))
    frozen = nn.GRU(1, 2)
    frozen.weight_hh_l0.requires_grad_(False)
    model.frozen = frozen
    with retrograde.record(model) as recording:
        for _ in range(2):
            model(torch.randn(6, 2, 1))[0].sum().backward()
    assert set(recording.refused) == {"layer", "idle", "frozen"} and len(recording.passes) == 2
    for other in ways(recording, tmp_path):
        same_recording(recording, other)
        assert list(other.passes[1]["layer"].boundaries) == [2, 4]
        with pytest.raises(UnsupportedModelError, match="requires_grad=False"):
            other["frozen"]


def test_a_layer_is_in_the_file_once(tmp_path):
    recording = recorded(nn.LSTM(2, 3), torch.randn(4, 2, 2))
    after = there_and_back(recording, tmp_path)
    assert after["LSTM"] is after.passes[0]["LSTM"]
    with safe_open(tmp_path / "a pass.safetensors", framework="pt") as file:
        document = json.loads(file.metadata()[KEY])
    assert len(document["layers"]) == 1
    assert (document["format"], document["version"]) == (1, retrograde.__version__)


def test_a_layer_that_could_not_be_put_together_keeps_its_reason(tmp_path):
    recording = recorded(nn.LSTM(2, 3), torch.randn(4, 2, 2))

    def failing():
        raise NonFiniteError("a number is missing")

    recording.fill("other", failing)
    for other in ways(recording, tmp_path):
        assert list(other) == ["LSTM", "other"]
        with pytest.raises(NonFiniteError, match="a number is missing"):
            other["other"]


def test_the_order_of_axes_in_memory_survives(tmp_path):
    """Matrix products may round otherwise where a matrix is laid out otherwise."""
    before = pass_through(PROBLEMS[4].make(), dtype=torch.float32)
    turned = before.x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    before = dataclasses.replace(before, x=turned, direct=before.direct[:1].expand(T, -1, -1))
    after = there_and_back(before, tmp_path)
    assert after.x.stride() == turned.stride() and torch.equal(after.x, turned)
    assert torch.equal(after.direct, before.direct)
    assert_same(before, after)


def test_a_name_that_is_no_text_survives(tmp_path):
    before = dataclasses.replace(pass_through(PROBLEMS[0].make()), name="a\udce9")
    assert there_and_back(before, tmp_path).name == "a\udce9"


def test_a_function_of_the_users_own_is_refused_by_name(tmp_path):
    problem = next(p for p in PROBLEMS if p.name == "stack-with-own")
    path = tmp_path / "a"
    with pytest.raises(
        ArgumentError, match="'a cell' cannot be saved.*from_function.*record the pass again"
    ):
        retrograde.save(pass_through(problem.make()), path)
    assert not path.exists()


@dataclasses.dataclass(frozen=True)
class Mine(AbstractInside):
    """A policy of somebody else's."""


def test_classes_that_are_not_ours_are_refused_by_name(tmp_path):
    cell = clipped(PROBLEMS[4].make(), Mine())
    with pytest.raises(ArgumentError, match=r"it holds a test_storage.Mine, which is not one of"):
        retrograde.save(pass_through(cell), tmp_path / "a")


def test_what_is_no_recording_or_no_path(tmp_path):
    with pytest.raises(ArgumentError, match="recording must be what retrograde.record.*got 3"):
        retrograde.save(3, tmp_path / "a")
    model = nn.LSTM(1, 2)
    with retrograde.record(model) as recording:
        with pytest.raises(RecordingError, match="nothing is recorded yet"):
            retrograde.save(recording, tmp_path / "a")
        model(torch.ones(3, 1, 1))[0].sum().backward()
    with pytest.raises(InputError, match="there is no folder"):
        retrograde.save(recording, tmp_path / "none" / "a")
    with pytest.raises(InputError, match="it is a folder"):
        retrograde.save(recording, tmp_path)
    with pytest.raises(InputError, match="is a folder; give a file that retrograde.save wrote"):
        retrograde.load(tmp_path)
    with pytest.raises(InputError, match="there is no file .*none"):
        retrograde.load(tmp_path / "none")
    for bad in (None, 3, b"a"):
        with pytest.raises(ArgumentError, match="path must be a path"):
            retrograde.load(bad)
    assert not list(tmp_path.iterdir())


@pytest.fixture(name="file")
def _file(tmp_path):
    path = tmp_path / "pass.safetensors"
    retrograde.save(recorded(nn.LSTM(2, 3), torch.randn(4, 2, 2)), path)
    return path


def document_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def rewritten(path, change):
    document, tensors = document_of(path), load_file(path)
    change(document, tensors)
    save_file(tensors, path, {KEY: json.dumps(document)})


def fields(document):
    return document["layers"][0]["fields"]


def cell_of(document):
    return fields(document)["cell"]["fields"]["layers"][0]["fields"]


DAMAGE = {
    "another class": lambda d, t: fields(d)["cell"].update({"class": "Popen"}),
    "a class of elsewhere": lambda d, t: fields(d)["cell"].update({"class": "os.system"}),
    "an unknown field": lambda d, t: fields(d).update({"more": 1}),
    "a missing field": lambda d, t: fields(d).pop("x"),
    "no layers": lambda d, t: d.pop("layers"),
    "layers of text": lambda d, t: d.update({"layers": "abc"}),
    "a number for a tensor": lambda d, t: fields(d).update({"x": 3}),
    "a text for a cell": lambda d, t: fields(d).update({"cell": "LSTM"}),
    "a tensor that is not there": lambda d, t: fields(d)["x"].update({"tensor": "99"}),
    "no order of axes": lambda d, t: fields(d)["x"].update({"order": [0, 0, 7]}),
    "an unknown value": lambda d, t: fields(d).update({"notes": {"pickle": "x"}}),
    "notes that are none": lambda d, t: fields(d).update({"notes": [1]}),
    "a boundary that is none": lambda d, t: fields(d).update({"boundaries": {"map": [[1, 2]]}}),
    "another generation": lambda d, t: cell_of(d).update({"generation": "gru-torch"}),
    "a weight that is none": lambda d, t: cell_of(d).update({"weight_hh": None}),
    "a layer that is not there": lambda d, t: d["recording"]["layers"].append(["b", 7]),
    "a layer without reason": lambda d, t: d["recording"]["layers"].append(["b", None]),
    "a name that is none": lambda d, t: d["recording"]["layers"].append([3, 0]),
    "passes in passes": lambda d, t: d["recording"].update({"passes": [3]}),
    "integers": lambda d, t: t.update({k: v.long() for k, v in t.items()}),
    "half precision": lambda d, t: t.update({k: v.half() for k, v in t.items()}),
    "mixed precision": lambda d, t: t.update({"0": t["0"].double()}),
    "more steps": lambda d, t: t.update({k: torch.cat((v, v)) for k, v in t.items()}),
    "nothing in them": lambda d, t: t.update({k: v[:0] for k, v in t.items()}),
    "scalars": lambda d, t: t.update({k: torch.tensor(1.0) for k in t}),
    "lengths of 0": lambda d, t: (
        t.update({"n": torch.zeros(2, dtype=torch.int64)}),
        fields(d).update({"lengths": {"tensor": "n"}}),
    ),
    "a format of text": lambda d, t: d.update({"format": "x"}),
    "no format": lambda d, t: d.pop("format"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_refused(file, damage):
    retrograde.load(file)
    rewritten(file, damage)
    with pytest.raises(InputError, match=r"pass.safetensors (cannot be read as a rec|is damaged)"):
        retrograde.load(file)


def test_a_newer_file_says_which_version_wrote_it(file):
    rewritten(file, lambda d, t: d.update({"format": 2, "version": "9.1"}))
    with pytest.raises(InputError, match=r"written by Retrograde 9.1, in format 2; this version"):
        retrograde.load(file)


def test_a_file_with_earlier_names_is_read(file):
    before = retrograde.load(file)["LSTM"]
    rewritten(file, lambda d, t: fields(d).update(borders=fields(d).pop("boundaries")))
    assert_same(before, retrograde.load(file)["LSTM"])
    assert before.borders is before.boundaries


def test_an_older_file_may_lack_fields_that_have_defaults(file):
    before = retrograde.load(file)
    rewritten(
        file, lambda d, t: [fields(d).pop(name) for name in ("notes", "lengths", "boundaries")]
    )
    assert_same(before["LSTM"], retrograde.load(file)["LSTM"])


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"hello", b"{" * 100, b"\x00" * 100, b"\xff" * 64, pickle.dumps({"a": 1})),
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        (10).to_bytes(8, "little") + b'{"a": [[[[',
    ],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other is not a recording, or is truncated"):
        retrograde.load(path)


def test_other_files_of_tensors_are_refused(tmp_path):
    save_file({"weight_hh_l0": torch.ones(2, 2)}, tmp_path / "a")
    torch.save(nn.LSTM(1, 2).state_dict(), tmp_path / "b")
    save_file({"a": torch.ones(2)}, tmp_path / "c", {KEY: "["})
    save_file({"a": torch.ones(2)}, tmp_path / "d", {KEY: "[" * 100_000})
    save_file({"a": torch.ones(2)}, tmp_path / "e", {KEY: "[1]"})
    with pytest.raises(InputError, match="a holds tensors, but no recording"):
        retrograde.load(tmp_path / "a")
    for name in "bcde":
        with pytest.raises(InputError, match=f"{name} is "):
            retrograde.load(tmp_path / name)


@settings(max_examples=40)
@given(st.data())
def test_whatever_happens_to_its_bytes_it_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "a"
    before = pass_through(PROBLEMS[0].make(), dtype=torch.float32)
    retrograde.save(before, path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    path.write_bytes(content[:end])
    try:
        after = retrograde.load(path)
    except InputError:
        return
    assert isinstance(after, retrograde.Recorded)
    assert after.x.shape == before.x.shape


def test_nothing_is_left_half_written(file, monkeypatch):
    content = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match="cannot write .*pass.safetensors: No space left"):
        retrograde.save(retrograde.load(file), file)
    assert file.read_bytes() == content and len(list(file.parent.iterdir())) == 1


class Keeping(nn.Module):
    """A model that keeps what its layer gave, and has a hook of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, None
        layer.register_forward_hook(looks)

    def forward(self, x):
        self.seen = self.layer(x)[0]
        return (self.seen,)


def looks(module, given, returned):
    return None


class State(nn.LSTM):
    """A layer that says itself what is saved of it."""

    def __getstate__(self):
        return {**super().__getstate__(), "saved": True}


class Forward(nn.LSTM):
    """A layer with a forward of its own."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, State, Forward, nn.RNN])
def test_a_model_saved_in_the_block_holds_no_hook_of_ours(kind):
    model, file = Keeping(kind(1, 2)), io.BytesIO()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of hooks on tensors that it leaves out
        with retrograde.record(model), retrograde.record(model):
            model(torch.ones(3, 2, 1))[0].sum().backward()
            torch.save(model, file)
            pickled = pickle.dumps(model.layer)
            model.seen = model.seen.detach()
            copies = [copy.deepcopy(model).layer, copy.copy(model.layer), pickle.loads(pickled)]
    assert b"retrograde" not in file.getvalue() and b"retrograde" not in pickled
    copies.append(torch.load(io.BytesIO(file.getvalue()), weights_only=False).layer)
    for layer in copies:
        assert list(layer._forward_hooks.values()) == [looks]
        assert not layer._forward_pre_hooks and not layer._forward_hooks_with_kwargs
        assert hasattr(layer, "saved") == (kind is State)
        layer(torch.ones(3, 2, 1))
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()


def test_a_layer_with_a_parametrization_can_be_copied_in_the_block():
    model = nn.LSTM(1, 2)
    nn.utils.parametrizations.orthogonal(model, "weight_hh_l0")
    with retrograde.record(model):
        twin = copy.deepcopy(model)
        model(torch.ones(3, 2, 1))[0].sum().backward()
    assert torch.equal(twin(torch.ones(3, 2, 1))[0], model(torch.ones(3, 2, 1))[0])
