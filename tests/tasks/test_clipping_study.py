"""The study of clipping: its trainings begin as they did, and its tasks are what they say."""

from itertools import product

import pytest
import torch

from retrograde.tasks.clipping_results import LAG, LAYERS, SEEDS, WAYS, results
from retrograde.tasks.clipping_study import adding, made, tasks, train

pytestmark = pytest.mark.usefixtures("unchecked")

STORED = {(run.task, run.layer, run.way, run.seed): run for run in results()}


def test_every_combination_was_trained():
    assert set(STORED) == set(product(tasks(), LAYERS, WAYS, SEEDS))


@pytest.mark.parametrize(("task", "layer", "way"), list(product(("adding", "CO2"), LAYERS, WAYS)))
def test_a_training_begins_as_it_did(task, layer, way):
    seed = (len(task) + len(layer) + len(way)) % len(SEEDS)
    stored = STORED[task, layer, way, seed]
    now = train(task, layer, way, seed, steps=4)
    assert now.first == pytest.approx(stored.first[:4], rel=1e-3)  # rounding of another machine


def test_trainings_differ_where_they_should():
    firsts = {key: run.first for key, run in STORED.items()}
    seeds = [firsts["adding", "RNN", "nothing", seed] for seed in SEEDS]
    assert len(set(seeds)) == len(SEEDS)
    assert firsts["adding", "RNN", "everything", 0] != firsts["adding", "RNN", "nothing", 0]


def test_the_adding_problem():
    x, y = adding(2000, seed=3)
    numbers, marks = x.unbind(-1)
    half = LAG // 2
    assert torch.equal(marks[:, :half].sum(1), torch.ones(2000))
    assert torch.equal(marks[:, half:].sum(1), torch.ones(2000))
    torch.testing.assert_close((numbers * marks).sum(1), y[:, 0])
    assert float(y.var()) == pytest.approx(1 / 6, rel=0.1)
    assert tasks()["adding"].error(made("RNN", 2, 0)) > 1 / 6
