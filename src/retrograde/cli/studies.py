"""What the command `study` shows and where it keeps its results."""

from pathlib import Path

from rich.table import Table

from retrograde._terminal import plain
from retrograde.studies import STUDIES
from retrograde.studies.outcomes import shipped
from retrograde.studies.page import duration

LIST = "list"
"""Given in the place of a study's name."""


def listing() -> Table:
    """All studies, and what they cost where they were run."""
    table = Table(
        "study", "what is asked", "rows", "CPU time, as measured", box=None, pad_edge=False
    )
    for name, study in STUDIES.items():
        found = shipped(name)
        seconds = sum(t.seconds for p in found.parts for t in p.trials) if found else None
        run = {part.row for part in found.parts} if found else set()
        cost = "" if seconds is None else duration(seconds)
        if run and len(run) < len(study.rows):
            cost += f" for {len(run)} of the rows"
        table.add_row(name, f"{study.title} ({study.paper})", str(len(study.rows)), cost)
    return table


def results_file(name: str, out: Path | None) -> Path:
    """The file of the results: the one named, or one of the usual name in a folder."""
    if out is None:
        return Path(f"retrograde-study-{name}.json")
    return out / f"{name}.json" if out.is_dir() else out


def say(line: str) -> None:
    """Say something at once, also where the output is a file."""
    print(plain(line), flush=True)
