"""What the command `study` runs and shows, and where it keeps its results."""

from pathlib import Path

import typer
from rich.table import Table

from retrograde._terminal import plain
from retrograde.cli import exits
from retrograde.cli.terminal import complain, progress
from retrograde.studies import STUDIES, Results, running
from retrograde.studies.outcomes import shipped
from retrograde.studies.page import duration
from retrograde.studies.running import Plan

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


def run(plan: Plan, place: Path, processes: int, minutes: float | None, quiet: bool) -> Results:
    """Run a study, and say what is left of it."""
    told = None if quiet else say
    try:
        with progress(f"study {plan.study.name}", quiet) as tell:
            found = running.run(plan, place, processes, minutes, tell, told)
    except KeyboardInterrupt:
        complain(f"{plan.study.name}: what is done is kept; the same command goes on")
        raise typer.Exit(exits.INTERRUPTED) from None
    if left := sum(len(work.seeds) for work in plan.missing(found)):
        complain(f"{left} trials are left; the same command goes on")
    return found
