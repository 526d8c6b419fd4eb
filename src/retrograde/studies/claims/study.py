"""The claims as a study: each is a row, and what is measured is the result of its trial."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrograde.diagnosis.examine import Progress
from retrograde.errors import InputError
from retrograde.studies.claims.claim import Claim
from retrograde.studies.claims.table import CLAIMS
from retrograde.studies.outcomes import Results
from retrograde.studies.study import Row, Study, Trial


@dataclass(frozen=True)
class Measured:
    """A claim, measured as a trial.

    Attributes:
        claim: its name.
    """

    claim: str

    def __call__(
        self,
        seeds: Sequence[int],
        budget: int,
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> Sequence[Trial]:
        """As `Run` says: `budget` networks for each seed; no claim takes long enough for a file."""
        trials, claim = [], CLAIMS[self.claim]
        for done, seed in enumerate(seeds):
            if progress is not None:
                progress(done, len(seeds), claim.name)
            figures = claim.figures(range(seed * budget, (seed + 1) * budget))
            verdict = claim.verdict(figures)
            found = {"verdict": verdict, "figures": figures}
            trials.append(Trial(seed, budget, verdict == "true", found))
        return trials


def _rows_of_results(results: Results) -> Iterator[tuple[str, str, str]]:
    for claim, trial in trials_of(results):
        figures = trial.figures["figures"]
        said = "; ".join(
            ("" if statement.judged(figures) else "not: ") + statement.said(figures)
            for statement in claim.statements
            if statement.judged(figures) is not None
        )
        yield claim.name, claim.verdict(figures), said


def trials_of(results: Results) -> Iterator[tuple[Claim, Trial]]:
    """Each claim that was measured, with its first trial.

    Raises:
        InputError: for a claim that is not known, figures of another version of the claim, and a
            verdict that its figures do not give.
    """
    for row in dict.fromkeys(part.row for part in results.parts):
        if row not in CLAIMS:
            raise InputError(f"these results have a claim {row!r} that there is not")
        claim, trial = CLAIMS[row], results.trials(row)[0]
        figures = trial.figures.get("figures", {})
        claim.check(figures)
        told, found = trial.figures.get("verdict"), claim.verdict(figures)
        if told != found:
            raise InputError(
                f"the results call the claim {row!r} {told}, and its figures say {found}; "
                f"measure it again: retrograde study claims --row {row}"
            )
        yield claim, trial


STUDY = Study(
    "claims",
    "Is it true, what is said about recurrent networks?",
    "five texts on the web, listed in docs/evidence.md",
    "all sentences of a claim are borne out",
    tuple(
        Row(claim.name, claim.meaning, Measured(claim.name), trials=1, budget=claim.seeds)
        for claim in CLAIMS.values()
    ),
    counts="networks",
    found=lambda trials: ", ".join(trial.figures["verdict"] for trial in trials),
    table=lambda results: (
        ("claim", "verdict", "measured"),
        list(_rows_of_results(results)),
    ),
)
"""Each claim is a row; its budget is the number of networks behind each mean."""
