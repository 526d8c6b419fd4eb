"""The ladder: what is seen inside is what the package says, and trials repeat."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr  # an independent rank correlation

import retrograde
from retrograde.studies import STUDIES, Machine, Part, Results, Trial, results
from retrograde.studies import ladder as ladder_module
from retrograde.studies.ladder import (
    BATCH,
    LAGS,
    RECURRENCES,
    Ladder,
    learned,
    looked,
    made,
    passed,
)
from retrograde.studies.ladder_study import STUDY, foretelling, starts
from retrograde.studies.looks import AMONG, foretold, ranks, spearman
from retrograde.studies.watched import Inside
from retrograde.tasks import FirstSymbol

pytestmark = pytest.mark.usefixtures("unchecked")


def drawn(lag: int, seed: int = 0):
    return FirstSymbol(lag).draw(BATCH, torch.Generator().manual_seed(seed))


def test_the_first_symbol_is_the_answer_and_the_rest_are_distractors():
    sequences = drawn(9)
    read = sequences.x.argmax(2)
    assert torch.equal(read[0] - 4, sequences.y[-1].argmax(1))
    assert read.shape == (10, BATCH) and int(read[1:].max()) < 4
    assert sequences.due.sum() == BATCH and sequences.due[-1].all()


@pytest.mark.parametrize("name", RECURRENCES)
def test_what_is_seen_inside_is_what_the_package_says(name):
    lag = 12
    model, sequences = made(RECURRENCES[name], lag, 3), drawn(lag)
    inside = Inside(model, lag, samples=BATCH, entries=1)
    loss, answers = looked(inside, 0, sequences, crossings=True)
    seen = {key: values[0] for key, values in inside.figures.items()}
    assert seen["updates"] == 0
    model.zero_grad()
    with retrograde.record(model) as recording:
        again, _ = passed(model, sequences, recorded=True)
    flow = retrograde.decompose(recording)
    assert seen["loss"] == pytest.approx(again, rel=1e-3) == pytest.approx(loss, rel=1e-3)
    assert answers.shape == (BATCH, 2) and flow.residual.ok
    assert seen["reach"] == flow.reach
    sizes = flow.by_time().log2[-1].flip(0)
    assert seen["needed"] == pytest.approx(float(sizes[lag] - sizes[0]), abs=1e-2)
    rate = -1 / flow.half_life
    assert ("horizon" in seen) == (rate < 0)
    if rate < 0:
        assert seen["horizon"] == pytest.approx(math.log2(100) / -rate, rel=1e-3)
    if name.startswith("rnn"):
        assert not {"carousel", "crossings", "time_constants"} & set(seen)
        return
    crossings = flow.by_crossing(max_crossings=1).sum("lag").share
    assert seen["crossings"] == pytest.approx(crossings.tolist(), rel=1e-3, abs=1e-4)
    gates = retrograde.spectrum(recording).memory.time_constants
    constants = next(iter(gates.values()), None)
    if name.startswith(("cec", "lstm-1997")):
        assert seen["time_constants"] == [None, None]  # its gate stands at 1
    else:
        expected = [float(constants.median()), float(constants.max())]
        assert seen["time_constants"] == pytest.approx(expected, rel=1e-3)


def test_a_trial_is_its_seeds_alone():
    run = Ladder(RECURRENCES["rnn"], 5)
    told = []
    both = run([0, 7], 1600, progress=lambda *words: told.append(words))
    (alone,) = run([7], 1600)
    assert both[1] == alone and both[0] != alone
    assert all(trial.solved for trial in both) and both[0].sequences < 1600
    assert told and all(done <= total == 1600 for done, total, _ in told)
    assert len(both[0].figures["inside"]["updates"]) > len(alone.figures["inside"]["updates"]) == 2


def test_seeds_have_sequences_of_their_own(monkeypatch):
    monkeypatch.setattr(ladder_module, "made", lambda each, lag, seed: made(each, lag, 0))
    one, other = Ladder(RECURRENCES["rnn"], 5)([1, 2], BATCH)
    assert one.figures["first"] != other.figures["first"]


def test_it_is_the_first_symbol_that_decides():
    model, trial = Ladder(RECURRENCES["lstm-1997-bias"], 20).trained(1, 100 * BATCH)
    assert trial.solved
    x = drawn(20).x
    swapped, others = x.clone(), drawn(20, seed=1).x
    swapped[0] = x[0][:, [0, 1, 2, 3, 5, 4]]
    others[0] = x[0]
    with torch.no_grad():
        answers, after, same = (model(each).argmax(1) for each in (x, swapped, others))
    assert torch.equal(after, 1 - answers) and torch.equal(same, answers)


def test_a_budget_ends_a_trial_and_clipping_has_an_effect():
    seeds, lag, budget = [1], 100, 3 * BATCH
    clipped, free = (
        Ladder(RECURRENCES[name], lag)(seeds, budget)[0]
        for name in ("rnn-identity", "rnn-identity-unclipped")
    )
    assert (clipped.solved, clipped.sequences) == (False, budget)
    assert clipped.figures["first"][0] == free.figures["first"][0]
    assert clipped.figures["first"] != free.figures["first"]


def test_a_training_that_leaves_the_numbers_ends(monkeypatch):
    monkeypatch.setattr(ladder_module, "RATE", 1e30)
    (trial,) = Ladder(RECURRENCES["rnn-identity-unclipped"], 30)([1], 100 * BATCH)
    assert not trial.solved and trial.sequences < 100 * BATCH
    assert trial.figures["inside"]["reach"][-1] is None


SHIPPED = results("ladder")


@pytest.mark.parametrize(
    "row", ["rnn-5", "rnn-identity-10", "cec-5", "lstm-1997-bias-20", "lstm-2002-10", "gru-20"]
)
def test_a_shipped_trial_begins_as_it_did(row):
    """The first losses and the first look, which no processor's rounding moves this far."""
    stored = SHIPPED.trials(row)[-1]
    name, _, lag = row.rpartition("-")
    (now,) = Ladder(RECURRENCES[name], int(lag))([stored.seed], 3 * BATCH)
    first = stored.figures["first"][:3]
    assert now.figures["first"] == pytest.approx(first, rel=1e-3)
    before, again = (trial.figures["inside"] for trial in (stored, now))
    assert set(before) == set(again)
    for quantity in before:
        one, other = (figures[quantity][0] for figures in (before, again))
        pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
        for was, is_now in pairs:
            if was is None:
                assert is_now is None, quantity
            else:  # shares are differences of parts that may be larger
                assert is_now == pytest.approx(was, rel=5e-3, abs=2e-3), quantity


