"""Recurrent weights of Keras: in a model or a mapping by Keras' names, and in `.keras` and `.h5`.

Files are read as data: a zip, JSON and HDF5. No object of Keras is made of them, and nothing in
them is run.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _files
from retrograde._optional import optional
from retrograde.cells.generations import generation
from retrograde.declarations.keras import PLAIN, RNN, is_a
from retrograde.errors import InputError
from retrograde.spectra.weights.kinds import Kind

HDF5 = b"\x89HDF\r\n\x1a\n"
"""The first bytes of an HDF5 file."""

WEIGHTS = "model.weights.h5"
"""The member of a .keras file that holds the weights."""

NAMES = ("kernel", "recurrent_kernel", "bias")
"""The weights of a recurrent layer, in the order in which Keras saves them."""

ACTIVATION = "activation"
"""What the activation of a layer is called beside its weights."""

LARGEST = 2**32
"""No configuration and no file of weights is read from more bytes than this, 4 GiB."""


@dataclass(frozen=True, eq=False)
class KerasWeights:
    """The weights of a recurrent layer of Keras.

    Attributes:
        path: the layer, as a recording names it.
        weights: kernel [I, G*H], recurrent_kernel [H, G*H], and bias [G*H] or [2, G*H].
        activation: Keras' name of the activation function; None where it is not known.
    """

    path: str
    weights: Mapping[str, Tensor]
    activation: str | None = None

    @property
    def in_rows(self) -> dict[str, Tensor]:
        """The same under the names and in the layout of torch, gates in Keras' order."""
        turned = {"weight_ih": self.weights.get("kernel"), "weight_hh": self.weights[NAMES[1]]}
        found = {name: weight.T for name, weight in turned.items() if weight is not None}
        bias = self.weights.get("bias")
        if bias is not None:
            rows = bias if bias.ndim == 2 else bias.unsqueeze(0)
            found |= dict(zip(("bias_ih", "bias_hh"), rows, strict=False))
        return found

    @property
    def called(self) -> Mapping[str, str]:
        """Keras' names of what has torch's."""
        bias = self.weights.get("bias")
        both = ("bias[0]", "bias[1]") if bias is not None and bias.ndim == 2 else ("bias", "bias")
        torchs = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return dict(zip(torchs, (*NAMES[:2], *both), strict=True))

    @property
    def kind(self) -> Kind | None:
        """What the layer is by its shapes; None for nothing that is known here."""
        rows, columns = self.weights[NAMES[1]].shape if self.weights[NAMES[1]].ndim == 2 else (0, 0)
        if not rows or columns % rows:
            return None
        match columns // rows:
            case 1:
                name = PLAIN.get(self.activation or "")
                return Kind("RNN", (), ("hidden",), nonlinearity=name)
            case 3:
                bias = self.weights.get("bias")
                after = () if bias is None else ("gru-torch",) if bias.ndim == 2 else ("gru-2014",)
                gates = ("update", "reset", "candidate")
                return Kind("GRU", after or ("gru-torch", "gru-2014"), gates)
            case 4:
                return Kind("LSTM", ("lstm-2000",), generation("lstm-2000").gates)
        return None


def keras_layers(source: Mapping[Any, Any]) -> Iterator[KerasWeights]:
    """The recurrent layers of Keras in a mapping of names to weights.

    A name is a path of Keras ("encoder/lstm/lstm_cell/kernel"), also behind the path of torch that
    a state dict of a Keras model has.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in source.items():
        if not isinstance(name, str) or "/" not in name:
            continue
        path, _, last = name.rpartition("/")
        last = last.removesuffix(":0")
        wanted = Tensor if last in NAMES else str if last == ACTIVATION else ()
        if isinstance(value, wanted):
            found.setdefault(path.rpartition(".")[2], {})[last] = value
    short = [_without_cell(path) for path, named in found.items() if "recurrent_kernel" in named]
    for path, named in found.items():
        if "recurrent_kernel" in named:
            weights = {name: value for name, value in named.items() if name in NAMES}
            layer = _without_cell(path)
            layer = layer if short.count(layer) == 1 else path.replace(f"/{STACKED}/", "/")
            yield KerasWeights(layer, weights, named.get(ACTIVATION))


STACKED = "stacked_rnn_cells"
"""What Keras calls the cells of a layer together."""


def _without_cell(path: str) -> str:
    """The path of a layer whose cell has this path."""
    layer, _, cell = path.rpartition("/")
    if layer and cell.rstrip("_0123456789").endswith("cell"):
        return layer.removesuffix(f"/{STACKED}")
    return path


def keras_layers_of(name: str, module: Any) -> Iterator[KerasWeights]:
    """Those of a recurrent layer of a Keras model."""
    cells = getattr(module.cell, "cells", None) or [module.cell]
    for cell in cells:
        held = {each: getattr(cell, each, None) for each in NAMES}
        weights = {each: v.value.detach() for each, v in held.items() if v is not None}
        if "recurrent_kernel" in weights:
            path = f"{name}/{cell.name}" if len(cells) > 1 else name
            activation = getattr(getattr(cell, "activation", None), "__name__", None)
            yield KerasWeights(path, weights, activation)


def is_keras_layer(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer of Keras."""
    return is_a(module, RNN)


