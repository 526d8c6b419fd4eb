"""Runs the Python blocks of a Markdown page and holds what they print against its `text` blocks.

    python scripts/run_pages.py PAGE.md...              brings pages up to date
    python scripts/run_pages.py --check FOLDER PAGE.md  fails where a page shows something else

Sybil reads a page and runs its blocks in order, in one namespace; what is printed belongs into the
next `text` block. Files that a page saves lie in docs/images, or in FOLDER for a check.

What a page shows must not hang on the processor: words and whole numbers are compared exactly, and
numbers with decimals or an exponent may differ by one unit of their last digit, since a number may
lie so near to the middle between two that rounding decides which is printed.
"""

import contextlib
import io
import os
import re
import sys
from decimal import Decimal
from pathlib import Path

from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser

# The pages' networks are so small that a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before a page imports torch

IMAGES = Path(__file__).parent.parent / "docs" / "images"

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")
"""With decimals or an exponent; all other digits are text."""


class Page:
    """A page that is run block by block.

    Attributes:
        fresh: the text of the page with the output of this run.
    """

    def __init__(self, path: Path, check: bool):
        self.check = check
        self._run = PythonEvaluator()
        self._printed = ""
        document = Document.parse(
            str(path),
            CodeBlockParser("python", self._code),
            CodeBlockParser("text", self._shown),
        )
        self._blocks: list[tuple[int, int, str]] = []
        last = None
        for last in document.examples():
            last.evaluate()
        if last is not None:
            self._nothing_left(last)
        self.fresh = document.text
        for start, end, text in reversed(self._blocks):
            self.fresh = self.fresh[:start] + text + self.fresh[end:]

    def _code(self, example: Example) -> None:
        self._nothing_left(example)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            self._run(example)
        self._printed = output.getvalue()

    def _shown(self, example: Example) -> str | None:
        printed, self._printed = self._printed, ""
        shown = str(example.parsed)
        wrapped = [[len(line.split()) for line in text.split("\n")] for text in (shown, printed)]
        if agree(shown, printed) and (self.check or wrapped[0] == wrapped[1]):
            return None
        self._blocks.append((example.start, example.end, f"```text\n{printed}```"))
        return f"the page shows\n{example.parsed}\nand this run printed\n{printed}" * self.check

    def _nothing_left(self, example: Example) -> None:
        if self._printed:
            raise SybilFailure(example, f"this was printed before and not shown:\n{self._printed}")


def agree(shown: str, printed: str) -> bool:
    """Whether two outputs are the same, but for the last digit of a number with decimals."""
    words, others = (NUMBER.sub("#", text).split() for text in (shown, printed))
    numbers = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=False)
    return words == others and all(_near(Decimal(a), Decimal(b)) for a, b in numbers)


def _near(a: Decimal, b: Decimal) -> bool:
    finest = min(int(number.as_tuple().exponent) for number in (a, b))
    return abs(a - b) <= Decimal(1).scaleb(finest)


if __name__ == "__main__":
    checked = sys.argv[1] == "--check"
    folder, names = (Path(sys.argv[2]), sys.argv[3:]) if checked else (IMAGES, sys.argv[1:])
    for path in [Path(name).resolve() for name in names]:
        with contextlib.chdir(folder):
            page = Page(path, checked)
        if not checked:
            path.write_text(page.fresh, encoding="utf-8")
