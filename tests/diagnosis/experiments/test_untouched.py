"""Every experiment leaves a model, its batch and all random numbers as they were.

And it runs the user's code as that would run by itself: in the modes that its modules are in, with
gradients, and never the original.
"""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from retrograde.diagnosis.copies import copied
from retrograde.diagnosis.experiments import EXPERIMENTS
from support.looking import case_of

pytestmark = pytest.mark.usefixtures("unchecked")

B, T, I, H = 6, 9, 3, 5  # noqa: E741


class Watchful(nn.Module):
    """It keeps a state, counts calls, draws random numbers, and notes how it is run."""

    def __init__(self, notes, carries):
        super().__init__()
        self.notes, self.carries = notes, carries
        self.norm, self.dropout = nn.BatchNorm1d(H), nn.Dropout(0.3)
        self.cut, self.rnn = nn.GRU(I, H, batch_first=True), nn.GRU(H, H, batch_first=True)
        self.head = nn.Linear(H, 1)
        self.dropout.eval()
        self.calls, self.state, self.seen = 0, torch.randn(1, B, H), []

    def __deepcopy__(self, memo):
        other = nn.Module.__new__(type(self))
        memo[id(self)] = other
        other.__dict__ = {
            name: value if name == "notes" else copied(value) for name, value in vars(self).items()
        }
        return other

    def forward(self, x):
        modes = (self.training, self.norm.training, self.dropout.training)
        self.notes.append((id(self), modes, torch.is_grad_enabled(), x.dtype))
        self.calls += 1
        self.seen.append(float(x.detach().sum()))
        lower = self.cut(x)[0]
        if not self.carries:  # samples meet in the norm
            return self.head(self.norm(self.rnn(lower)[0][:, -1]))
        lower = lower.detach()
        x.mul_(2)  # it may change what it is given
        h, self.state = self.rnn(self.dropout(lower), self.state + 0.1 * torch.randn(1, B, H))
        self.state = self.state.detach()
        return self.head(self.norm(h[:, -1])) + random.random()


def loss_fn(model, batch):
    return F.mse_loss(model(batch["x"]), batch["y"])


@pytest.fixture(params=[True, False], ids=["carries a state", "starts from zeros"])
def watched(request):
    torch.manual_seed(0)
    notes = []
    model = Watchful(notes, request.param)
    batch = {"x": torch.randn(B, T, I), "y": torch.randn(B, 1)}
    return model, batch, notes


def picture(model, batch):
    """All that an experiment might change: tensors, and the rest."""
    own = {**model.state_dict(), **batch, "state": model.state, "drawn": torch.get_rng_state()}
    parameters = [(p.grad, p.requires_grad, p.dtype) for p in model.parameters()]
    modules = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()
    ]
    rest = (model.calls, list(model.seen), parameters, modules, random.getstate())
    return {name: value.clone() for name, value in own.items()}, rest


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_changes_nothing_of_the_users(name, watched):
    model, batch, notes = watched
    case = case_of(model, batch, loss_fn)
    notes.clear()
    tensors, rest = picture(model, batch)
    check, _ = EXPERIMENTS[name].check(case)
    assert not check.reason.startswith("it failed"), check
    after, other = picture(model, batch)
    assert other == rest and all(torch.equal(after[name], tensors[name]) for name in tensors)
    assert all(each != id(model) for each, *_ in notes)
    assert {tuple(each) for _, *each in notes} <= {((True, True, False), True, torch.float32)}
