"""Do samples see each other? Each prediction must depend on the input of its own sample alone.

What is asked of the graph of one forward pass is the derivative of one sample's predictions by the
layer's whole input, which is exactly 0 in all other samples unless something mixes them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis.copies import copied, copied_model
from retrograde.diagnosis.experiments.experiment import Case, Experiment, listed
from retrograde.diagnosis.experiments.numbers import tensors
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.sight import Read, Sight, see

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
"""Modules in which samples of a batch meet by design."""


@dataclass(frozen=True)
class _Answer:
    """Which samples the predictions of one depend on."""

    sample: int
    reached: list[int]

    @property
    def others(self) -> list[int]:
        return [each for each in self.reached if each != self.sample]


def _look(case: Case) -> list[Finding] | NotApplicable:
    prediction = case.sight.prediction
    if prediction is None or not prediction.requires_grad or not prediction.ndim:
        return NotApplicable("it is not seen which tensor is the prediction")
    if not bool(prediction.isfinite().all()):
        return NotApplicable("the prediction is not finite")
    if not case.sight.reads:
        return NotApplicable("no layer was seen to read a sequence of numbers")
    layer, reads = next(iter(case.sight.reads.items()))
    samples = reads[0].samples
    if any(read.samples != samples for read in reads):
        return NotApplicable(f"the number of samples of {layer!r} changes from call to call")
    if reads[0].steps == prediction.shape[0] != samples and _along_the_samples(case, layer):
        return [_time_is_samples(layer, reads[0], prediction)]
    if samples == 1:
        return NotApplicable("there is one sample")
    views = _by_sample(prediction, samples, reads[0].steps)
    for name, others in case.sight.reads.items():
        if views:
            break
        layer, reads, samples = name, others, others[0].samples
        views = _by_sample(prediction, samples, reads[0].steps) if samples > 1 else []
    if not views:
        layer, reads = next(iter(case.sight.reads.items()))
        samples = reads[0].samples
        return NotApplicable(
            f"no axis of the prediction {list(prediction.shape)} is that of the {samples} samples "
            f"of {layer!r}"
        )
    answers = [_ask(view, reads, samples) for view in views]
    if any(map(_apart, answers)):
        return _exchanged(case, samples)
    if any(map(_re_ordered, answers)) and _in_order(case, samples):
        return []
    mixed = next(answer for answer in answers[0] if answer.others)
    for others in case.sight.reads.values():  # samples that are steps of a layer above
        parts, steps = others[0].samples, others[0].steps
        if parts > 1 and steps > 1 and parts * steps == samples:
            above = [_ask(view, others, parts) for view in _by_sample(prediction, parts, steps)]
            if any(map(_apart, above)):
                return []
    norms = _normalised(case.model)
    if norms and _apart_without(case, samples):
        return [_legitimate(layer, norms, mixed)]
    by = [p for p, t in tensors(case.batch) if t.is_floating_point() and t.shape == (samples,) * 2]
    if by and all(answer.sample in answer.reached for answer in answers[0]):
        return [_related(mixed, by[0])]
    everyone = all(len(answer.reached) == samples for answer in answers[0])
    if everyone and _apart_in_the_model(case, reads, samples):
        return [_in_the_loss(mixed)]
    return [_mixed(layer, mixed, samples)]


def _apart_in_the_model(case: Case, reads: list[Read], samples: int) -> bool:
    """Whether the model keeps apart what the loss brings together."""
    found = []
    for output in case.sight.outputs:
        if output.requires_grad and output.ndim:
            views = _by_sample(output, samples, reads[0].steps)
            found += [any(_apart(_ask(v, reads, samples)) for v in views)]
    return bool(found) and all(found)


def _exchanged(case: Case, samples: int) -> list[Finding]:
    """Samples that were mixed before a layer reads them: one sample is given the data of another.

    What is compared with the pass as it was is what the layers read. Where the pass cannot be made
    again, or it is not seen which axis is that of the samples, nothing is said.
    """
    if _normalised(case.model):
        return []
    sample = samples // 2
    found = []
    for axis in (0, 1):
        batch = _with_data_of(case.batch, sample, sample - 1, samples, axis)
        if batch is None:
            continue
        try:
            reads = see(case.model, batch, case.loss_fn, case.seed).reads
        except Exception:
            return []
        moved = {
            name: _moved(one[0], reads[name][0])
            for name, one in case.sight.reads.items()
            if one[0].samples == samples and name in reads
        }
        others = {n: [o for o in each if o != sample] for n, each in moved.items() if each}
        if not any(others.values()):
            return []
        found.append(next((name, each) for name, each in others.items() if each))
    return [_mixed_before(*found[0], sample)] if found else []


def _with_data_of(batch: Any, sample: int, other: int, samples: int, axis: int) -> Any:
    """A batch in which one sample has the data of another; None if none of it has the axis."""
    batch, found = copied(batch), False
    for _, tensor in tensors(batch):
        along = axis if tensor.ndim > axis and tensor.shape[axis] == samples else 1 - axis
        if tensor.ndim > along and tensor.shape[along] == samples:
            # Windows over one series are views that share their memory: each gets its own first.
            tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)
            with torch.no_grad():
                tensor.select(along, sample).copy_(tensor.select(along, other).clone())
            found = True
    return batch if found else None


def _moved(before: Read, after: Read) -> list[int]:
    """The samples in which a layer reads other numbers; none if more of them moved than one has.

    Axes in the wrong order move as many rows as one sample has, and move them elsewhere; a
    statistic of the batch moves those of all samples.
    """
    if before.packed is not None or before.x.shape != after.x.shape:
        return []
    change = (after.x.detach() - before.x.detach()).abs()
    change = torch.where(change > 1e-6 * before.x.detach().abs().max(), change, 0)
    rows = (change != 0).any(-1).double().mean()
    if float(rows) > 1.5 / before.samples:
        return []
    moved = torch.nonzero(before.by_sample(change)).flatten().tolist()
    if before.batch_axis is None:
        return []
    old, new = (
        each.x.detach().movedim(before.batch_axis, 0).flatten(1) for each in (before, after)
    )
    return [each for each in moved if not bool((old == new[each]).all(1).any())]  # not re-ordered


def _apart(answers: list[_Answer]) -> bool:
    """Whether every prediction depends on its own sample alone."""
    return not any(answer.others for answer in answers)


def _re_ordered(answers: list[_Answer]) -> bool:
    """Whether every prediction depends on one sample alone, each on another."""
    single = [answer.reached[0] for answer in answers if len(answer.reached) == 1]
    return len(single) == len(answers) == len(set(single))


def _in_order(case: Case, samples: int) -> bool:
    """Whether samples that a layer reads in another order are back in their own at the end.

    A model may sort samples by length before a layer reads them. One sample is given the data of
    another, and its own prediction has to be the one that changes.
    """
    prediction = case.sight.prediction
    assert prediction is not None
    axes = [axis for axis in range(min(2, prediction.ndim)) if prediction.shape[axis] == samples]
    for sample in (samples // 2, samples - 1):
        for axis in (0, 1):
            batch = _with_data_of(case.batch, sample, sample - 1, samples, axis)
            try:
                other = see(case.model, batch, case.loss_fn, case.seed).prediction
            except Exception:
                return False
            if other is None or other.shape != prediction.shape or not axes:
                return False
            change = (other.detach() - prediction.detach()).abs().movedim(axes[0], 0)
            size = prediction.detach().abs().max()
            moved = change.reshape(samples, -1).amax(1) > 1e-5 * size
            if bool(moved.any()) and not bool(moved[sample]):
                return False
    return True


def _by_sample(prediction: Tensor, samples: int, steps: int) -> list[Tensor]:
    """The prediction with the samples along its first axis, in every way that can be meant."""
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


def _ask(view: Tensor, reads: list[Read], samples: int) -> list[_Answer]:
    """Of a few samples, which samples of the input their predictions depend on."""
    answers = []
    numbers = torch.Generator().manual_seed(0)
    for sample in sorted({0, samples // 2, samples - 1}):
        own = view[sample]
        weights = torch.rand(own.shape, generator=numbers, dtype=torch.float64) + 0.5
        total = (own * weights.to(own)).sum()
        if not total.requires_grad:
            continue
        xs = [read.x for read in reads]
        found = torch.autograd.grad(total, xs, retain_graph=True, allow_unused=True)
        size = torch.zeros(samples)
        for read, gradient in zip(reads, found, strict=True):
            if gradient is not None:
                size = torch.maximum(size, read.by_sample(gradient).detach().cpu().float())
        answers.append(_Answer(sample, torch.nonzero(size).flatten().tolist()))
    return answers


def _along_the_samples(case: Case, layer: str) -> bool:
    """Whether a row of the prediction depends on earlier steps of the layer's input."""
    prediction, read = case.sight.prediction, case.sight.reads[layer][0]
    assert prediction is not None
    if read.time_axis is None or len(case.sight.reads[layer]) > 1:
        return False
    if prediction.ndim > 2 and prediction.shape[1] == read.samples:
        return False
    targets = [each.target for each in case.sight.comparisons]
    if any(target.ndim > 1 and read.samples in target.shape for target in targets):
        return False  # a target for every step and sample: the rows are steps
    total = prediction[read.steps // 2].sum()
    (found,) = torch.autograd.grad(total, read.x, retain_graph=True, materialize_grads=True)
    size = found.abs().movedim(read.time_axis, 0).flatten(1).amax(1)
    reached = torch.nonzero(size).flatten().tolist()
    return any(step < read.steps // 2 for step in reached)


def _normalised(model: nn.Module) -> list[str]:
    """The normalisations at work in which samples meet."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and (module.training or not module.track_running_stats)
    ]


def _apart_without(case: Case, samples: int) -> bool:
    """Whether samples do not see each other where statistics are not those of the batch."""
    model = copied_model(case.model)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval()
    try:
        sight: Sight = see(model, case.batch, case.loss_fn, case.seed)
    except Exception:
        return False
    prediction = sight.prediction
    if prediction is None or not sight.reads:
        return False
    reads = next(iter(sight.reads.values()))
    views = _by_sample(prediction, samples, reads[0].steps)
    return any(_apart(_ask(view, reads, samples)) for view in views)


def _time_is_samples(layer: str, read: Read, prediction: Tensor) -> Finding:
    shape = list(read.x.shape)
    return Finding(
        "samples-mixed",
        "error",
        layer,
        f"{layer!r} runs along the samples: of its input {shape} it reads axis {read.time_axis} as "
        f"{read.steps} steps and axis {read.batch_axis} as {read.samples} samples, but the loss "
        f"has {len(prediction)} rows, so that the prediction of one sample depends on the input of "
        "the samples before it",
        (Evidence("rows of the loss that are steps of the layer", float(read.steps), "rows"),),
        ("The axes of the batch are not in the order that the layer reads (batch_first)",),
        (
            f"{layer}.batch_first = True (or batch_first=True in its constructor)"
            if read.batch_axis == 1
            else f"{layer}.batch_first = False, or transpose the batch",
        ),
    )


def _mixed(layer: str, answer: _Answer, samples: int) -> Finding:
    return Finding(
        "samples-mixed",
        "error",
        layer,
        f"Samples see each other: the prediction of sample {answer.sample} depends on what "
        f"{layer!r} reads in sample{'s' * (len(answer.others) > 1)} {listed(answer.others)}"
        + ("" if answer.sample in answer.reached else ", and not on its own"),
        (
            Evidence(
                "other samples that a prediction depends on",
                float(len(answer.others)),
                "samples",
                0.0,
                "below",
            ),
        ),
        (
            "A reshape or view puts the axes of samples, steps, layers or directions together in "
            "the wrong order",
            "The axes of the batch are not in the order that the layer reads (batch_first)",
        ),
        (
            "Move axes by transpose or permute, never by view or reshape: h_n is [layers * "
            "directions, B, H], and h_n.transpose(0, 1).reshape(B, -1) keeps samples apart",
        ),
    )


def _legitimate(layer: str, norms: list[str], answer: _Answer) -> Finding:
    return Finding(
        "samples-mixed",
        "info",
        layer,
        f"Samples see each other through the statistics of the batch in {', '.join(norms)}, and "
        "through nothing else",
        (
            Evidence(
                "other samples that a prediction depends on", float(len(answer.others)), "samples"
            ),
        ),
        ("Batch normalisation in training mode",),
        (),
    )


def _in_the_loss(answer: _Answer) -> Finding:
    return Finding(
        "samples-mixed",
        "info",
        None,
        "Samples see each other in the loss, and nowhere in the model: what the loss compares of "
        "one sample depends on all the others",
        (
            Evidence(
                "other samples that a prediction depends on", float(len(answer.others)), "samples"
            ),
        ),
        ("A contrastive loss, or one that normalises over the batch",),
        (),
    )


def _related(answer: _Answer, place: str) -> Finding:
    return Finding(
        "samples-mixed",
        "info",
        None,
        f"Samples see each other, and {place} has a number for every pair of them: if it relates "
        "samples (a graph, an attention mask) that is as it should be",
        (
            Evidence(
                "other samples that a prediction depends on", float(len(answer.others)), "samples"
            ),
        ),
        ("The model passes information between the samples of a batch",),
        (f"If {place} is not meant to relate samples, look for axes in the wrong order",),
    )


def _mixed_before(layer: str, others: list[int], sample: int) -> Finding:
    return Finding(
        "samples-mixed",
        "error",
        layer,
        f"Samples are mixed before {layer!r} reads them: when sample {sample} of the batch is "
        f"given other data, what {layer!r} reads in sample{'s' * (len(others) > 1)} "
        f"{listed(others)} changes too",
        (
            Evidence(
                "other samples that depend on one", float(len(others)), "samples", 0.0, "below"
            ),
        ),
        (
            "A view or reshape that was meant to swap axes: x.view(T, B, features) of a batch "
            "[B, T, features] renames the axes and leaves the numbers where they were",
        ),
        ("Move axes by x.transpose(0, 1), or tell the layer with batch_first=True",),
    )


SAMPLES = Experiment(
    "samples-mixed",
    "Samples see each other",
    "Whether the prediction of one sample depends on the input of another: the derivative of the "
    "one by the other, which is exactly 0 where samples are kept apart. One sample is then given "
    "the data of another, which shows whether they were mixed before. Axes in the wrong order "
    "and a wrong reshape mix them, and the model then learns from what it will not have. Batch "
    "normalisation and contrastive losses mix them by design, and are named as such.",
    _look,
    replaces=("unreached", "forget-gate-too-short", "vanishing", "near-lags-dominate"),
    kind="wiring",
)
