"""Files are written whole or not at all, and a path that cannot be used is found out first."""

import os
import secrets
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from retrograde import _checks
from retrograde.errors import ArgumentError, InputError

HORIZON = "a horizon of retrograde"
"""A kind of file."""

LONGEST = 200
"""Of a longer path only both ends are shown."""


def as_path(path: object) -> Path:
    """A path as such.

    Raises:
        ArgumentError: for what is no path.
    """
    try:
        text = os.fspath(path) if isinstance(path, str | PathLike) else None
        usable = isinstance(text, str) and b"\0" not in os.fsencode(text)
    except UnicodeError:
        usable = False
    if not isinstance(text, str) or not usable:
        raise ArgumentError(f"path must be a path or a file name; got {_checks.shown(path)}")
    return Path(text)


def named(path: Path) -> str:
    """The path for a message, its middle left out if it is very long."""
    text = str(path)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


def why(error: Exception) -> str:
    """What the system says against a file, without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def check_readable(path: object, wanted: str) -> Path:
    """Refuse a path at which there is no file to read.

    Args:
        path: what arrived.
        wanted: what to give instead, for the message.

    Raises:
        ArgumentError: for what is no path.
        InputError: with the reason.
    """
    path = as_path(path)
    try:
        if path.is_dir():
            raise InputError(f"{named(path)} is a folder; give {wanted}")
        if not path.exists():
            raise InputError(f"there is no file {named(path)}; give {wanted}")
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot read {named(path)}: {why(error)}; give {wanted}") from None
    return path


def kind(path: Path) -> str:
    """What a file is, in words, by its first bytes and its name; nothing where that does not tell.

    For the message when it is not what was asked for.
    """
    try:
        with path.open("rb") as file:
            first = file.read(4096)
    except OSError:
        return ""
    text = first.lstrip().lower()
    for words, found in {
        "a checkpoint of torch.save": first.startswith((b"PK\x03\x04", b"\x80")),
        "a safetensors file": first[8:9] == b"{",
        "a report of retrograde": b'"retrograde-report/' in text,
        HORIZON: b'"retrograde-horizon/' in text,
        "an HTML page": text.startswith((b"<!doctype html", b"<html")),
        "a notebook": path.suffix == ".ipynb",
        "a Python file": path.suffix == ".py",
    }.items():
        if found:
            return words
    return ""


def check_writable(path: object) -> Path:
    """Refuse a path that cannot be written, before any work is done for it.

    Raises:
        ArgumentError: for what is no path.
        InputError: with the reason.
    """
    path = as_path(path)
    where = f"cannot write {named(path)}"
    try:
        if path.is_dir():
            raise InputError(f"{where}: it is a folder; give a file name")
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"{where}: there is no folder {named(folder)}; create it first")
        needed = [path] if path.exists() else []
        if not _is_stream(path):
            needed.append(path.resolve().parent)
        if not all(os.access(each, os.W_OK) for each in needed):
            raise InputError(f"{where}: no permission; choose another place")
    except (OSError, RuntimeError) as error:  # the latter: a circle of links
        raise InputError(f"{where}: {why(error)}; choose another name") from None
    return path


def encodable(text: str) -> str:
    """The text with half surrogate pairs, which UTF-8 has no bytes for, written out as \\udce9."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_text(path: object, text: str) -> None:
    """Write a text file in UTF-8, half surrogate pairs written out.

    Raises:
        ArgumentError: for what is no path.
        InputError: if the path cannot be written.
    """
    write(path, lambda file: file.write(encodable(text).encode()))


def write(path: object, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file by way of a temporary one beside it; what it replaces lends its mode.

    A link is followed, and what is no file (/dev/stdout, a pipe) is written straight away.

    Args:
        path: where to.
        fill: writes the contents to an open file.

    Raises:
        ArgumentError: for what is no path.
        InputError: if the path cannot be written.
    """
    path = check_writable(path)
    try:
        if _is_stream(path):
            with path.open("wb") as file:
                fill(file)
        else:
            _replace(path.resolve(), fill)
    except OSError as error:
        raise InputError(f"cannot write {named(path)}: {why(error)}") from error


def _replace(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    temporary = path.with_name(f".retrograde-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            fill(file)
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file()
