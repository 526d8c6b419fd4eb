"""Recordings as files: one of safetensors, its numbers as tensors and all the rest as JSON.

Nothing in such a file is executed when it is read. What is written are frozen dataclasses, field by
field, of the classes named in `WRITTEN`; so a new cell is one more name there. Tensors keep every
bit and the order of their axes in memory, so that a loaded pass is decomposed to the same numbers.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from os import PathLike
from typing import Any

import torch
from jaxtyping import jaxtyped
from torch import Tensor

from retrograde import _checks, _files, cells, clipping, errors
from retrograde.cells.function_cell import FunctionCell
from retrograde.engine import Boundary, Read
from retrograde.errors import ArgumentError, InputError, RecordingError, RetrogradeError
from retrograde.recording.recorded import Recorded
from retrograde.recording.recording import Recording

RENAMED = {"Border": "Boundary", "borders": "boundaries"}
"""Earlier names, in files written before they changed."""

KEY = "retrograde"
"""The entry of the file's metadata that holds the JSON."""

FORMAT = 1
"""Counted up when a file could no longer be read by an older version."""

WRITTEN: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Recorded, Boundary, Read),
        *(cells.Elman, cells.GRU, cells.GRU2014, cells.LSTM, cells.ProjectedLSTM),
        *(cells.MinGRU, cells.MinLSTM, cells.LRU, cells.SelectiveScan),
        *(cells.GatedLinearAttention, cells.MLSTM, cells.SLSTM, cells.KerasCell),
        *(cells.Stacked, cells.SideBySide, cells.Carrying, cells.Cut, cells.Clipped),
        *(clipping.PreActivationValue, clipping.StateNorm, clipping.HDetach, clipping.ChainInside),
    )
}
"""The classes whose values can be written, by their name in a file."""


def save(recording: Recording | Recorded, path: str | PathLike[str]) -> None:
    """Write a recording, or one layer of it, to a file that `load` reads back.

    The file is one of safetensors, whichever its name, with the version of Retrograde that wrote
    it. It holds inputs, states, adjoints, gradients and weights, which is all that a decomposition
    needs; layers that could not be recorded keep the reason.

    Args:
        recording: what `record` or `record_cell` recorded. Layers are put together now.
        path: where to. A file that is there is replaced once the new one is complete.

    Raises:
        ArgumentError: for a recording of a cell that is not the package's own, such as one made by
            `from_function`: it holds a function, and files hold no code.
        InputError: if the path cannot be written.

    Example:
        >>> import tempfile, torch, retrograde
        >>> model = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(4, 1, 2))[0].sum().backward()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     retrograde.save(recording, f"{folder}/pass.safetensors")
        ...     again = retrograde.load(f"{folder}/pass.safetensors")
        >>> retrograde.decompose(again).reach == retrograde.decompose(recording).reach
        True
    """
    _files.check_writable(path)
    if not isinstance(recording, Recording | Recorded):
        raise ArgumentError(
            f"recording must be what retrograde.record or record_cell recorded; got "
            f"{_checks.shown(recording)}"
        )
    from safetensors.torch import save as to_bytes

    if isinstance(recording, Recording) and not (recording or recording.refused):
        recording.only()  # says that nothing is recorded yet
    writer = _Writer()
    content = (
        {"layer": writer.place_of(recording)}
        if isinstance(recording, Recorded)
        else {"recording": writer.tree(recording)}
    )
    document = {"format": FORMAT, "version": version("retrograde"), **content}
    document["layers"] = writer.layers
    metadata = {KEY: json.dumps(document, allow_nan=False)}
    written = to_bytes(writer.tensors, metadata)
    _files.write(path, lambda file: file.write(written))


def load(path: str | PathLike[str]) -> Recording | Recorded:
    """Read what `save` wrote; its tensors lie on the CPU. Nothing in the file is executed.

    Args:
        path: of the file.

    Returns:
        A `Recording` or a `Recorded`, as it was saved; `decompose`, `spectrum` and `diagnose` take
        it like the original.

    Raises:
        InputError: if the file cannot be read, is none that `save` wrote, is damaged, or was
            written in a form that only a later version of Retrograde knows.

    Example:
        >>> import tempfile, torch, retrograde
        >>> gru = torch.nn.GRU(2, 3)
        >>> with retrograde.record(gru) as recording:
        ...     gru(torch.ones(4, 1, 2))[0].sum().backward()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     retrograde.save(recording, f"{folder}/pass.safetensors")
        ...     print(list(retrograde.load(f"{folder}/pass.safetensors")))
        ['GRU']
    """
    path = _files.check_readable(path, "a file that retrograde.save wrote")
    name = _files.named(path)
    document, tensors = _read(path, name)
    found, writer = document.get("format"), document.get("version")
    if not isinstance(found, int) or found < 1:
        raise InputError(f"{name} is damaged: its format is {found!r}")
    if found > FORMAT:
        raise InputError(
            f"{name} was written by Retrograde {writer}, in format {found}; this version, "
            f"{version('retrograde')}, reads up to {FORMAT}. Install the newer one"
        )
    try:
        return _Reader(tensors, document).content()
    except _Damaged as error:
        why = str(error)
    except RetrogradeError as error:  # a cell whose weights do not fit together
        why = str(error)
    except Exception as error:  # whatever a file may hold that save would not write
        why = f"{type(error).__name__}: {error}"
    raise InputError(
        f"{name} cannot be read as a recording: {why}. It was written by Retrograde {writer}, this "
        f"is {version('retrograde')}; if these are the same, the file is damaged"
    ) from None


