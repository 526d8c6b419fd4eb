"""Whose input does a prediction depend on? The graph of one forward pass tells exactly.

The derivative of one sample's predictions by the whole input of a layer is exactly 0 in all other
samples unless something brings them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.diagnosis.sight import Read


@dataclass(frozen=True)
class Answer:
    """Which samples the predictions of one depend on."""

    sample: int
    reached: list[int]

    @property
    def others(self) -> list[int]:
        """The samples among them that are not its own."""
        return [each for each in self.reached if each != self.sample]


def apart(answers: Sequence[Answer]) -> bool:
    """Whether every prediction depends on its own sample alone."""
    return not any(answer.others for answer in answers)


def re_ordered(answers: Sequence[Answer]) -> bool:
    """Whether every prediction depends on one sample alone, each on another."""
    single = [answer.reached[0] for answer in answers if len(answer.reached) == 1]
    return len(single) == len(answers) == len(set(single))


def by_sample(prediction: Tensor, samples: int, steps: int) -> list[Tensor]:
    """The prediction with the samples along its first axis, in every way that can be meant."""
    if not prediction.ndim:
        return []
    views = [
        prediction.movedim(axis, 0)
        for axis in range(min(2, prediction.ndim))
        if prediction.shape[axis] == samples
    ]
    if steps > 1 and prediction.shape[0] == samples * steps:  # both axes as one
        rest = prediction.shape[1:]
        views.append(prediction.reshape(samples, steps, *rest))
        views.append(prediction.reshape(steps, samples, *rest).movedim(1, 0))
    return views


def ask(view: Tensor, reads: Sequence[Read]) -> list[Answer]:
    """Of a few rows of the predictions, which samples of the input they depend on."""
    answers = []
    numbers = torch.Generator().manual_seed(0)
    for row in sorted({0, len(view) // 2, len(view) - 1}):
        own = view[row]
        weights = torch.rand(own.shape, generator=numbers, dtype=torch.float64) + 0.5
        total = (own * weights.to(own)).sum()
        if not total.requires_grad:
            continue
        xs = [read.x for read in reads]
        found = torch.autograd.grad(total, xs, retain_graph=True, allow_unused=True)
        size = torch.zeros(reads[0].samples)
        for read, gradient in zip(reads, found, strict=True):
            if gradient is not None:
                size = torch.maximum(size, read.by_sample(gradient).detach().cpu().float())
        answers.append(Answer(row, torch.nonzero(size).flatten().tolist()))
    return answers


def ask_in_groups(prediction: Tensor, reads: Sequence[Read]) -> list[list[Answer]]:
    """The same where each row of the predictions has several samples of the layer to itself.

    Such as the channels of a series or the nodes of a graph: side by side, or one for each row in
    turn.
    """
    rows, samples = len(prediction), reads[0].samples
    if rows < 2 or samples <= rows or samples % rows:
        return []
    answers = ask(prediction, reads)
    members = torch.arange(samples)
    return [
        [Answer(a.sample, sorted({int(group[each]) for each in a.reached})) for a in answers]
        for group in (members // (samples // rows), members % rows)
    ]


def reads_earlier_rows(prediction: Tensor, reads: Sequence[Read]) -> bool:
    """Whether a row of the predictions depends on what the layer read at the steps before it.

    One call per step of a cell, or one call of a layer with an axis for its steps.
    """
    row = len(prediction) // 2
    xs = [read.x for read in reads]
    total = prediction[row].sum()
    found = torch.autograd.grad(
        total, xs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    if len(reads) > 1:
        sizes = [float(each.abs().max()) for each in found]
    elif reads[0].time_axis is None:
        return False
    else:
        sizes = found[0].abs().movedim(reads[0].time_axis, 0).flatten(1).amax(1).tolist()
    return any(sizes[:row])
