"""Outcomes, their intervals, and the results that come with the package."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from retrograde import backend, studies
from retrograde.errors import ArgumentError, InputError
from retrograde.studies import STUDIES, Machine, Part, Results, StudyPage, Trial
from retrograde.studies.outcomes import resampled, shipped, wilson
from retrograde.studies.tables import OnLine
from retrograde.studies.trials import beginning
from support.small_study import COUNTING

HERE = Machine("a processor", "2.13", "0.1", "eager")
SHIPPED = [name for name in STUDIES if shipped(name)]
ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(studies.__file__).parent / "results"


@pytest.mark.parametrize(("solved", "trials"), [(0, 4), (7, 10), (10, 10), (62, 100)])
def test_wilsons_interval_is_that_of_scipy(solved: int, trials: int):
    theirs = stats.binomtest(solved, trials).proportion_ci(method="wilson")
    assert wilson(solved, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_of_a_mean_is_that_of_scipys_bootstrap():
    values = np.random.default_rng(1).exponential(1000, 10).tolist()
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=0)
    found = resampled(values)
    assert found == pytest.approx(tuple(theirs.confidence_interval), rel=0.03)  # of 10,000 drawn
    assert found == resampled(values)
    assert resampled([5.0]) is None


def test_what_did_not_solve_the_task_is_not_in_the_mean():
    trials = (Trial(0, 100, True, seconds=3.0), Trial(1, 300, True), Trial(2, 900, False))
    found = Results("counting", (Part("first", 900, HERE, trials),))
    outcome = found.outcome("first")
    assert (outcome.solved, outcome.trials, outcome.seconds) == (2, 3, 3.0)
    assert outcome.sequences[0] == 200.0 and found.outcome("second") is None
    none = Results("counting", (Part("first", 900, HERE, trials[2:]),)).outcome("first")
    assert none.sequences is None and none.share[0] == 0.0
    assert outcome.budget == none.budget == 900
    assert StudyPage.of(COUNTING, found).rows[0][4] == "67 % of 3 (21 to 94) by 900"


def test_the_page_shows_published_beside_ours(tmp_path: Path):
    trials = (Trial(0, 1000, True, seconds=300.0), Trial(1, 3000, True, seconds=300.0))
    found = Results("counting", (Part("first", 9000, HERE, trials),))
    page = StudyPage.of(COUNTING, found)
    assert page.rows == (
        (
            *("the first", "12", "100 % of 4"),
            *("2,000 (1,000 to 3,000)", "100 % of 2 (34 to 100)", "5 min"),
        ),
        ("the second", "", "", "not run", "", ""),
    )
    assert "not run" in str(page) and "a processor" in str(page)
    page.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for word in ("How far do seeds count?", "2,000 (1,000 to 3,000)", "Solved: the seed is even."):
        assert word in text


def test_what_was_cut_short_is_said_and_further_tables_are_shown(tmp_path: Path):
    more = {"More of it": (("a", "b"), [("x < y", "z")])}
    study = replace(COUNTING, table=lambda _: (("c",), []), tables=lambda _: more)
    whole = Part("first", 100, HERE, (Trial(0, 100, False),))
    cut = Part("second", 30, HERE, (Trial(0, 30, False),))
    page = StudyPage.of(study, Results("counting", (whole, cut)))
    assert page.notes[0].startswith("Cut short: trials that failed had fewer sequences")
    assert page.notes[0].endswith("needed more: second (30).")
    solved = replace(cut, trials=(Trial(0, 30, True),))
    assert "Cut short" not in str(StudyPage.of(study, Results("counting", (solved,))))
    assert "More of it" in str(page) and "x < y" in str(page)
    page.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<h2>More of it</h2>" in text and "<td>x &lt; y</td>" in text and "Cut short" in text
    assert not any(
        "Cut short" in note for note in StudyPage.of(study, Results("c", (whole,))).notes
    )


def test_the_page_of_old_experiments_holds_what_the_shipped_results_say():
    """The script that writes its table from `studies.published` leaves it as it is."""
    script = runpy.run_path(str(ROOT / "scripts" / "study_pages.py"))
    text = script["PAGE"].read_text(encoding="utf-8")
    assert script["render"](text) == text
    rows = studies.published().rows
    names = [row.name for study in STUDIES.values() for row in study.rows if row.published]
    assert [row[0] for row in rows] == names, "what was not run is listed, too"


def test_there_are_results_for_every_file_and_none_are_made_up():
    assert {file.stem for file in FOLDER.iterdir()} == set(SHIPPED)
    with pytest.raises(ArgumentError, match="there is no study 'nonesuch'"):
        studies.results("nonesuch")
    for name in set(STUDIES) - set(SHIPPED):
        with pytest.raises(InputError, match=f"retrograde study {name} runs it"):
            studies.results(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_results_are_of_their_study(name: str):
    """Read back without loss, of rows that there are, each seed once, and nothing of a machine."""
    found, study = studies.results(name), STUDIES[name]
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(written)["schema"] == "retrograde-study/1"
    assert found.study == name and not {"/home", "/tmp", "/root"} & set(written.split('"'))
    budgets = {row.name: row.budget for row in study.rows}
    for part in found.parts:
        seeds = [trial.seed for trial in found.trials(part.row)]
        assert part.row in budgets and len(seeds) == len(set(seeds)) > 0
        for trial in part.trials:
            assert 0 <= trial.sequences <= part.budget and trial.seconds >= 0
            assert trial.solved or trial.sequences == part.budget or study.table
    assert StudyPage.of(study, found).rows


def test_a_study_says_how_its_other_readings_depart_from_the_paper():
    notes = StudyPage.of(STUDIES["4"], Results("4", ())).notes
    assert notes == ("Rows that end with linear depart from the paper: the output is linear.",)
    assert StudyPage.of(STUDIES["6a"], Results("6a", ())).notes == ()


BEGINNINGS = [
    (name, part.row)
    for name in SHIPPED
    for part in shipped(name).parts
    if isinstance(STUDIES[name].row(part.row).run, OnLine)
]


@pytest.mark.parametrize(("name", "row"), BEGINNINGS)
def test_a_shipped_trial_begins_as_it_did(name: str, row: str):
    """Its first 100 sequences, of one seed; later, training has multiplied rounding."""
    of = STUDIES[name].row(row)
    if backend() == "eager" and row not in ("6a",):
        pytest.skip("takes long without the compiled backend")
    trial = studies.results(name).trials(row)[-1]
    expected = trial.figures["error of the first 100"]
    found = beginning(of.run.experiment, trial.seed)
    assert found == pytest.approx(expected, rel=2e-2, abs=2e-3)
    assert beginning(of.run.experiment, trial.seed + 1) != found  # errors of 3c begin nearly alike
