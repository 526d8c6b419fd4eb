"""Writes docs/evidence.md: every claim with its verdict, from the shipped results of the study.

    python scripts/evidence_page.py

Sentences and verdicts come from `retrograde.studies.claims`, their figures from the results that
`retrograde study claims` wrote; no figure is typed.
"""

from collections import Counter
from pathlib import Path

from retrograde.studies import Results, results
from retrograde.studies.claims import TEXTS, Claim, Figures, trials_of

PAGE = Path(__file__).parent.parent / "docs" / "evidence.md"
MARKS = {True: "✓", False: "✗"}

HEAD = """# Is it true, what is said?

Five texts stand at the beginning of this project: answers and articles about recurrent networks,
from the web, as many of their kind are written and read. Here is each of their claims that can be
measured, with what came out.

A claim is put into sentences which figures decide: ✓ borne out, ✗ not. It is *true* if all of them
are borne out, *wrong* if none is, *half true* otherwise. What each sentence takes for borne out
stands as code beside it (`src/retrograde/studies/claims/`). Unless something else is said, networks
are just drawn, by torch's default, and read white noise with a loss at the last step; a figure is
the mean over the networks named below the claim.

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
    why = f"{claim.why.format_map(figures)}\n\n" if claim.why and told else ""
    page = f" · [more about it]({claim.page})" if claim.page else ""
    drawn = f" · {networks} networks" if networks > 1 else ""
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
            f"| {claim.meaning} | [{verdicts[claim.name]}](#{claim.name}) |\n" for claim, _ in own
        )
        entries = "\n".join(
            entry(claim, trial.figures["figures"], trial.sequences) for claim, trial in own
        )
        parts.append(
            f"## {text.title}\n\n{text.what[0].upper()}{text.what[1:]}.\n\n"
            f"| claim | verdict |\n|---|---|\n{rows}\n{entries}"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(results("claims")), encoding="utf-8")
