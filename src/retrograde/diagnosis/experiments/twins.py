"""Are all units one unit? Units with the same weights stay the same for ever."""

from typing import Any

import torch
from torch import Tensor

from retrograde.cells.leaves import leaves
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.subject import Subject


def different(states: Tensor) -> int:
    """How many of the units along the last axis differ anywhere, to a few roundings."""
    rows = states.flatten(0, -2).T
    scale = rows.abs().amax().double().clamp(min=torch.finfo(torch.float64).tiny)
    limit = 64 * torch.finfo(states.dtype).eps * scale
    some = rows[:, :: max(1, rows.shape[1] // SEEN)].double()  # by which most are told apart
    count, left = 0, torch.arange(len(rows), device=rows.device)
    while len(left) and count < ENOUGH:
        same = (some[left] - some[left[0]]).abs().amax(1) <= limit
        near = rows[left[same]].double()
        same[same.clone()] = (near - rows[left[0]].double()).abs().amax(1) <= limit
        left, count = left[~same], count + 1
    return count + len(left) * (count >= ENOUGH)


def _look(case: Case) -> list[Finding] | NotApplicable:
    return [found for s in case.subjects.values() if s.place is None for found in _twins(s)]


def _twins(subject: Subject) -> list[Finding]:
    flow = subject.flow
    if flow is None:
        return []
    found = []
    states = flow.unrolled.states[1:]
    for leaf in leaves(subject.recorded.cell):
        if "h" not in leaf.cell.slots:
            continue
        own = states[..., leaf.part][..., leaf.cell.slots["h"]]
        units = own.shape[-1]
        kinds = different(own)
        if units < 2 or kinds > units * FEW or not _same_weights(leaf.cell, units):
            continue
        where = f" of {leaf.position}" if leaf.position is not None else ""
        found.append(
            Finding(
                "units-alike",
                "error",
                subject.name,
                f"The {units} units{where} of {subject.name!r} are "
                + ("one unit" if kinds == 1 else f"{kinds} units")
                + ": they have the same states at every step, so they get the same gradients and "
                "stay the same",
                (Evidence("units that differ", float(kinds), "units", float(units)),),
                ("Weights that are constant (zeros, ones): nothing breaks the symmetry",),
                (f"Draw fresh weights: {subject.name}.reset_parameters()",),
                position=leaf.position,
            )
        )
    return found


def _same_weights(cell: Any, units: int) -> bool:
    """Whether the units get their inputs by the same weights; states alone may agree at a limit."""
    weight = getattr(cell, "weight_ih", None)
    if not isinstance(weight, Tensor) or weight.shape[0] % units:
        return True
    rows = weight.detach().view(-1, units, weight.shape[1])  # [gates, H, I]
    return different(rows.movedim(1, -1).flatten(0, -2)) <= units * FEW


ENOUGH = 64
"""Units are told apart up to this many."""

SEEN = 64
"""States of every unit that are looked at before all of them."""

FEW = 0.25
"""Chance makes no three in four units the same."""

TWINS = Experiment(
    "units-alike",
    "The units are copies of each other",
    "How many units differ in their state at any step of any sample. Units with the same weights, "
    "in and out, get the same gradient, and no training tells them apart.",
    _look,
    kind="wiring",
    replaces=("unreached", "dead-units"),
    remedies=("fresh",),
)