def test_what_is_shipped_is_the_study():
    assert {part.row for part in SHIPPED.parts} <= {row.name for row in STUDY.rows}
    for row in STUDY.rows:
        for trial in SHIPPED.trials(row.name):
            assert trial.sequences <= row.budget and trial.sequences % BATCH == 0
            assert not trial.solved or trial.figures["right"] >= 0.99
    assert json.dumps(
        [trial.figures for part in SHIPPED.parts for trial in part.trials], allow_nan=False
    )


class Knowing(torch.nn.Module):
    """Answers with the first symbol, but for a number of sequences in all."""

    def __init__(self, wrong: int):
        super().__init__()
        self.wrong = wrong

    def forward(self, x):
        answers = x[0, :, 4:].clone()
        flipped = min(self.wrong, len(answers))
        self.wrong -= flipped
        answers[:flipped] = answers[:flipped].flip(1)
        return answers


@pytest.mark.parametrize(("wrong", "solved"), [(0, True), (10, True), (11, False)])
def test_success_is_99_in_100_fresh_sequences(wrong, solved):
    generator = torch.Generator().manual_seed(0)
    assert learned(Knowing(wrong), FirstSymbol(3), generator) is solved


def test_the_rows_are_all_recurrences_at_all_lags():
    names = {row.name for row in STUDY.rows}
    assert STUDIES["ladder"] is STUDY and len(names) == len(STUDY.rows)
    assert {f"{name}-{lag}" for name in ("rnn", "cec", "gru", "chrono") for lag in LAGS} <= names
    assert all(row.trials >= 10 for row in STUDY.rows)
    assert len({row.budget for row in STUDY.rows}) == 1


def test_rank_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    x = generator.integers(5, size=60)  # with ties
    y = x + generator.normal(size=60) * 4
    found = spearman(x.tolist(), y.tolist())
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert ranks(np.array([[1, 0, 1, 2], [0, 0, 0, 2]])).tolist() == [
        [2.5, 1, 2.5, 4],
        [2, 2, 2, 4],
    ]
    infinite = spearman([1.0, math.inf, 2.0, -math.inf], [2, 9, 3, 1])
    assert infinite.value == pytest.approx(1)
    alike = spearman([1] * 30, [0, 1] * 15)
    assert math.isnan(alike.value) and str(alike) == "all alike: 30 trials"
    assert not spearman([1, 2, 3], [1, 2, 3]).told and "too few" in str(spearman([], []))
    assert str(found) == f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}) of 60"


def results_with(reaches, solved) -> Results:
    """Two recurrences at two lags: success by reach, in each of them."""
    trials = tuple(
        Trial(
            seed,
            160 * (seed + 1),
            bool(solved[seed]),
            {"inside": {"reach": [reach], "horizon": [None], "needed": [-float(seed)]}},
        )
        for seed, reach in enumerate(reaches)
    )
    names = ("rnn-10", "gru-10", "rnn-20", "gru-20")
    return Results("ladder", tuple(Part(name, 16_000, Machine.here(), trials) for name in names))


def test_what_the_results_say_of_the_reach_before_training():
    some = results_with([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])
    found = starts(some)
    assert len(found) == 24
    by_row = AMONG["seeds of one recurrence and task"]
    assert foretold("reach", found, True, by_row).value == pytest.approx(
        spearmanr([1, 2, 3, 4, 5, 6] * 4, [0, 0, 0, 1, 1, 1] * 4).statistic
    )
    assert foretold("reach", found, False, by_row).value == pytest.approx(1)
    assert foretold("needed", found, True).value == pytest.approx(
        -foretold("reach", found, True).value
    )
    (titles, rows), (_, by_lag) = foretelling(some).values()
    assert titles[2:] == ("with success", "with the sequences it took")
    among_all = str(foretold("reach", found, True)), "too few: 12 trials"
    assert rows[0] == ("reach", "all trials", *among_all)
    assert not any(row[0] == "horizon" for row in rows)  # it is the same in all of them
    assert by_lag == []  # 12 trials of a lag are too few


def test_trials_of_different_lags_are_not_compared_where_they_should_not_be():
    """Within each lag the reach foretells success; over all, a longer lag hides that."""
    easy = results_with([1, 2, 3, 4], [0, 1, 1, 1]).parts[:1]
    hard = results_with([11, 12, 13, 14], [0, 0, 0, 1]).parts[2:3]
    found = starts(Results("ladder", easy + hard))
    assert len(found) == 8
    assert foretold("reach", found, True).value < 0
    assert foretold("reach", found, True, AMONG["trials of the same task"]).value > 0.7
