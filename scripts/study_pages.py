"""Writes the table of docs/old-experiments.md: what papers printed, beside the shipped results.

    python scripts/study_pages.py

What stands between the two marks is replaced.
"""

from pathlib import Path

from retrograde import studies
from retrograde.report.markdown import escaped
from retrograde.studies.outcomes import shipped

PAGE = Path(__file__).parent.parent / "docs" / "old-experiments.md"
FIRST, LAST = "<!-- scripts/study_pages.py writes this: -->", "<!-- until here -->"


def table() -> str:
    """All rows that stand in a paper, and what they were run on."""
    page = studies.published()
    lines = [page.titles, ["---", *["---:"] * (len(page.titles) - 1)], *page.rows]
    cells = ["| " + " | ".join(map(escaped, line)) + " |" for line in lines]
    return "\n".join([*cells, "", *page.notes, "", cost()])


def cost() -> str:
    """What all that comes with the package took."""
    found = filter(None, map(shipped, studies.STUDIES))
    trials = [trial for results in found for part in results.parts for trial in part.trials]
    hours = sum(trial.seconds for trial in trials) / 3600
    return (
        "All results that come with the package, with those on "
        "[how far back networks learn](how-far-back-does-it-learn.md) and of the "
        f"[evidence](evidence.md), are {len(trials):,} trials and took {hours:.1f} hours of "
        "processor time."
    )


def render(text: str) -> str:
    """The page with the table as it is now."""
    before, _, rest = text.partition(FIRST)
    _, _, after = rest.partition(LAST)
    return f"{before}{FIRST}\n\n{table()}\n\n{LAST}{after}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
