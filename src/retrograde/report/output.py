"""Files are written whole or not at all, and a path that cannot be written is found out first."""

import os
import secrets
import shutil
from os import PathLike
from pathlib import Path

from retrograde.errors import InputError


def check_writable(path: str | PathLike[str]) -> None:
    """Refuse a path that cannot be written, before any work is done for it.

    Raises:
        InputError: with the reason.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file name")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    needed = [path] if path.exists() else []
    if not _is_stream(path):
        needed.append(path.resolve().parent)
    if not all(os.access(each, os.W_OK) for each in needed):
        raise InputError(f"cannot write {path}: no permission; choose another place")


def write(path: str | PathLike[str], text: str) -> None:
    """Write a text file by way of a temporary one beside it; what it replaces lends its mode.

    A link is followed, and what is no file (/dev/stdout, a pipe) is written straight away.

    Raises:
        InputError: if the path cannot be written.
    """
    check_writable(path)
    path = Path(path)
    try:
        if _is_stream(path):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        else:
            _replace(path.resolve(), text)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".retrograde-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file()
