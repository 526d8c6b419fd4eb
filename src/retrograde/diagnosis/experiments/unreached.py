"""Which parts of the model get no gradient at all, exactly zero, and what is the matter with them?

Layers that ran and got none, layers and directions of a stack, samples, and a direction that the
loss reads where it has seen one input.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retrograde.cells import Position
from retrograde.cells.leaves import leaves
from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.experiments.comparison import broadcasts
from retrograde.diagnosis.experiments.experiment import Case, Experiment, listed
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.run import change_output, moved_by
from retrograde.diagnosis.sight import Comparison, Sight, see
from retrograde.diagnosis.subject import Subject
from retrograde.recording import recurrent_layers


def _look(case: Case) -> list[Finding] | NotApplicable:
    found = _cut_off(case)
    broadcast = bool(broadcasts(case))  # signs that add up to 0 are no sample left out
    for subject in case.subjects.values():
        if subject.place is None:
            found += _directions(subject) or _one_input(subject)
            found += [] if broadcast else _samples(case, subject)
    return found


def _cut_off(case: Case) -> list[Finding]:
    """Layers that ran and that the loss depends on, without a gradient."""
    findings = []
    refused = set(case.run.recording.refused)
    for name in case.sight.reads:
        if name not in refused or name in case.subjects or not _learns(case, name):
            continue
        change = moved_by(case.model, case.batch, case.loss_fn, case.seed, name)
        if not change or _by_design(case, name):
            continue
        findings.append(
            Finding(
                "unreached",
                "error",
                name,
                f"No gradient reaches {name!r}, although the loss depends on what it returns "
                f"(changing its output changes the loss by {change:.2g} of its value): the way "
                "back is cut",
                (Evidence("change of the loss", change, "of the loss"),),
                ("Its output or state is used through .data, .detach(), torch.no_grad() or NumPy",),
                ("Use what the layer returns as it is",),
            )
        )
    return findings


def _learns(case: Case, layer: str) -> bool:
    """Whether the layer has weights that are to be trained; a frozen one gets no gradient."""
    return any(p.requires_grad for p in recurrent_layers(case.model)[layer].parameters())


def _by_design(case: Case, layer: str) -> bool:
    """Whether a layer without a gradient is meant to have none.

    It is changed in a copy. A target network moves what predictions are compared with, and no
    prediction; a momentum encoder is the double of a layer that learns, and moves nothing of it;
    behind a generator that is not trained in this pass a layer reads other data as well.
    """
    copy = copied_model(case.model)
    change_output(copy, layer, lambda tensor: tensor + 0.5)
    try:
        moved = see(copy, case.batch, case.loss_fn, case.seed)
    except Exception:
        return False
    return (
        _gives_the_target(case.sight.comparisons, moved.comparisons)
        or _is_double(case, layer, moved)
        or any(_both_ways(case, name, moved) for name in case.sight.reads if name != layer)
    )


def _gives_the_target(before: Sequence[Comparison], after: Sequence[Comparison]) -> bool:
    """Whether targets moved, and no prediction."""
    if not before or [each.function for each in before] != [each.function for each in after]:
        return False
    pairs = list(zip(before, after, strict=True))
    same = all(torch.equal(one.prediction, another.prediction) for one, another in pairs)
    return same and not all(torch.equal(one.target, another.target) for one, another in pairs)


def _is_double(case: Case, layer: str, moved: Sight) -> bool:
    """Whether there is a layer of the same shape that gets a gradient and does the same still."""
    layers = recurrent_layers(case.model)
    own = [p.shape for p in layers[layer].parameters()]
    return any(
        name in case.subjects
        and type(layers[name]) is type(layers[layer])
        and [p.shape for p in layers[name].parameters()] == own
        and _returns_the_same(case, name, moved)
        for name in case.sight.reads
        if name != layer
    )


def _both_ways(case: Case, name: str, moved: Sight) -> bool:
    """Whether a layer reads what moved in some calls, and what did not in others."""
    calls = _moved_reads(case, name, moved)
    first = case.sight.initial.get(name, [None])
    return any(calls) and not all(calls) and all(state is None for state in first)


def _returns_the_same(case: Case, name: str, moved: Sight) -> bool:
    """Whether a layer ends in the same states, call by call."""
    before, after = case.sight.final.get(name, []), moved.final.get(name, [])
    return len(before) == len(after) and all(
        len(one) == len(two) and all(map(torch.equal, one, two))
        for one, two in zip(before, after, strict=True)
    )


def _moved_reads(case: Case, name: str, moved: Sight) -> list[bool]:
    """Of each call of a layer, whether it reads other numbers."""
    pairs = zip(case.sight.reads[name], moved.reads.get(name, []), strict=False)
    return [one.x.shape != two.x.shape or not torch.equal(one.x, two.x) for one, two in pairs]


def _zero(*tensors: Tensor) -> bool:
    return not any(bool(tensor.any()) for tensor in tensors)


def _places(subject: Subject) -> list[tuple[Position, dict[str, Tensor]]]:
    """The gradients of each layer and direction; none for a module that has one of them."""
    gradients = subject.recorded.gradients
    positions = [leaf.position for leaf in leaves(subject.recorded.cell)]
    found = []
    for position in positions:
        if position is not None:
            own = {n: g for n, g in gradients.items() if n.endswith(position.suffix)}
            own = {n: g for n, g in own.items() if position.reverse or "reverse" not in n}
            if own:
                found.append((position, own))
    return found if len(found) > 1 else []


def _directions(subject: Subject) -> list[Finding]:
    places = _places(subject)
    without = [position for position, own in places if _zero(*own.values())]
    if not without or len(without) == len(places):
        return []
    layers = max(position.layer for position, _ in places)
    findings = []
    for position in without:
        what = (
            ("reverse direction" if position.reverse else "forward direction")
            + (f" of layer {position.layer}" if layers else "")
            if any(other.reverse for other, _ in places)
            else f"layer {position.layer}"
        )
        reads_last = position.layer == layers
        findings.append(
            Finding(
                "unreached",
                "error",
                subject.name,
                f"The {what} of {subject.name!r} gets no gradient at all: the loss does not "
                "depend on it",
                (Evidence("gradient", 0.0, "of its weights"),),
                (
                    "h_n[-1] of a bidirectional layer is the reverse direction alone, h_n[-2] the "
                    "forward one"
                    if reads_last and not position.reverse
                    else "What it returns is not read",
                ),
                (
                    "Read both directions: torch.cat((h_n[-2], h_n[-1]), dim=-1)"
                    if reads_last
                    else "Read what it returns, or leave it out",
                ),
                position=position,
            )
        )
    return findings


def _one_input(subject: Subject) -> list[Finding]:
    """A layer or direction that is read at its first step: all it has seen is one input."""
    recorded = subject.recorded
    if len(recorded.x) < 2:
        return []
    findings = []
    places: list[tuple[Position | None, Mapping[str, Tensor]]] = list(_places(subject))
    entered = (recorded.direct != 0).flatten(1).any(1)
    alone = [(None, recorded.gradients)] if bool(entered[0]) and not bool(entered[1:].any()) else []
    for position, own in places or alone:
        recurrent = [g for n, g in own.items() if n.startswith("weight_hh")]
        first = [g for n, g in own.items() if n.startswith("weight_ih")]
        if not recurrent or not _zero(*recurrent) or _zero(*first) or bool(recorded.initial.any()):
            continue
        findings.append(
            Finding(
                "unreached",
                "error",
                subject.name,
                (
                    f"{subject.name!r}"
                    if position is None
                    else f"The {'reverse' if position.reverse else 'forward'} direction of "
                    f"{subject.name!r}"
                )
                + " is read where it has seen one input: its recurrent weights get no gradient at "
                "all",
                (Evidence("gradient", 0.0, "of its recurrent weights"),),
                (
                    "out[:, 0] of batch_first=True, and out[0] else, is the state after the first "
                    "step"
                    if position is None
                    else "out[:, -1] of a bidirectional layer is the last step of the forward "
                    "direction and the first one of the reverse direction",
                ),
                (
                    "Read the last state: h_n[-1], or out[:, -1] of batch_first=True"
                    if position is None
                    else "Read the last state of each direction: "
                    "torch.cat((h_n[-2], h_n[-1]), dim=-1)",
                ),
                position=position,
            )
        )
    return findings


def _left_out(case: Case, without: list[int], count: int) -> bool:
    """Whether it is the loss that leaves out samples: a mask, a margin, the hardest of them.

    A prediction that the loss does depend on, and that does not depend on the layer, is another
    matter, as is a loss that takes a single sample.
    """
    loss, prediction = case.sight.loss, case.sight.prediction
    reached = count - len(without)
    if loss is None or prediction is None or reached < 2 or not loss.requires_grad:
        return False
    if prediction.ndim and len(prediction) == reached:
        return True
    for axis in range(min(2, prediction.ndim)):
        if prediction.shape[axis] == count and prediction.requires_grad:
            (found,) = torch.autograd.grad(loss, prediction, retain_graph=True, allow_unused=True)
            rows = None if found is None else found.movedim(axis, 0).flatten(1)
            return rows is not None and not bool(rows[without].any())
    return False


def _samples(case: Case, subject: Subject) -> list[Finding]:
    """Samples that give the layer no gradient."""
    direct = subject.recorded.direct
    reached = direct.abs().amax((0, 2)) != 0
    without = torch.nonzero(~reached).flatten().tolist()
    count = len(reached)
    if not without or len(without) == count:
        return []
    share = len(without) / count
    return [
        Finding(
            "unreached",
            "error" if share > MOST and not _left_out(case, without, count) else "info",
            subject.name,
            f"{len(without)} of {count} samples give {subject.name!r} no gradient at all "
            f"(sample{'s' * (len(without) > 1)} {listed(without)})",
            (Evidence("samples without a gradient", 100 * share, "%", 100 * MOST, "below"),),
            (
                "The loss reads past the end of the shorter samples, where padding is all that "
                "there is (out[:, -1] of padded sequences)",
                "Their part of the loss is masked, or exactly 0",
            ),
            (
                "Read each sample at its own last step: out[torch.arange(B), lengths - 1], or h_n "
                "of the packed sequence",
            ),
        )
    ]


MOST = 0.5
"""A loss may leave out samples; hardly most of them."""

UNREACHED = Experiment(
    "unreached",
    "A part gets no gradient",
    "Layers, directions and samples whose gradient is exactly 0, which no initialisation and no "
    "learning rate can make learn. Where a layer got none, its output is changed in a copy: a loss "
    "that moves depends on it, and the way back is cut.",
    _look,
    kind="wiring",
    remedies=("both-directions",),
)
