"""Timing with and without peepholes: the paper's networks, streams that end, and a task learned."""

from dataclasses import replace

import pytest
import torch

from retrograde.studies import STUDIES, Machine, Part, Results
from retrograde.studies.tables import OnLine
from retrograde.studies.timing import STUDY, TASKS, experiment, table
from retrograde.studies.trials import Trial, Trials
from retrograde.tasks.timing import PeriodicFunction, Spikes

pytestmark = pytest.mark.usefixtures("unchecked")


def test_rows_are_the_networks_of_the_paper():
    assert STUDIES["2002"] is STUDY
    for row in STUDY.rows:
        assert isinstance(row.run, OnLine)
        network = row.run.experiment.network
        assert network.weights == (17 if network.peepholes else 14)
        drawn = network.draw(torch.Generator().manual_seed(0))
        assert drawn["bias_gates"].tolist() == [0, network.forget_biases[0], 2]


def test_a_network_learns_to_tell_a_short_distance():
    easy = replace(experiment("measure", "peepholes"), task=Spikes("measure", 1, 1), rate=0.05)
    (trial,) = Trials(easy, (0,)).run(2000)
    assert trial.solved and trial.sequences < 2000
    assert Trials(replace(easy, momentum=0.0), (0,)).run(trial.sequences) == (
        Trial(0, trial.sequences, solved=False),
    )


@pytest.mark.parametrize("task", [Spikes("generate", 4, spikes=6), PeriodicFunction("cosine", 4)])
def test_training_leaves_a_stream_at_its_first_error(task):
    learning = Trials(replace(experiment("generate", "peepholes"), task=task), (0,))
    pool = task.lot(torch.Generator().manual_seed(0)).training(3)
    (answers,) = learning._networks.train([pool], 1e-5, task.limit)
    for n in range(3):
        wrong = (answers[:, n] - pool.y[:, n]).abs() >= task.limit
        end = int(wrong.any(1).nonzero()[0])
        assert bool(answers[: end + 1, n].all()) and not answers[end + 1 :, n].any()


def test_a_test_is_a_thousand_distances():
    generator = torch.Generator().manual_seed(0)
    (stream,) = Spikes("measure", 4, spikes=3).lot(generator).tests(500)
    assert stream.x.sum() == 1000 and stream.due.shape[1] == 1
    (single,) = Spikes("measure", 4, spikes=1).lot(generator).tests(500)
    assert single.x.sum() == 1000 and single.due.shape[1] == 1000
    (alike,) = Spikes("generate", 4, tested=5, alike=True).lot(generator).tests(500)
    assert alike.y.flatten().nonzero().flatten().tolist() == [3, 7, 11, 15, 19]
    assert not alike.x.any()


def test_what_was_not_run_is_said():
    trials = (Trial(0, 300, True), Trial(1, 500, False))
    found = Results("2002", (Part("generate-none", 500, Machine.here(), trials),))
    titles, rows = table(found)
    assert len(rows) == len(STUDY.rows) and titles[2] == "in the paper"
    run = [row for row in rows if row[3] != "not run"]
    assert run == [[TASKS["generate"][0], "without", "not learned", "1 of 2", "300"]]
