"""Is what a layer reads on a scale that its gates can meet? The same pass, standardised, tells."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.run import run
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.thresholds import limits
from retrograde.recording import recurrent_layers


def _saturated(subject: Subject) -> float:
    return max((each.saturated for each in subject.activities), default=0.0)


def _look(case: Case) -> list[Finding] | NotApplicable:
    findings = []
    for name, subject in case.subjects.items():
        if subject.place is not None or subject.flow is None:
            continue
        x = subject.recorded.x.double()
        size = float(x.square().mean((0, 1)).sqrt().max())
        if 0 < size < case.limits["input_scale_low"]:
            findings.append(_small(name, size, case.limits["input_scale_low"]))
            continue
        before = _saturated(subject)
        if size <= case.limits["input_scale"] or before <= case.limits["saturated_share"]:
            continue
        after = _standardised(case, name)
        if after is not None and after < before / 2:
            findings.append(_large(name, size, before, after, case.limits["input_scale"]))
    return findings


def _standardised(case: Case, name: str) -> float | None:
    """The saturated share where every feature that the layer reads has mean 0 and spread 1."""
    copy = copied_model(case.model)

    def scale(_: object, args: tuple[object, ...]) -> tuple[object, ...] | None:
        x, *others = args
        if isinstance(x, PackedSequence):
            mean, spread = x.data.mean(0), x.data.std(0)
            data = (x.data - mean) / torch.where(spread > 0, spread, 1)
            return (x._replace(data=data), *others)
        if not isinstance(x, Tensor):
            return None
        every = tuple(range(x.ndim - 1))
        mean, spread = x.mean(every, keepdim=True), x.std(every, keepdim=True)
        return ((x - mean) / torch.where(spread > 0, spread, 1), *others)

    recurrent_layers(copy)[name].register_forward_pre_hook(scale)
    try:
        again = run(copy, case.batch, case.loss_fn, case.seed)
        found, _ = subjects(again.recording, limits(), case.needs_lag, name)
    except Exception:
        return None
    return _saturated(found[name]) if name in found and found[name].place is None else None


def _large(name: str, size: float, before: float, after: float, limit: float) -> Finding:
    return Finding(
        "input-scale",
        "warning",
        name,
        f"The input of {name!r} is too large for its gates, and saturates one of them; with every "
        "feature standardised it does not",
        (
            Evidence(
                "root mean square of the largest feature", size, "", limit, "below", "input_scale"
            ),
            Evidence("saturated share", before, "of units and steps"),
            Evidence("saturated share with standardised features", after, "of units and steps"),
        ),
        ("Features are in their own units (prices, counts, engine speeds)",),
        (
            "Standardise every feature with the mean and spread of the training set: "
            "x = (x - mean) / std",
        ),
    )


def _small(name: str, size: float, limit: float) -> Finding:
    return Finding(
        "input-scale",
        "warning",
        name,
        f"The input of {name!r} is too small for its gates: weights drawn for features of size 1 "
        "make next to nothing of it",
        (
            Evidence(
                "root mean square of the largest feature",
                size,
                "",
                limit,
                "above",
                "input_scale_low",
            ),
        ),
        ("Features are in their own units (returns, concentrations, metres), not standardised",),
        (
            "Standardise every feature with the mean and spread of the training set: "
            "x = (x - mean) / std",
        ),
    )


INPUT_SCALE = Experiment(
    "input-scale",
    "The input is out of scale for the gates",
    "The size of the largest feature that a layer reads, where most of a gate is saturated; the "
    "same pass is run with every feature standardised, and blamed on the input if that frees the "
    "gate. Features a thousand times smaller than 1 are told as well.",
    _look,
    thresholds=("input_scale", "input_scale_low", "saturated_share"),
    replaces=("dead-units", "output-outweighs"),
    kind="scale",
    remedies=("standardise-input",),
)
