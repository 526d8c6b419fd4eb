"""Published experiments, run again: many small networks, their results and what repeats."""

from retrograde import _checks
from retrograde.errors import InputError
from retrograde.studies import ladder_study, modern, tables, timing
from retrograde.studies.claims.study import STUDY as CLAIMS
from retrograde.studies.outcomes import Machine, Outcome, Part, Results, merged, shipped
from retrograde.studies.page import StudyPage
from retrograde.studies.study import Row, Run, Study, Trial

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        *tables.published(),
        timing.STUDY,
        ladder_study.STUDY,
        modern.STUDY,
        CLAIMS,
    )
}
"""All studies by name, in the order in which they are listed."""


def results(name: str) -> Results:
    """The results of a study that come with the package.

    Args:
        name: of the study, as in `STUDIES`.

    Raises:
        ArgumentError: if there is no such study.
        InputError: if no results of it come with the package.

    Example:
        >>> import retrograde.studies
        >>> retrograde.studies.results("4").study  # doctest: +SKIP
        '4'
    """
    found = shipped(_checks.existing("study", name, STUDIES))
    if found is None:
        raise InputError(
            f"no results of the study {name} come with the package; retrograde study {name} runs it"
        )
    return found


def published() -> StudyPage:
    """All rows that stand in a paper, beside what the results of the package say.

    Example:
        >>> import retrograde.studies
        >>> page = retrograde.studies.published()
        >>> next(row[:3] for row in page.rows if row[0] == "6a")
        ('6a', '31,390', '100 % of 20')
    """
    return StudyPage.of_tables(study for study in STUDIES.values() if study.table is None)


__all__ = [
    "STUDIES",
    "Machine",
    "Outcome",
    "Part",
    "Results",
    "Row",
    "Run",
    "Study",
    "StudyPage",
    "Trial",
    "merged",
    "published",
    "results",
]
