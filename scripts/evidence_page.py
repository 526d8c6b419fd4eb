"""Writes docs/evidence.md: every claim with its verdict, from the shipped results of the study.

    python scripts/evidence_page.py

Sentences and verdicts come from `retrograde.studies.claims`, their figures from the results that
`retrograde study claims` wrote; no figure is typed. Claims that read the shipped results of other
studies are read again first.
"""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import retrograde.studies
from retrograde.studies import STUDIES, Results, results
from retrograde.studies.claims import CLAIMS, TEXTS, Claim, Figures, trials_of

PAGE = Path(__file__).parent.parent / "docs" / "evidence.md"
RESULTS = Path(retrograde.studies.__file__).parent / "results" / "claims.json"
MARKS = {True: "✓", False: "✗"}
POWER = re.compile(r"(\d[\d.]*)\^(-?\d+(?:\.\d+)?)")

HEAD = """# Is what they say true?

This project began with five texts from the web about recurrent networks: questions with their
answers, and articles. Here is every claim of theirs that can be measured, with what came out.
Words such as *adjoint*, *carousel* and *lag* are explained in the [vocabulary](vocabulary.md).

Each claim is split into statements that measurements decide: ✓ borne out, ✗ not. It is *true* if
all are borne out, *wrong* if none is, *half true* otherwise. When a statement counts as borne out
is written as code beside it (`src/retrograde/studies/claims/`). Unless something else is said,
networks are untrained, drawn as torch does by default, and read white noise with a loss at the last
step; a figure is the mean over the networks named below the claim.

```console
$ retrograde study claims                        # measures all of them again
$ retrograde study claims --row powers-of-r-o    # or one
```

"""


def entry(claim: Claim, figures: Figures, networks: int) -> str:
    """A claim with its verdict and the figures behind it."""
    told = "\n".join(
        f"- {MARKS[judged]} {statement.said(figures)}"
        for statement in claim.statements
        if (judged := statement.judged(figures)) is not None
    )
    remark = claim.remark.said(figures) if claim.why and claim.remark.judged(figures) else ""
    why = f"{remark}\n\n" if remark else ""
    page = f" · [more about it]({claim.page})" if claim.page else ""
    drawn = f" · {networks} networks" if networks > 1 else ""
    drawn += "".join(f" · reads the study `{name}`" for name in claim.reads)
    told = told or "Not measured yet."
    return (
        f"### {claim.name}\n\n> {claim.quotation}\n>\n> {claim.meaning}\n\n"
        f"**{claim.verdict(figures).capitalize()}.**\n\n{told}\n\n{why}"
        f"`retrograde study claims --row {claim.name}`{drawn}{page}\n"
    )


def render(measured: Results) -> str:
    """The page."""
    found = list(trials_of(measured))
    verdicts = {claim.name: claim.verdict(trial.figures["figures"]) for claim, trial in found}
    counted = ", ".join(f"{n} {verdict}" for verdict, n in Counter(verdicts.values()).most_common())
    parts = [f"{HEAD}Of {len(found)} claims: {counted}.\n"]
    for number, text in TEXTS.items():
        own = [(claim, trial) for claim, trial in found if claim.text == number]
        rows = "".join(
            f"| {claim.meaning} | [{verdicts[claim.name]}](#{claim.name}) |\n".replace(
                "half true", "half\N{NO-BREAK SPACE}true"
            )
            for claim, _ in own
        )
        entries = "\n".join(
            entry(claim, trial.figures["figures"], trial.sequences) for claim, trial in own
        )
        parts.append(
            f"## {text.heading}\n\n{text.kind}: *{text.title}*\n\n"
            f"| claim | verdict |\n|---|---|\n{rows}\n{entries}"
        )
    return POWER.sub(r"$\1^{\2}$", "\n".join(parts))


def read_again(measured: Results) -> Results:
    """The same with those claims brought up to date that read other studies."""
    parts = []
    for part in measured.parts:
        if CLAIMS[part.row].reads:
            (trial,) = STUDIES["claims"].row(part.row).run([0], part.budget)
            part = replace(part, trials=(trial,))
        parts.append(part)
    return Results(measured.study, tuple(parts))


if __name__ == "__main__":
    fresh = read_again(results("claims"))
    fresh.to_json(RESULTS)
    PAGE.write_text(render(fresh), encoding="utf-8")
