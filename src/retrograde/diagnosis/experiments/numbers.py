"""Where are numbers not finite before the recurrence has done anything, or in the loss itself?"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment, listed
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable


def tensors(batch: Any, place: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch, each with how it is reached."""
    if isinstance(batch, Tensor):
        yield place, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors(value, f"{place}[{key!r}]")
    elif isinstance(batch, list | tuple):
        for number, value in enumerate(batch):
            yield from tensors(value, f"{place}[{number}]")
    elif is_dataclass(batch) and not isinstance(batch, type):
        for one in fields(batch):
            yield from tensors(getattr(batch, one.name, None), f"{place}.{one.name}")


def _in_data(case: Case) -> list[Finding] | NotApplicable:
    given = [(place, t) for place, t in tensors(case.batch) if t.is_floating_point()]
    if not given:
        return NotApplicable("there is no tensor of numbers in the batch")
    harm = not _sound(case)
    return [_in_the_batch(place, t, harm) for place, t in given if not bool(t.isfinite().all())]


def _sound(case: Case) -> bool:
    """Whether loss and gradients are finite all the same: the loss leaves out what is not."""
    loss = case.sight.loss
    gradients = (g for s in case.subjects.values() for g in s.recorded.gradients.values())
    return loss is not None and all(bool(t.isfinite().all()) for t in (loss, *gradients))


def _in_the_batch(place: str, tensor: Tensor, harm: bool) -> Finding:
    wrong = torch.nonzero(~tensor.isfinite())
    kind = "NaN" if bool(tensor.isnan().any()) else "infinite"
    first = [int(index) for index in wrong[0]]
    return Finding(
        "non-finite-data",
        "error" if harm else "info",
        None,
        f"{place} holds {len(wrong)} {kind} value{'s' * (len(wrong) > 1)}, the first at {first}: "
        + ("the data, not the model" if harm else "loss and gradient are finite all the same"),
        (Evidence("values that are not finite", float(len(wrong)), "values", 0.0, "below"),),
        ("Gaps in the data are stored as NaN, or a division by 0 has made them",),
        (
            f"Fill them or leave them out of the loss: mask = {place}.isfinite(), and the mean "
            "over loss[mask]",
        ),
    )


def _in_the_loss(case: Case) -> list[Finding] | NotApplicable:
    """Predictions that are finite and a loss, or its gradient, that is not."""
    if any(not bool(t.isfinite().all()) for _, t in tensors(case.batch)):
        return NotApplicable("the batch itself is not finite")
    findings = []
    for each in case.sight.comparisons:
        if each.function == "ctc_loss" and (found := _alignments(each.options, each.target)):
            findings.append(found)
    if findings:
        return findings
    loss = case.sight.loss
    seen = [each.prediction for each in case.sight.comparisons]
    seen += [] if case.sight.output is None else [case.sight.output]
    sound = [each for each in seen if each.requires_grad and bool(each.isfinite().all())]
    if loss is None or not loss.requires_grad or not seen:
        return NotApplicable("which tensor is the prediction could not be determined")
    if not sound:
        return NotApplicable("the prediction is not finite")
    prediction = sound[0]
    largest = float(prediction.detach().abs().max()) if prediction.numel() else 0.0
    if prediction.dtype != torch.float16 and largest > torch.finfo(prediction.dtype).max ** 0.5:
        return NotApplicable(f"the predictions themselves are as large as {largest:.1g}")
    (gradient,) = torch.autograd.grad(loss, prediction, retain_graph=True, allow_unused=True)
    if gradient is None or (bool(gradient.isfinite().all()) and bool(loss.isfinite().all())):
        return []
    wrong = ~gradient.isfinite() if gradient.ndim else ~gradient.isfinite().view(1)
    rows = torch.nonzero(wrong.flatten(1).any(1) if wrong.ndim > 1 else wrong).flatten().tolist()
    only = f", in row{'s' * (len(rows) > 1)} {listed(rows)} of {len(gradient)}" if rows else ""
    return [
        Finding(
            "non-finite-loss",
            "error",
            None,
            f"The predictions are finite, and the loss (or its gradient) is not{only}: it is the "
            "loss, not the recurrence",
            (
                Evidence(
                    "rows whose gradient is not finite", float(len(rows)), "rows", 0.0, "below"
                ),
            ),
            ("The loss takes the log or root of 0, or divides by 0",),
            (
                "Add a small number under the log, root or division, or use the form of the loss "
                "that takes logits",
            ),
        )
    ]


def _alignments(options: Mapping[str, Any], target: Tensor) -> Finding | None:
    """Samples that have fewer steps than their labels need; CTC is infinite there."""
    inputs, labels = options.get("input_lengths"), options.get("target_lengths")
    if options.get("zero_infinity") or inputs is None or labels is None:
        return None
    inputs, labels = (torch.as_tensor(each).flatten().tolist() for each in (inputs, labels))
    short, first = [], 0
    for sample, (steps, count) in enumerate(zip(inputs, labels, strict=True)):
        own = target[sample, :count] if target.ndim == 2 else target[first : first + count]
        first += count
        repeats = int((own[1:] == own[:-1]).sum()) if count > 1 else 0
        if steps < count + repeats:
            short.append((sample, steps, count, count + repeats))
    if not short:
        return None
    sample, steps, count, needed = short[0]
    return Finding(
        "non-finite-loss",
        "error",
        None,
        f"ctc_loss is infinite in sample{'s' * (len(short) > 1)} "
        f"{listed([each[0] for each in short])}: sample {sample} has {steps} steps for {count} "
        f"labels, which need {needed}",
        (Evidence("samples with too few steps", float(len(short)), "samples", 0.0, "below"),),
        ("Fewer steps than labels (and repeated labels need a blank between them)",),
        ("Leave such samples out, or pass zero_infinity=True",),
    )


DATA = Experiment(
    "non-finite-data",
    "The batch holds numbers that are not finite",
    "Every tensor of the batch, targets too, is looked at before anything else is blamed.",
    _in_data,
    kind="soundness",
)
LOSS = Experiment(
    "non-finite-loss",
    "The loss itself is not finite",
    "Where predictions are finite, the loss and its gradient by the predictions are looked at row "
    "by row. CTC is infinite where a sample has fewer steps than its labels need.",
    _in_the_loss,
    kind="soundness",
)