def keras_file(path: Path) -> Mapping[str, Any]:
    """The recurrent weights in a `.keras` or `.h5` file, by layer and Keras' names.

    Of every recurrent layer kernel, recurrent_kernel and bias, and in a file that says so the name
    of its activation function. Nothing in the file is run, and no link in it is followed.

    Args:
        path: a file of `model.save`, of either kind, or of `model.save_weights`.

    Raises:
        InputError: for a file that is none of these, is damaged, or claims more than it holds; and
            if there is no recurrent layer in it.
        MissingExtraError: without h5py.
    """
    h5py = _h5py()
    try:
        zipped = zipfile.is_zipfile(path)
        file, config = _from_zip(path) if zipped else (path, None)
        with h5py.File(file, "r") as opened:
            return _recurrent(opened, config, path)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, RuntimeError) as error:
        raise InputError(f"{path} is damaged, or no file of Keras: {_files.why(error)}") from None


def _h5py() -> Any:
    """The package that reads HDF5."""
    with optional("a file of Keras", "keras"):
        import h5py

    return h5py


def is_keras_file(path: Path) -> bool:
    """Whether a file is HDF5, or a zip with the weights of a Keras model."""
    with path.open("rb") as file:
        if file.read(len(HDF5)) == HDF5:
            return True
    try:
        with zipfile.ZipFile(path) as archive:
            return WEIGHTS in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _from_zip(path: Path) -> tuple[BytesIO | Path, Any]:
    """The weights of a .keras file, and its configuration."""
    with zipfile.ZipFile(path) as archive:
        for name in (WEIGHTS, "config.json"):
            size = archive.getinfo(name).file_size
            if size > LARGEST or size > 1000 * path.stat().st_size:
                raise InputError(f"{path}: {name} in it claims {size} bytes, which are not read")
        return BytesIO(archive.read(WEIGHTS)), json.loads(archive.read("config.json"))


def _recurrent(file: Any, config: Any, path: Path) -> Mapping[str, Any]:
    """The recurrent weights in an open HDF5 file.

    Raises:
        InputError: if there are none.
    """
    if config is None and "model_config" in file.attrs:
        config = json.loads(file.attrs["model_config"])
    activations = dict(_activations(config))
    found: dict[str, Any] = {}
    layers: dict[str, None] = {}
    for layer, weights in (*_by_name(file), *_by_number(file, (), "")):
        layers[layer] = None
        if "recurrent_kernel" not in weights:
            continue
        for name, dataset in weights.items():
            found[f"{layer}/{name}"] = _tensor(dataset, path)
        parts = [part for part in layer.split("/") if part in activations]
        if parts:
            found[f"{layer}/{ACTIVATION}"] = activations[parts[-1]]
    if found:
        order = list(_names(config))
        places = {name: place for place, name in reversed(list(enumerate(order)))}
        return dict(sorted(found.items(), key=lambda item: _place(item[0], places)))
    named = ", ".join(filter(None, layers)) or "nothing that is known here"
    raise InputError(f"{path} holds no recurrent layer of Keras; it holds {named}")


def _place(name: str, places: Mapping[str, int]) -> list[int]:
    """Where the layers of a path stand in a model; those that it does not name come last."""
    return [places.get(part, len(places)) for part in name.split("/")[:-1]]


