"""Weights from a file, read without executing anything that is in it."""

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retrograde import _files
from retrograde.errors import InputError
from retrograde.spectra.weights.keras import is_keras_file, keras_file

ADVICE = "save model.state_dict() with torch.save or safetensors, and give that file"


def read(path: Path) -> Mapping[Any, Any]:
    """The state dict or checkpoint in a file of torch.save, safetensors or Keras.

    Nothing in it is executed: torch reads tensors and plain containers only (`weights_only`),
    safetensors holds nothing else, and of a file of Keras the recurrent weights are read as data.
    What the file is, is told by its first bytes.

    Raises:
        InputError: if there is no such file, or no weights are in it that can be had that way.
    """
    _files.check_readable(
        path, "a .safetensors, .pt, .pth, .keras or .h5 file, or FILE.py:FUNCTION"
    )
    if path.suffix == ".py":
        raise InputError(f"{path} is a Python file; name its function as well: {path}:FUNCTION")
    try:
        with path.open("rb") as file:
            first = file.read(9)
        if path.suffix == ".safetensors" or first[8:] == b"{":
            return _safetensors(path)
        if is_keras_file(path):
            return keras_file(path)
        found = _torchs(path, first)
    except OSError as error:
        raise InputError(f"cannot read {path}: {_files.why(error)}") from None
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise InputError(f"{path} holds no state dict but one object of type {kind}; {ADVICE}")
    return found


def state_dict(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a file, or in a checkpoint under the usual names.

    Raises:
        InputError: as `read`, and if it holds none.
    """
    found = read(path)
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not found or not all(isinstance(weight, torch.Tensor) for weight in found.values()):
        raise InputError(f"{path} holds no state dict; {ADVICE}")
    return found


def by_name(paths: Sequence[Path]) -> dict[str, Mapping[str, torch.Tensor]]:
    """State dicts by the names of their files, or by their paths where names are alike."""
    names = [path.stem for path in paths]
    short = len(set(names)) == len(names)
    return {
        name if short else str(path): state_dict(path)
        for name, path in zip(names, paths, strict=True)
    }


def _safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file, or is truncated: {_first_line(error)}"
        ) from None


def _torchs(path: Path, first: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # what is no checkpoint ends the reader in many ways
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript archive, which contains code; {ADVICE}"
            ) from None
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and (code or first[:1] == b"\x80"):
            named = f" (the first: {code[1]})" if code else ""
            raise InputError(
                f"{path} holds Python objects{named}; loading them could run arbitrary code, so "
                f"they were not loaded; {ADVICE}"
            ) from None
        kind = _files.kind(path)
        other = f"{path} is {kind}, not a checkpoint" if kind and "checkpoint" not in kind else ""
        raise InputError(
            (other or f"{path} is not a checkpoint of torch.save or safetensors, or is truncated")
            + f"; {ADVICE}"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
