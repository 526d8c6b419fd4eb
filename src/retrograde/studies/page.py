"""What came out of a study, as text for a terminal and as a page that opens offline."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from os import PathLike
from typing import Any

from retrograde import _files
from retrograde._terminal import as_text, plain, rich
from retrograde.report.html import environment
from retrograde.report.pictures import Pictures, javascript
from retrograde.studies.outcomes import Interval, Outcome, Results, shipped
from retrograde.studies.study import Row, Study, Table
from retrograde.studies.tables import expected
from retrograde.tasks.experiments import Published

TITLES = ("row", "published", "solved", "ours", "solved (95 % interval)", "CPU time of a trial")


@dataclass(frozen=True)
class StudyPage:
    """The results of a study beside what its paper printed.

    Attributes:
        title: what was asked.
        paper: where the table stands.
        success: when a trial counts as solved.
        titles, rows: the table.
        tables: further ones, by heading.
        notes: what else there is to say.
        charts: what draws them, by name.

    Example:
        >>> from retrograde.studies import STUDIES, Results, StudyPage
        >>> page = StudyPage.of(STUDIES["6a"], Results("6a", ()))
        >>> page.rows[0][:2]
        ('6a', '31,390')
    """

    title: str
    paper: str
    success: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    tables: Mapping[str, Table] = field(default_factory=dict)
    charts: Mapping[str, Callable[[], Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, study: Study, results: Results) -> "StudyPage":
        """The results of a study, which may be those of a few of its trials."""
        titles, rows = (study.table or partial(published_beside_ours, study))(results)
        notes = study.notes(results) if study.notes else ()
        tables = study.tables(results) if study.tables else {}
        drawn = study.charts(results) if study.charts else {}
        return cls(
            study.title,
            study.paper,
            study.success,
            tuple(titles),
            tuple(tuple(row) for row in rows),
            (*notes, *_cut_short(study, results), *_run_on(results)),
            {heading: of for heading, of in tables.items() if of[1]},
            {name: partial(_itself, chart) for name, chart in drawn.items()},
        )

    @classmethod
    def of_tables(cls, studies: Iterable[Study]) -> "StudyPage":
        """All rows that stand in a paper, with the results that come with the package."""
        rows: list[Sequence[str]] = []
        notes: dict[str, None] = {}
        for study in studies:
            found = shipped(study.name) or Results(study.name, ())
            table = published_beside_ours(study, found)[1]
            rows += [row for row, of in zip(table, study.rows, strict=True) if of.published]
            notes |= dict.fromkeys(_run_on(found))
        return cls(
            "The old experiments, run again",
            "Mean number of training sequences until a task was solved, over the trials that did",
            "as each study says",
            TITLES,
            tuple(tuple(row) for row in rows),
            tuple(notes),
        )

    def __rich__(self) -> Any:
        Text = rich().Text  # noqa: N806
        parts = [Text(plain(self.title), style="bold")]
        parts += [Text(plain(f"{self.paper}. Solved: {self.success}.")), Text("")]
        parts.append(_table(self.titles, self.rows))
        for heading, (titles, rows) in self.tables.items():
            parts += [Text(""), Text(plain(heading), style="bold"), _table(titles, rows)]
        return rich().Group(*parts, *(Text(plain(note)) for note in self.notes))

    def __str__(self) -> str:
        return as_text(self.__rich__())

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write the page.

        Raises:
            InputError: if the path cannot be written.
        """
        _files.check_writable(path)
        gallery = Pictures()
        for name, make in self.charts.items():
            gallery.add(name, make)
        text = (
            environment()
            .get_template("study.html.jinja")
            .render(
                title=self.title,
                study=self,
                gallery=gallery,
                javascript=javascript() if gallery.specs else "",
                version=version("retrograde"),
            )
        )
        _files.write_text(path, _files.encodable(text))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """A table for a terminal."""
    table = rich().Table(box=None, pad_edge=False)
    for column in titles:
        table.add_column(rich().Text(plain(column)), overflow="fold")
    for row in rows:
        table.add_row(*(rich().Text(plain(word)) for word in row))
    return table


def published_beside_ours(study: Study, results: Results) -> Table:
    """The table of a study whose rows stand in a paper."""
    return TITLES, [_words(row, results.outcome(row.name)) for row in study.rows]


def _words(row: Row, ours: Outcome | None) -> tuple[str, ...]:
    published = row.published
    words: tuple[str, ...] = ("not run", "", _expected(row)) if ours is None else _found(ours)
    return (
        row.title,
        f"{published.sequences:,}" if published and published.sequences else "",
        share_of(published) if published else "",
        *words,
    )


def _expected(row: Row) -> str:
    seconds = expected(row)
    return "" if seconds is None else f"about {duration(seconds)}"


def share_of(published: Published) -> str:
    """How many of a paper's trials solved the task: "97 % of 30"."""
    return f"{100 * published.succeeded:.0f} % of {published.trials}"


def _found(ours: Outcome) -> tuple[str, str, str]:
    sequences = ""
    if ours.sequences is not None:
        mean, interval = ours.sequences
        sequences = f"{mean:,.0f}{_between(interval, '{:,.0f}')}"
    share, interval = ours.share
    percent = interval[0] * 100, interval[1] * 100
    by = "" if ours.budget is None else f" by {ours.budget:,}"
    solved = f"{100 * share:.0f} % of {ours.trials}{_between(percent, '{:.0f}')}{by}"
    return sequences, solved, duration(ours.seconds / ours.trials)


def _between(interval: Interval | None, form: str) -> str:
    if interval is None:
        return ""
    low, high = (form.format(bound) for bound in interval)
    return f" ({low} to {high})"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for name, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def _cut_short(study: Study, results: Results) -> list[str]:
    """What was run with a smaller budget than its row's, and failed with it, in a sentence.

    The table of published figures says it beside the share that was solved.
    """
    budgets = {row.name: row.budget for row in study.rows}
    cut = [
        f"{part.row} ({part.budget:,})"
        for part in results.parts
        if part.budget < budgets.get(part.row, 0)
        if study.table is not None and not all(trial.solved for trial in part.trials)
    ]
    if not cut:
        return []
    return [
        f"Cut short: trials that failed had fewer {study.counts} than their rows allow, and may "
        f"have needed more: {', '.join(cut)}."
    ]


def _run_on(results: Results) -> list[str]:
    """What the trials were run with, a sentence for each."""
    machines = dict.fromkeys(part.machine for part in results.parts)
    return [
        f"Run on {machine.processor} with retrograde {machine.retrograde}, torch {machine.torch}, "
        f"{machine.backend} backend."
        for machine in machines
    ]


def _itself(chart: Any) -> Any:
    return chart