def _children(group: Any) -> Iterator[tuple[str, Any]]:
    """What lies in a group of HDF5 itself; links to other places and files are left alone."""
    h5py = _h5py()
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _by_number(group: Any, path: tuple[str, ...], own: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Layers as Keras 3 saves them: weights by number in a group "vars", below their attributes.

    Args:
        group: a group of the file.
        path: the names of the layers around it.
        own: the attribute that it stands for.
    """
    h5py = _h5py()
    inside = {name: child for name, child in _children(group) if isinstance(child, h5py.Group)}
    held = inside.pop("vars", None)
    name = "" if held is None else _text(held.attrs.get("name", own))
    below = (*path, name) if name and own not in ("", "cell") else path
    if held is not None:
        datasets = {n: d for n, d in _children(held) if isinstance(d, h5py.Dataset)}
        numbered = dict(
            zip(NAMES, (datasets[n] for n in sorted(datasets, key=_number)), strict=False)
        )
        cell = own == "cell" or (path and _attribute(group).endswith("/cells"))
        if not cell or not _is_recurrent(numbered):
            numbered.pop("recurrent_kernel", None)
        if datasets:
            yield "/".join(below), numbered
    for name, child in inside.items():
        if name not in ("optimizer", "optimizer_weights", "model_weights"):
            yield from _by_number(child, below, name)


def _attribute(group: Any) -> str:
    """The path of the group that holds a group."""
    return str(group.name).rpartition("/")[0]


def _is_recurrent(weights: Mapping[str, Any]) -> bool:
    """Whether these are shapes of a recurrent layer's weights."""
    shapes = [tuple(weights[name].shape) for name in NAMES if name in weights]
    if len(shapes) < 2 or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        return False
    (_, columns), (rows, of_state) = shapes[:2]
    return bool(columns == of_state and rows > 0 and of_state % rows == 0)


def _by_name(file: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Layers as HDF5 files of whole models have them: by the names of layers and variables."""
    h5py = _h5py()
    root = file["model_weights"] if "model_weights" in file else file
    for layer, group in _children(root):
        if not isinstance(group, h5py.Group):
            continue
        waiting: list[tuple[tuple[str, ...], Any]] = [((), group)]
        while waiting:
            path, each = waiting.pop(0)
            named = {}
            for name, child in _children(each):
                if isinstance(child, h5py.Group):
                    waiting.append(((*path, name), child))
                elif isinstance(child, h5py.Dataset) and name.removesuffix(":0") in NAMES:
                    named[name.removesuffix(":0")] = child
            if named:
                inner = path[path.index(layer) + 1 :] if layer in path else path
                whole = "/".join((layer, *inner))
                several = STACKED in inner
                yield whole.replace(f"/{STACKED}/", "/") if several else _without_cell(whole), named


def _configured(config: Any) -> Iterator[Mapping[str, Any]]:
    """The configuration of every layer with a name, in order."""
    waiting = [config]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Mapping):
            own = each.get("config")
            if isinstance(own, Mapping) and isinstance(own.get("name"), str):
                yield own
            waiting += reversed(list(each.values()))
        elif isinstance(each, list):
            waiting += reversed(each)


def _names(config: Any) -> Iterator[str]:
    """The names of layers, in order."""
    return (str(own["name"]) for own in _configured(config))


def _activations(config: Any) -> Iterator[tuple[str, str]]:
    """Names of layers and of their activation functions."""
    for own in _configured(config):
        if isinstance(own.get(ACTIVATION), str):
            yield own["name"], own[ACTIVATION]


def _tensor(dataset: Any, path: Path) -> Tensor:
    """The numbers of a dataset.

    Raises:
        InputError: for what holds no floats, or fewer numbers than it claims.
    """
    where = f"{path}: {dataset.name}"
    if dataset.dtype.kind != "f":
        raise InputError(f"{where} holds {dataset.dtype}, and only floating-point weights are read")
    if dataset.external or dataset.is_virtual:
        raise InputError(f"{where} lies in another file, which is not read")
    if dataset.id.get_storage_size() < dataset.nbytes and not dataset.compression:
        raise InputError(
            f"{where} claims the shape {list(dataset.shape)} and holds fewer numbers than that"
        )
    if dataset.nbytes > LARGEST:
        raise InputError(f"{where} claims {dataset.nbytes} bytes, which are not read")
    return torch.from_numpy(dataset[()].astype(dataset.dtype.newbyteorder("=")))


def _number(name: str) -> int:
    return int(name) if name.isdigit() else len(NAMES)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
