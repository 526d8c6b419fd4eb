"""Runs the Python blocks of a Markdown page and puts what they print into its `text` blocks.

The tests check every page against a fresh run, and the documentation is built of the pages as they
are. Blocks run in order, in one namespace a page; what is printed belongs into the next `text`
block.

    python scripts/run_pages.py PAGE.md...    brings pages up to date, images into docs/images
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

# The pages' networks are so small that a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before a page imports torch

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(text: str, name: str, folder: Path) -> str:
    """The page with fresh output; files that its code saves lie in `folder`."""
    namespace: dict[str, Any] = {}
    printed = ""

    def fresh(match: re.Match[str]) -> str:
        nonlocal printed
        language, code = match.groups()
        if language == "text":
            shown, printed = printed, ""
            return f"```text\n{shown}```"
        if printed:
            raise SystemExit(f"{name} prints this and does not show it:\n{printed}")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(code, name, "exec"), namespace)
        printed = output.getvalue()
        return match.group()

    with contextlib.chdir(folder):
        result = BLOCK.sub(fresh, text)
    if printed:
        raise SystemExit(f"{name} prints this and does not show it:\n{printed}")
    return result


if __name__ == "__main__":
    images = Path(__file__).parent.parent / "docs" / "images"
    for path in map(Path, sys.argv[1:]):
        path.write_text(run(path.read_text(), path.name, images))
