"""The copy task of Aicher, Foti and Fox: its sequences, the truncation, and how trainings begin."""

import pytest
import torch

import retrograde
from retrograde.tasks.copy_study import (
    BATCH,
    EPOCHS,
    LENGTH,
    SYMBOLS,
    Copier,
    begin,
    bias_of_theirs,
    loss_of,
    results,
    sequences,
)

pytestmark = pytest.mark.usefixtures("unchecked")


def test_what_was_read_is_due_m_steps_later():
    x, due = sequences(200, BATCH, torch.Generator().manual_seed(0))
    assert x.shape == (200, BATCH, SYMBOLS) and due.shape == (200, BATCH)
    read = x.argmax(2)
    assert torch.equal(due[LENGTH:], torch.where(read[:-LENGTH] > 0, read[:-LENGTH], 0))
    assert torch.equal(due[LENGTH:] > 0, read[LENGTH:] == 0)  # symbols are due while blanks come
    begins = (read == 1).int().argmax(0).unique()
    assert len(begins) > LENGTH  # each sequence begins somewhere else in its period
    counts = read.flatten().bincount(minlength=SYMBOLS) / read.numel()
    assert counts[0] == pytest.approx(0.5, abs=0.05)
    assert counts[2:].tolist() == pytest.approx([9 / 80] * 4, abs=0.02)


def test_their_truncation_is_that_of_the_windows_they_train_on():
    """Each window by itself: the state before it detached, its last K steps scored."""
    window, steps = 3, 12
    model = Copier(1).double()
    x, due = sequences(steps, 4, torch.Generator().manual_seed(3))
    x = x.double()
    with retrograde.record(model) as recording:
        loss_of(model(x)[0], due).backward()
    flow = retrograde.decompose(recording)
    weights = list(model.rnn.parameters())
    whole = torch.cat([p.grad.flatten() for p in weights])
    total = torch.zeros_like(whole)
    for end in (at for phase in range(window) for at in range(phase + 1, steps + window, window)):
        start, first, last = max(0, end - 2 * window + 1), max(0, end - window), min(end, steps)
        state = model(x[:start])[1] if start else None
        detached = tuple(s.detach() for s in state) if state else None
        logits = model(x[start:last], detached)[0][first - start :]
        loss = loss_of(logits, due[first:last]) * (last - first) / steps / window
        total += torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    assert bias_of_theirs(flow, window) == pytest.approx(
        float((total - whole).norm() / whole.norm()), rel=1e-9
    )


@pytest.mark.parametrize("window", EPOCHS)
def test_a_training_begins_as_it_did(window):
    stored = {run.window: run for run in results()}
    assert begin(window) == pytest.approx(stored[window].beginning, rel=1e-3)


def test_the_published_gap_is_there_and_the_curve_shows_why():
    short, long = results()
    assert short.looks[-1].perplexity > 1.5  # 1.646 published
    assert long.looks[-1].perplexity == pytest.approx(1.036, abs=0.01)
    learned = long.looks[-1]
    assert learned.theirs["5"] > 0.3 > 0.1 > learned.theirs["10"]
    assert learned.bias[LENGTH // 2 - 1] > 0.5 and LENGTH < learned.window <= 2 * LENGTH - 1
    enough = min(int(window) for window, bias in learned.theirs.items() if bias <= 0.1)
    assert LENGTH // 2 < enough <= LENGTH  # the knee, from one network
    fresh = long.looks[0]
    assert fresh.window <= LENGTH / 2  # a bias near zero there proves nothing
    assert short.looks[-1].window <= LENGTH / 2
