"""Trials: they stop at success, do not depend on each other, and go on after they were stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrograde.errors import ArgumentError, InputError
from retrograde.studies import trials
from retrograde.studies.trials import Trial, Trials
from retrograde.tasks import RememberedSymbol, TwoSequences
from retrograde.tasks.blocks import Blocks
from retrograde.tasks.experiments import EXPERIMENTS, Experiment, Published

pytestmark = pytest.mark.usefixtures("unchecked")

EASY = Experiment(
    "easy",
    TwoSequences(3, 3),
    Blocks(1, 1, 1, biased="all", spread=1.0),
    5.0,
    Published(0, None, 1.0, 1),
)
"""Solved after about a thousand sequences."""


def test_networks_train_until_the_task_is_solved():
    found = Trials(EASY, (3, 1)).run(budget=5000)
    assert [trial.seed for trial in found] == [3, 1]
    for trial in found:
        assert trial.solved and 100 <= trial.sequences < 5000 and trial.sequences % 100 == 0
    alone = Trials(EASY, (1,)).run(budget=5000)
    assert alone == (found[1],)  # what becomes of a network is its own affair
    assert Trials(EASY, (1,)).run(budget=100) == (Trial(1, 100, solved=False),)


def test_a_training_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trials, "KEPT", 100)
    hard = replace(EASY, task=TwoSequences(10, 2, "noisy inputs"))
    whole = Trials(hard, range(3))
    whole.run(budget=300)
    checkpoint = tmp_path / "training.pt"
    Trials(hard, range(3)).run(200, checkpoint)
    later = Trials(hard, range(3))
    later.run(300, checkpoint)
    for part in ("hidden", "output"):
        assert torch.equal(getattr(later._networks, part), getattr(whole._networks, part))
    assert torch.equal(later._errors, whole._errors) and later.done == whole.done
    written = checkpoint.read_bytes()
    for other in (Trials(hard, range(2)), Trials(EASY, range(3)), Trials(EASY, (0, 1, 2))):
        if other.experiment is EASY:
            other.experiment = replace(EASY, name="another")
        with pytest.raises(InputError, match="not of"):
            other.run(100, checkpoint)
    assert checkpoint.read_bytes() == written
    checkpoint.write_bytes(b"something else")
    with pytest.raises(InputError, match="no checkpoint of a study"):
        Trials(hard, range(3)).run(100, checkpoint)


def test_a_network_that_is_through_is_not_trained_on(tmp_path: Path):
    """It is gone from what goes on, and known from the checkpoint."""
    checkpoint = tmp_path / "training.pt"
    found = Trials(EASY, range(4)).run(5000, checkpoint)
    assert all(trial.solved for trial in found)
    again = Trials(EASY, range(4))
    assert again.run(5000, checkpoint) == found and not again._learning


def test_strings_and_streams_of_every_experiment_can_be_learnt():
    for name in ("1-3x2-0.5", "2c-50-50"):
        (trial,) = Trials(EXPERIMENTS[name], (0,)).run(budget=100)
        assert trial == Trial(0, 100, solved=False)
    short = replace(
        EXPERIMENTS["2a"],
        task=RememberedSymbol(5),
        network=replace(EXPERIMENTS["2a"].network, inputs=6, outputs=6),
    )
    (trial,) = Trials(short, (0,)).run(budget=3000)
    assert trial.solved


def test_seeds_and_budget_are_checked():
    for wrong in (lambda: Trials(EASY, ("a",)), lambda: Trials(EASY, (0,)).run(0)):
        with pytest.raises(ArgumentError):
            wrong()
