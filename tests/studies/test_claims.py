"""The claims: quick measurements give the shipped verdicts, and the page is what these give."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from retrograde.errors import ArgumentError, InputError
from retrograde.studies import STUDIES, Results, results
from retrograde.studies.claims import CLAIMS, TEXTS, Claim, Statement, trials_of
from retrograde.studies.claims.claim import figures_in

pytestmark = pytest.mark.usefixtures("unchecked")

ROOT = Path(__file__).parent.parent.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "evidence_page.py"))
SHIPPED = results("claims")
FIGURES = {claim.name: trial.figures["figures"] for claim, trial in trials_of(SHIPPED)}


def test_every_claim_was_measured():
    assert list(FIGURES) == list(CLAIMS)
    assert {claim.text for claim in CLAIMS.values()} == set(TEXTS)


@pytest.mark.parametrize("name", CLAIMS)
def test_fewer_networks_give_the_same_verdict(name):
    claim = CLAIMS[name]
    figures = claim.figures(range(claim.quick))
    claim.check(figures)
    judged = [statement.judged(figures) for statement in claim.statements]
    assert judged == [statement.judged(FIGURES[name]) for statement in claim.statements]
    if claim.reads:
        assert figures == FIGURES[name], "run scripts/evidence_page.py"
    else:
        assert None not in judged


def test_the_page_is_what_the_shipped_results_give():
    page = SCRIPT["PAGE"].read_text(encoding="utf-8")
    assert page == SCRIPT["render"](SHIPPED), "run scripts/evidence_page.py"


NO_FIGURE = (
    r"`[^`]*`|\{[^}]*\}|\b[A-Za-z]+_\{?\w+\}?|\b(19|20)\d\d\b|2\^|\blag [01]\b|k = 0|CO2|log2"
    r"|experiment \d\w?"
)
"""Code, a place for a figure, a name with an index, a year, and what else is no result."""


@pytest.mark.parametrize("name", CLAIMS)
def test_a_sentence_has_no_figure_but_those_of_the_results(name):
    claim = CLAIMS[name]
    for words in (claim.why, *(statement.words for statement in claim.statements)):
        assert not re.search(r"\d", re.sub(NO_FIGURE, "", words)), words


@pytest.mark.parametrize("name", CLAIMS)
def test_a_sentence_shows_what_decides_it(name):
    """A sentence that is changed in a figure that it does not show is judged as before."""
    for statement in CLAIMS[name].statements:
        shown = {key: FIGURES[name][key] for key in statement.needs & set(FIGURES[name])}
        assert statement.judged(shown) == statement.judged(FIGURES[name])


def changed(name, **figures):
    parts = []
    for part in SHIPPED.parts:
        if part.row == name:
            (trial,) = part.trials
            trial = replace(trial, figures={**trial.figures, **figures})
            part = replace(part, trials=(trial,))
        parts.append(part)
    return Results("claims", tuple(parts))


@pytest.mark.parametrize(
    ("found", "error", "says"),
    [
        (changed("powers", verdict="true"), InputError, "call the claim 'powers' true"),
        (
            changed("powers", figures={**FIGURES["powers"], "above": 13.2}),
            InputError,
            "its figures say true",
        ),
        (
            changed("powers", figures={**FIGURES["powers"], "seven": 7.0}),
            ArgumentError,
            "other figures: ['seven']",
        ),
        (
            Results("claims", (replace(SHIPPED.parts[0], row="no-such-claim"),)),
            InputError,
            "'no-such-claim' that there is not",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused(found, error, says):
    with pytest.raises(error, match=re.escape(says)):
        SCRIPT["render"](found)


def test_another_figure_changes_the_page():
    for name in ("powers", "larger-nets"):
        first = min(figures_in(CLAIMS[name].statements[0].words))
        other = {**FIGURES[name], first: FIGURES[name][first] * 1.5}
        verdict = CLAIMS[name].verdict(other)
        assert SCRIPT["render"](changed(name, figures=other, verdict=verdict)) != SCRIPT["render"](
            SHIPPED
        )


def test_the_rule_of_verdicts():
    yes, no = (Statement("{x}", lambda f, sign=sign: f["x"] * sign > 0) for sign in (1, -1))
    unknown = Statement("{y}", lambda f: f["y"] > 0)

    def verdict(*statements):
        claim = Claim("n", "000", "", "", lambda seeds: {"x": 1.0}, statements, "")
        return claim.verdict(claim.figures())

    assert verdict(yes, yes) == "true"
    assert verdict(yes, no) == verdict(no, unknown, yes) == "half true"
    assert verdict(no) == verdict(no, unknown) == "wrong"
    assert verdict(unknown) == "cannot tell"


def test_the_study_runs_a_claim():
    row = STUDIES["claims"].row("powers")
    (trial,) = row.run([0], row.budget)
    assert trial.figures == {"verdict": "half true", "figures": CLAIMS["powers"].figures()}
    titles, rows = STUDIES["claims"].table(SHIPPED)
    assert len(titles) == 3 and len(rows) == len(CLAIMS)