def _read(path: Any, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON and the tensors of a file.

    Raises:
        InputError: if it holds none.
    """
    from safetensors import SafetensorError, safe_open

    advice = "give one that retrograde.save wrote"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise InputError(f"{name} holds tensors, but no recording; {advice}")
            document = json.loads(metadata[KEY], parse_constant=_refuse)
            # Copies, as numbers in a mapped file need not lie where vectors are read best.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"cannot read {name}: {_files.why(error)}; {advice}") from None
    except (SafetensorError, ValueError, RecursionError, MemoryError, RuntimeError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"{name} is not a recording, or is truncated: {first}; {advice}") from None
    if not isinstance(document, dict):
        raise InputError(f"{name} is damaged: its description is no JSON object; {advice}")
    return document, tensors


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


class _Writer:
    """Turns values into JSON, and keeps their tensors aside.

    Attributes:
        tensors: by number, in the order in which they were met; each once.
        layers: every recorded layer, each once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layers: list[Any] = []
        self._places: dict[int, int] = {}
        self._numbers: dict[int, dict[str, Any]] = {}
        self._kept: list[object] = []  # so that no id is used twice

    def tree(self, recording: Recording) -> dict[str, Any]:
        """A recording: its layers by their places, why others are missing, and its passes."""
        state = recording.__getstate__()
        made, refused = state["made"], state["refused"]
        return {
            "layers": [
                [name, None if name in refused else self.place_of(made[name])]
                for name in state["names"]
            ],
            "refused": {name: [type(e).__name__, str(e)] for name, e in refused.items()},
            "passes": [self.tree(one) for one in recording.passes],
        }

    def place_of(self, recorded: Recorded) -> int:
        """The place of a layer among all; the recording and a pass may hold the same one."""
        if id(recorded) not in self._places:
            try:
                written = self.value(recorded)
            except ArgumentError as error:
                raise ArgumentError(f"{recorded.name!r} cannot be saved: {error}") from None
            self._places[id(recorded)] = len(self.layers)
            self.layers.append(written)
            self._kept.append(recorded)
        return self._places[id(recorded)]

    def value(self, value: Any) -> Any:
        """Any field of a dataclass that can be written."""
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return {"float": value.hex()}
            case Tensor():
                return self._tensor(value)
            case tuple():
                return [self.value(part) for part in value]
            case frozenset():
                return {"set": sorted(value)}
            case Mapping():
                return {"map": [[self.value(k), self.value(v)] for k, v in value.items()]}
        kind = type(value)
        if WRITTEN.get(kind.__name__) is not kind:
            if isinstance(value, FunctionCell):
                raise ArgumentError(
                    "its cell was made by from_function and holds a function of yours, but files "
                    "hold no code. Keep the step in a module of your own and record the pass "
                    "again, or save the numbers of its decomposition"
                )
            raise ArgumentError(
                f"it holds a {kind.__module__}.{kind.__qualname__}, which is not one of "
                f"Retrograde's own: {', '.join(WRITTEN)}"
            )
        fields = {
            field.name: self.value(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"class": kind.__name__, "fields": fields}

    def _tensor(self, tensor: Tensor) -> dict[str, Any]:
        """A tensor by its number, with the order of its axes in memory where that is not usual."""
        if id(tensor) not in self._numbers:
            order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])
            number = str(len(self.tensors))
            in_order = tensor.detach().cpu().permute(order)
            self.tensors[number] = in_order.clone(memory_format=torch.contiguous_format)
            usual = order == list(range(tensor.ndim))
            self._numbers[id(tensor)] = {"tensor": number, **({} if usual else {"order": order})}
            self._kept.append(tensor)
        return self._numbers[id(tensor)]


class _Damaged(Exception):
    """What a file holds is not what `save` writes."""


