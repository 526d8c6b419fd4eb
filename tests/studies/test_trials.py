"""Trials: they stop at success, do not depend on each other, and go on after they were stopped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retrograde.errors import ArgumentError, InputError
from retrograde.studies import trials
from retrograde.studies.online import Networks
from retrograde.studies.trials import Trial, Trials
from retrograde.tasks import ContinualReber, DistractedSymbol, RememberedSymbol, TwoSequences
from retrograde.tasks.blocks import BlockNetwork, Blocks
from retrograde.tasks.experiments import EXPERIMENTS, Experiment, Published
from retrograde.tasks.task import Sequences

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


def test_a_training_longer_than_the_budget_is_refused(tmp_path: Path):
    hard, checkpoint = replace(EASY, task=TwoSequences(10, 2, "noisy inputs")), tmp_path / "t.pt"
    Trials(hard, range(2)).run(300, checkpoint)
    with pytest.raises(InputError, match="300 sequences already, more than the budget of 200"):
        Trials(hard, range(2)).run(200, checkpoint)
    assert [t.sequences for t in Trials(hard, range(2)).run(250, checkpoint)] == [300, 300]


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
    (trial,) = Trials(remembering(5), (0,)).run(budget=3000)
    assert trial.solved


def remembering(lag: int, **of: object) -> Experiment:
    network = replace(EXPERIMENTS["2a"].network, inputs=lag + 1, outputs=lag + 1)
    return replace(EXPERIMENTS["2a"], task=RememberedSymbol(lag), network=network, **of)


def test_cells_are_added_as_they_were_drawn(tmp_path: Path):
    """Until then the outputs learn from the inputs alone: a logistic regression, by hand."""
    added = remembering(5, cells_after=100)
    training, checkpoint = Trials(added, (1,)), tmp_path / "training.pt"
    training.run(100, checkpoint)
    generator = torch.Generator().manual_seed(1)
    drawn = added.network.draw(generator)
    learnt = added.task.lot(generator).training(100)
    by_hand = drawn["weight_io"].clone()
    read, due = learnt.x[:, :].float().transpose(0, 1), learnt.y.transpose(0, 1)
    for x, y in zip(read.flatten(0, 1), due.flatten(0, 1), strict=True):
        answer = torch.sigmoid(by_hand @ x)
        by_hand.addr_((y - answer) * answer * (1 - answer), x)
    weights = training._networks.weights(0)
    torch.testing.assert_close(weights["weight_io"], by_hand, rtol=0, atol=1e-4)
    assert torch.equal(weights["weight_ho"], drawn["weight_ho"])
    at_once, later = Trials(added, (1,)), Trials(added, (1,))
    at_once.run(200)
    later.run(200, checkpoint)
    for part in ("hidden", "output"):
        assert torch.equal(getattr(later._networks, part), getattr(at_once._networks, part))
    training._networks.add_cells([training._drawn(1)])
    opened = training._networks.weights(0)
    assert torch.equal(opened["weight_ih"], drawn["weight_ih"])
    assert bool((later._networks.weights(0)["weight_ih"] - opened["weight_ih"]).abs().amax() < 10)


@pytest.mark.parametrize(("between", "stays"), [("ordered", True), ("random", False)])
def test_a_solution_of_2b_is_unlearnt_where_all_steps_are_to_be_predicted(
    between: str, stays: bool
):
    """Of 2a it stays. The cell keeps 1 for x and 0 for y, and only x and y read it."""
    lag, drawing = 20, torch.Generator().manual_seed(0)
    task = RememberedSymbol(lag, between)  # type: ignore[arg-type]
    x, y = lag - 1, lag
    hidden = torch.zeros(2, lag + 1)
    hidden[1] = -8.0
    hidden[:, x] = 4.0
    cell, direct = torch.zeros(lag + 1, 1), torch.full((lag + 1, lag + 1), -5.0)
    cell[x], cell[y] = 10.0, -10.0
    if between == "ordered":
        direct[x] -= 10.0
        direct[x, lag - 2], direct[y, lag - 2] = -5.0, 5.0
        for symbol in range(lag - 2):
            direct[symbol + 1, symbol] = 5.0
        direct[0, x] = direct[0, y] = 5.0
    else:
        direct[y] = 5.0
    by_hand = {"weight_ih": hidden, "weight_ho": cell, "weight_io": direct}
    networks = Networks(remembering(lag).network, [by_hand], each_step=True)
    tested = task.draw(100, drawing)
    assert bool(task.right(networks.answers(0, tested), tested).all())
    networks.train([task.draw(100, drawing)], EXPERIMENTS["2b"].rate)
    right = task.right(networks.answers(0, tested), tested)
    assert bool(right.all()) == stays and (stays or right.float().mean() < 0.6)


def test_a_test_that_one_error_fails_is_made_after_a_tenth_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
):
    task = DistractedSymbol(5, 2)
    task.judged_on = 3000
    right, drawn = list[bool](), list[int]()
    draw = task.draw
    monkeypatch.setattr(task, "draw", lambda count, g: drawn.append(count) or draw(count, g))

    def judged(output: Tensor, sequences: Sequences) -> Tensor:
        return torch.full(sequences.lengths.shape, right.pop(0))

    monkeypatch.setattr(task, "right", judged)
    network = Blocks(task.inputs, task.outputs, 1)
    experiment = Experiment("quick", task, network, 0.1, Published(0, None, 1.0, 1))
    training = Trials(experiment, (0,))
    right += [True] * 3 + [True, False] + [False, True, True] + [True] * 3 + [True] * 6
    assert training.run(1000) == (Trial(0, 900, solved=True),)
    assert not right and drawn == [100] * 3 + [500] * 2 + [100] * 6 + [500] * 6


def test_seeds_and_budget_are_checked():
    for wrong in (lambda: Trials(EASY, ("a",)), lambda: Trials(EASY, (0,)).run(0)):
        with pytest.raises(ArgumentError):
            wrong()


def test_streams_are_followed_to_their_first_error_and_tests_go_without_learning():
    task = ContinualReber(steps=30)
    plan = EXPERIMENTS["2000-decayed"].network
    continual = replace(EXPERIMENTS["2000-decayed"], task=task)
    training = Trials(continual, (0, 1))
    assert training.run(100) == (Trial(0, 100, solved=False), Trial(1, 100, solved=False))
    alone = Trials(continual, (1,))
    alone.run(100)
    assert torch.equal(alone._networks.hidden[0], training._networks.hidden[1])
    networks = Networks(plan, [plan.draw(torch.Generator().manual_seed(0))])
    before = networks.hidden.clone(), networks.output.clone()
    stream = task.lot(torch.Generator().manual_seed(1))
    right = trials.followed(networks, [stream], 0.0)
    assert torch.equal(networks.hidden, before[0]) and torch.equal(networks.output, before[1])
    again = task.lot(torch.Generator().manual_seed(1)).take(30)
    assert right == task.run(BlockNetwork(plan, networks.weights(0))(again.x), again)
    stream.begin()
    assert stream.take(1).x[0, 0].argmax() == 0  # the next stream begins with a B


def test_a_stream_is_one_text_of_strings():
    stream = ContinualReber(1000).lot(torch.Generator().manual_seed(0))
    first = stream.take(700)
    stream.move(650)
    second = stream.take(700)
    assert torch.equal(first.x[650:], second.x[:50])
    assert torch.equal(first.y[650:], second.y[:50])
    read = first.x[1:].bool()
    assert bool(first.possible[:-1][read].all())  # what came is one of those that may
