"""Files are written whole or not at all, and a path that cannot be written is found out first."""

import os
import tempfile
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
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission; choose another place")


def write(path: str | PathLike[str], text: str) -> None:
    """Write a text file by way of a temporary one beside it.

    Raises:
        InputError: if the path cannot be written.
    """
    check_writable(path)
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
