"""One experiment on its own, without a whole diagnosis around it."""

import warnings

import torch

from retrograde.diagnosis import limits
from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.experiments import EXPERIMENTS, Case
from retrograde.diagnosis.run import run
from retrograde.diagnosis.sight import see
from retrograde.diagnosis.subject import subjects


def case_of(model, batch, loss_fn, lag=None):
    """What experiments are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = run(copied_model(model), batch, loss_fn, 0)
        sight = see(model, batch, loss_fn, 0)
    values = {row.name: row.value for row in limits()}
    found, _ = subjects(before.recording, limits(), lag, None, before.balance)
    return Case(model, batch, loss_fn, 0, before, found, sight, lag, values)


def look(name, build):
    """What became of one experiment, and what it found."""
    torch.manual_seed(13)
    return EXPERIMENTS[name].check(case_of(*build()))
