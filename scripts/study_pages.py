"""Writes the table of docs/old-experiments.md: what papers printed, beside the shipped results.

    python scripts/study_pages.py

What stands between the two marks is replaced.
"""

from pathlib import Path

from retrograde import studies
from retrograde.report.markdown import escaped

PAGE = Path(__file__).parent.parent / "docs" / "old-experiments.md"
FIRST, LAST = "<!-- scripts/study_pages.py writes this: -->", "<!-- until here -->"


def table() -> str:
    """All rows that stand in a paper, and what they were run on."""
    page = studies.published()
    lines = [page.titles, ["---", *["---:"] * (len(page.titles) - 1)], *page.rows]
    cells = ["| " + " | ".join(map(escaped, line)) + " |" for line in lines]
    return "\n".join([*cells, "", *page.notes])


def render(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(FIRST)
    _, _, after = rest.partition(LAST)
    return f"{before}{FIRST}\n\n{table()}\n\n{LAST}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
