"""Later benchmarks: trials repeat, tasks are judged by their own tests, digits by other images."""

import pytest
import torch

import retrograde
from retrograde.studies import STUDIES, Machine, Part, Results, results
from retrograde.studies.modern import (
    BATCH,
    DRAWING,
    RECURRENCES,
    STUDY,
    TASKS,
    Modern,
    drawn,
    foretelling,
    table,
)
from retrograde.studies.watched import Network
from retrograde.tasks import FirstSymbol, SequentialDigits

pytestmark = pytest.mark.usefixtures("unchecked")
LSTM = RECURRENCES["lstm"][1]


@pytest.mark.parametrize("name", TASKS)
def test_a_trial_is_its_seed_alone(name):
    _, task, test = TASKS[name]
    if isinstance(task, SequentialDigits):
        pytest.importorskip("sklearn")
    run = Modern(task, test, LSTM)
    both, (alone,) = run([0, 3], 2 * BATCH), run([3], 2 * BATCH)
    assert both[1] == alone and both[0] != alone
    assert alone.sequences == 2 * BATCH and not alone.solved
    assert alone.figures["guess"] == pytest.approx(task.guess.loss, rel=1e-3)


def test_a_task_is_solved_by_its_own_test():
    task = FirstSymbol(3)
    (trial,) = Modern(task, None, LSTM)([0], 300 * BATCH)
    assert trial.solved and trial.sequences % (50 * BATCH) == 0
    (other,) = Modern(task, Never(3), LSTM)([0], trial.sequences)
    assert not other.solved and other.figures["first"] == trial.figures["first"]


class Never(FirstSymbol):
    """The wrong answer counts as right in the test."""

    def draw(self, count, generator):
        sequences = super().draw(count, generator)
        sequences.y[-1] = sequences.y[-1].flip(1)
        return sequences


def test_what_is_kept_of_a_look_is_what_a_monitor_tells():
    """The first look of a trial, beside a monitor around the same pass."""
    _, task, _ = TASKS["order"]
    (trial,) = Modern(task, None, LSTM)([3], BATCH)
    inside = trial.figures["inside"]
    assert inside["updates"] == [0, 1] and "needed" not in inside
    torch.manual_seed(3)
    network = Network(LSTM(task.inputs), task.outputs, every_step=True)
    sequences = task.lot(torch.Generator().manual_seed(DRAWING + 3)).training(BATCH)
    monitor = retrograde.Monitor(network, every=1)
    with monitor:
        task.loss(network(sequences.x, recorded=True), sequences).backward()
    seen = {name.rpartition("/")[2]: value for name, value in monitor.scalars.items()}
    assert inside["reach"][0] == seen["reach"]
    assert inside["carousel"][0] == pytest.approx(seen["share_carousel"], rel=1e-3)
    ((_, horizon),) = monitor.history.horizon("recurrent")
    assert inside["horizon"][0] == pytest.approx(horizon, rel=1e-3)
    crossings = monitor.flow("recurrent").by_crossing(max_crossings=1).sum("lag").share
    assert inside["crossings"][0] == pytest.approx(crossings.tolist(), rel=1e-3, abs=1e-4)
    gates = retrograde.spectrum(monitor.recording).memory.time_constants
    assert inside["time_constants"][0][1] == pytest.approx(
        max(float(each.max()) for each in gates.values()), rel=1e-2
    )


def test_digits_are_tested_on_images_that_no_training_sees():
    pytest.importorskip("sklearn")
    for name in ("digits", "permuted"):
        _, task, test = TASKS[name]
        assert test is not None and test.permuted == task.permuted
        assert test.held_out and not task.held_out
        (lot,) = test.lot(torch.Generator().manual_seed(0)).tests(400)
        assert len(torch.unique(lot.x.squeeze(2).T, dim=0)) == 360


def test_rows_and_table():
    assert STUDIES["modern"] is STUDY and len(STUDY.rows) == len(TASKS) * len(RECURRENCES)
    row = STUDY.row("adding-lstm")
    trials = row.run([0], BATCH)
    found = Results("modern", (Part(row.name, BATCH, Machine.here(), tuple(trials)),))
    (line,) = table(found)[1]
    assert line[:3] == ["adding, T = 100", "LSTM, forget bias 1", "0 of 1"] and line[5] == "0.167"


def test_networks_stand_side_by_side_and_few_trials_tell_nothing():
    charts = drawn(results("modern"))
    assert list(charts) == [f"inside, {title}" for title, *_ in TASKS.values()]
    (told,) = foretelling(results("modern")).values()
    assert told[1] and all(len(row) == len(told[0]) for row in told[1])
    assert list(foretelling(Results("modern", ())).values()) == [(told[0], [])]


@pytest.mark.parametrize("part", results("modern").parts, ids=lambda part: part.row)
def test_a_shipped_trial_begins_as_it_did(part):
    (now,) = STUDY.row(part.row).run([part.trials[-1].seed], 5 * BATCH)
    assert now.figures["first"] == pytest.approx(part.trials[-1].figures["first"], rel=5e-3)