class _Reader:
    """Makes values of JSON and tensors again, and sees that each is what its field has to be."""

    def __init__(self, tensors: Mapping[str, Tensor], document: Mapping[str, Any]):
        self._tensors, self._document = tensors, document
        self._values: dict[str, Tensor] = {}

    def content(self) -> Recording | Recorded:
        """The layer or the recording."""
        layers = [self._recorded(written) for written in self._document["layers"]]
        if "layer" in self._document:
            place: int = self._document["layer"]
            return layers[place]
        return self._recording(self._document["recording"], layers)

    def _recording(self, tree: Any, layers: list[Recorded]) -> Recording:
        recording = Recording()
        for name, place in tree["layers"]:
            _expect(isinstance(name, str), "the name of a layer is no text")
            if place is None:
                recording.fill(name, _missing)
            else:
                _expect(place in range(len(layers)), f"there is no layer number {place}")
                recording.fill(name, partial(layers.__getitem__, place))
        for name, (kind, message) in tree["refused"].items():
            _expect(isinstance(message, str), "the reason for a missing layer is no text")
            recording.refuse(name, _error(kind)(message))
        unknown = [name for name, place in tree["layers"] if place is None]
        _expect(set(unknown) <= set(tree["refused"]), "a layer is missing without a reason")
        recording.passes = tuple(self._recording(one, layers) for one in tree["passes"])
        return recording

    def _recorded(self, written: Any) -> Recorded:
        recorded = self._value(written)
        _expect(isinstance(recorded, Recorded), "a layer is none")
        _check(recorded)
        return recorded  # type: ignore[no-any-return]

    def _value(self, written: Any) -> Any:
        match written:
            case None | bool() | int() | str():
                return written
            case list():
                return tuple(self._value(part) for part in written)
            case {"float": str(text)}:
                return float.fromhex(text)
            case {"set": list(parts)}:
                return frozenset(parts)
            case {"map": list(pairs)}:
                return {self._value(key): self._value(value) for key, value in pairs}
            case {"tensor": str(number), **rest}:
                return self._tensor(number, rest.get("order"))
            case {"class": str(name), "fields": dict(fields)}:
                name = RENAMED.get(name, name)
                _expect(name in WRITTEN, f"there is no class {name!r} to be read")
                values = {str(RENAMED.get(k, k)): self._value(part) for k, part in fields.items()}
                return WRITTEN[name](**values)
        raise _Damaged(f"no value is written as {_checks.shown(written)}")

    def _tensor(self, number: str, order: Any) -> Tensor:
        if number not in self._values:
            tensor = self._tensors[number]
            if order is not None:
                _expect(sorted(order) == list(range(tensor.ndim)), "axes are in no order")
                tensor = tensor.permute([order.index(axis) for axis in range(tensor.ndim)])
            self._values[number] = tensor
        return self._values[number]


def _missing() -> Recorded:
    """A layer whose reason is given in its place."""
    raise RecordingError("this layer was not recorded")


def _error(name: Any) -> Callable[[str], RetrogradeError]:
    """The class of an error by name; RecordingError for one that this version does not have."""
    kind = vars(errors).get(name) if isinstance(name, str) else None
    return kind if isinstance(kind, type) and issubclass(kind, RetrogradeError) else RecordingError


def _check(recorded: Recorded) -> None:
    """See that every part of a layer is what it says it is, and that they fit together.

    Raises:
        _Damaged: with the first that does not.
    """
    with jaxtyped("context"):  # in it a letter of a shape stands for one size
        _check_fields(recorded)
    cell, (steps, batch, size) = recorded.cell, recorded.direct.shape
    _expect(steps > 0 and batch > 0, "it holds no step or no sample")
    _expect(size == cell.state_size, f"its state has {size} entries, its cell {cell.state_size}")
    read = recorded.inputs.shape[-1]
    _expect(read == cell.input_size, f"its input has {read} features, its cell {cell.input_size}")
    weights = cell.parameters
    parts = [recorded.x, recorded.direct, recorded.initial, recorded.inputs, *weights.values()]
    kinds = {part.dtype for part in parts}
    _expect(len(kinds) == 1 and kinds <= set(_checks.FLOATING), f"its numbers are of {kinds}")
    for name, gradient in recorded.gradients.items():
        fits = name in weights and gradient.shape == weights[name].shape
        _expect(fits, f"the gradient of {name!r} does not fit its weight")
    _expect(all(0 <= k < steps for k in recorded.boundaries), "a boundary lies outside its steps")
    lengths = recorded.lengths
    if lengths is not None:
        _expect(bool(((lengths > 0) & (lengths <= steps)).all()), "a sample has no such length")


def _check_fields(of: Any) -> None:
    hints = typing.get_type_hints(type(of))
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        _expect(_is(value, hints[field.name]), f"{field.name} is {_checks.shown(value)}")


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as annotations of recordings go."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return isinstance(value, tuple) and all(_is(part, inner[0]) for part in value)
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_is, value, inner))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _is(key, inner[0]) and _is(part, inner[1]) for key, part in value.items()
        )
    if hint is int and isinstance(value, bool) or not isinstance(value, origin or hint):
        return False
    if isinstance(value, Boundary):
        _check_fields(value)
    return True


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Damaged(otherwise)
