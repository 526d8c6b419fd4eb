"""What a command writes: files that are checked before any work is done, and the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from retrograde import _files
from retrograde._terminal import plain
from retrograde.cli.terminal import show
from retrograde.errors import InputError


def check(*paths: Path | None, reads: Sequence[Path] = ()) -> None:
    """Refuse what cannot be written, and what would overwrite a file that is used as well."""
    seen = {path.resolve() for path in reads}
    for path in paths:
        if path is None:
            continue
        _files.check_writable(path)
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice; give every file a name of its own")
        seen.add(path.resolve())


def write(result: Any, html: Path | None = None, json: Path | None = None) -> None:
    """Write the page and the numbers of a result, where they were asked for."""
    if html is not None:
        result.to_html(html)
    if json is not None:
        result.to_json(json)


def present(result: RenderableType, *written: Path | None, quiet: bool = False) -> None:
    """Show a result, and name the files that were written."""
    if quiet:
        return
    show(result)
    for path in filter(None, written):
        print(plain(f"wrote {path}"))
