"""Do samples see each other? Each prediction must depend on the input of its own sample alone.

The graph of a pass says whether they do (dependence.py), other data in one sample whether they did
before a layer reads them, and another order of the samples whether that is by design (exchange.py).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.experiments.axes import is_next, likely_swapped
from retrograde.diagnosis.experiments.dependence import (
    Answer,
    apart,
    ask,
    ask_in_groups,
    by_sample,
    re_ordered,
    reads_earlier_rows,
)
from retrograde.diagnosis.experiments.exchange import may_relate, order_matters, read_from_others
from retrograde.diagnosis.experiments.experiment import Case, Experiment, Partly, listed
from retrograde.diagnosis.experiments.numbers import tensors
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable, Severity
from retrograde.diagnosis.sight import Read, see, upstream

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)
"""Modules in which samples of a batch meet by design."""

MOST = 4
"""Where a loss makes many comparisons, this many predictions are looked at."""


def _look(case: Case) -> list[Finding] | NotApplicable | Partly:
    if not case.sight.reads:
        return NotApplicable("no layer reads a sequence of numbers")
    layer, reads = next(iter(case.sight.reads.items()))
    samples = reads[0].samples
    if any(read.samples != samples for read in reads):
        return NotApplicable(f"the number of samples of {layer!r} changes from call to call")
    predictions = _predictions(case)
    if not predictions:
        return _before_alone(
            case, samples, "which tensor is the prediction could not be determined"
        )
    if not all(bool(each.isfinite().all()) for each in predictions):
        return NotApplicable("the prediction is not finite")
    if found := _rows_are_steps(case, layer, reads, predictions[-1]):
        return found
    if samples == 1:
        return NotApplicable("there is one sample")
    asked = _asked(case, predictions)
    if asked is None:
        shape = list(predictions[-1].shape)
        why = f"no axis of the prediction {shape} is that of the {samples} samples of {layer!r}"
        return _before_alone(case, samples, why)
    layer, reads, answers = asked
    samples = reads[0].samples
    if apart(answers):
        rows = len(predictions[-1])
        return _before(case, rows if 1 < rows < samples and samples % rows == 0 else samples)
    if _steps_of_another(case, reads[0], predictions[-1]):
        return []
    if re_ordered(answers):
        matters = order_matters(case, samples)
        if matters is None:
            return Partly(
                f"{layer!r} reads the samples in another order; whether they are back in their "
                "own at the end cannot be told"
            )
        return [_mixed(layer, answers[0])] if matters else []
    return [_verdict(case, layer, reads[0], answers)]


def _predictions(case: Case) -> list[Tensor]:
    """The predictions that can be asked, a few of them where the loss compares many."""
    seen = [each.prediction for each in case.sight.comparisons]
    found = [case.sight.prediction] if case.sight.prediction is not None else seen
    found = [each for each in found if each is not None and each.requires_grad and each.ndim]
    return found if len(found) <= MOST else [*found[:1], *found[1 - MOST :]]


def _asked(case: Case, predictions: list[Tensor]) -> tuple[str, list[Read], list[Answer]] | None:
    """The first layer whose samples are rows of a prediction, and what the predictions depend on.

    Of the ways in which a prediction can be meant, the one that keeps samples apart counts.
    """
    for name, reads in case.sight.reads.items():
        samples = reads[0].samples
        if samples == 1 or any(read.samples != samples for read in reads):
            continue
        found: list[Answer] = []
        known = False
        for prediction in predictions:
            views = by_sample(prediction, samples, reads[0].steps)
            ways = [ask(view, reads) for view in views] or ask_in_groups(prediction, reads)
            if ways and (views or any(map(apart, ways))):
                known = True
                found = found or next(([] for way in ways if apart(way)), ways[0])
        if known:
            return name, reads, found
    return None


def _before(case: Case, samples: int) -> list[Finding] | Partly:
    """Samples that are mixed before a layer reads them."""
    sample = samples // 2
    axes = _axes(case)
    try:
        found = read_from_others(case, samples, sample)
    except ValueError as error:
        if isinstance(axes, list) and axes:
            return axes
        why = (
            f"whether samples were mixed before a layer reads them could not be determined: {error}"
        )
        return Partly(why + (f"; {axes.reason}" if isinstance(axes, Partly) else ""))
    if found is None:
        return axes
    matters = order_matters(case, samples)
    if matters is None:
        return Partly(
            f"{found[0]!r} reads data of one sample in others; whether that is by design cannot be "
            "told"
        )
    if not matters or may_relate(case, samples):
        return []
    return [_mixed_before(*found, sample)]


def _before_alone(case: Case, samples: int, why: str) -> list[Finding] | NotApplicable:
    """What can be seen where no prediction can be asked."""
    if samples > 1:
        before = _before(case, samples)
        if isinstance(before, list) and any(each.severity != "info" for each in before):
            return before
        if isinstance(before, list):
            why += "; up to what the layers read samples are kept apart"
    return NotApplicable(why)


def _axes(case: Case) -> list[Finding] | Partly:
    """Whether steps and samples may be each other, where the loss has a target for every one."""
    for name, reads in case.sight.reads.items():
        read = reads[0]
        if len(reads) > 1 or read.packed is not None or None in (read.time_axis, read.batch_axis):
            continue
        both = {read.steps, read.samples}
        shapes = [each.target.shape for each in case.sight.comparisons] or [
            each.shape for each in _predictions(case)
        ]
        alike = read.steps == read.samples
        if not alike and not any(
            both <= {*shape} or read.steps * read.samples in shape for shape in shapes
        ):
            return []
        if _next_along_the_samples(case, read):
            return [_next_sample(name, read)]
        if name in case.subjects and (found := likely_swapped(case.subjects[name].recorded.x)):
            return [_likely(name, read, *found)]
        return Partly(
            f"whether axis {read.time_axis} of what {name!r} reads is meant as its steps cannot be "
            + ("told: there are as many samples" if alike else "told: each sample has a target at")
            + (" every step" if not alike else " as steps")
        )
    return []


def _next_along_the_samples(case: Case, read: Read) -> bool:
    """Whether the target is the input one place on along the axis of the samples, not the steps."""
    if read.time_axis not in (0, 1) or read.batch_axis not in (0, 1):
        return False
    sizes = (read.x.shape[0], read.x.shape[1])
    inputs = [tensor for _, tensor in tensors(case.batch)]
    for each in case.sight.comparisons:
        if each.target.numel() == sizes[0] * sizes[1]:
            target = each.target.detach().reshape(sizes)
            found = [is_next(target, inputs, axis) for axis in (read.batch_axis, read.time_axis)]
            if found == [True, False]:
                return True
    return False


def _rows_are_steps(
    case: Case, layer: str, reads: list[Read], prediction: Tensor
) -> list[Finding] | None:
    """Rows of the loss that a layer runs along, as it does where axes are in the wrong order."""
    read = reads[0]
    steps, rows = (len(reads) if len(reads) > 1 else read.steps), len(prediction)
    if rows < 2 or steps != rows or rows == read.samples:
        return None
    targets = [each.target for each in case.sight.comparisons]
    if read.samples == 1:
        given = [t.shape for _, t in tensors(case.batch) if t.ndim]
        if any(shape[0] != rows for shape in given) or not given or read.packed is not None:
            return None
        return [_one_sequence(layer, rows)] if reads_earlier_rows(prediction, reads) else None
    if prediction.ndim > 2 and prediction.shape[1] == read.samples:
        return None
    if any(target.ndim > 1 and read.samples in target.shape for target in targets):
        return None  # a target for every step and sample: the rows are steps
    if not reads_earlier_rows(prediction, reads) or order_matters(case, rows) is False:
        return None
    entered = case.subjects[layer].recorded.direct if layer in case.subjects else None
    one = entered is not None and int((entered != 0).any(-1).any(0).sum()) == 1
    one |= layer in case.subjects and likely_swapped(case.subjects[layer].recorded.x) is not None
    return [_time_is_samples(layer, read, rows, steps, one)]


def _steps_of_another(case: Case, read: Read, prediction: Tensor) -> bool:
    """Whether the samples of a layer are steps of a layer above, whose own samples are apart."""
    for others in case.sight.reads.values():
        parts, steps = others[0].samples, others[0].steps
        if steps > 1 and parts * steps == read.samples and others[0].comes_from(read):
            if parts == 1:
                return True
            if any(apart(ask(view, others)) for view in by_sample(prediction, parts, steps)):
                return True
    return False


def _verdict(case: Case, layer: str, read: Read, answers: list[Answer]) -> Finding:
    """What to make of samples that see each other: it is by design if their order is nothing."""
    samples = read.samples
    mixed = next(answer for answer in answers if answer.others)
    everyone = all(len(answer.reached) == samples for answer in answers)
    matters = order_matters(case, samples)
    related = may_relate(case, samples)
    if related and all(answer.sample in answer.reached for answer in answers):
        return _legitimate(
            f"Samples see each other, and {related} may say which of them belong together: if it "
            "relates samples (a graph, an attention mask) that is as it should be",
            mixed,
            ("The model passes information between the samples of a batch",),
            (f"If {related} is not meant to relate samples, look for axes in the wrong order",),
        )
    if matters or (matters is None and not everyone):
        return _mixed(layer, mixed)
    prediction = case.sight.prediction
    if prediction is not None and _all_alike(prediction, read):
        return _mixed(
            layer, mixed, "all predictions are one, whatever each sample holds", WRONG_AXIS
        )
    if by := _softmax_over(case, read) or _attention_over(case, read):
        return _mixed(layer, mixed, f"{by} runs over the samples, not the steps", WRONG_AXIS)
    if norms := _normalised(case.model):
        return _legitimate(
            f"Samples see each other through the statistics of the batch in {', '.join(norms)}, "
            "and through nothing that depends on their order",
            mixed,
            ("Batch normalisation in training mode",),
            layer=layer,
        )
    if _apart_in_the_model(case, read):
        return _legitimate(
            "Samples see each other in the loss, and nowhere in the model: what the loss compares "
            "of one sample depends on all the others",
            mixed,
            ("A contrastive loss, or one that normalises over the batch",),
        )
    return _legitimate(
        "Samples see each other"
        + (
            ", in a way that does not depend on their order: as they do in a statistic of the "
            "batch, in pooling or attention over all of them, and in a contrastive loss"
            if matters is False
            else "; whether by design cannot be told, since the pass is random, carries a state or "
            "cannot be run with its samples in another order"
        ),
        mixed,
        ("Something in the model or the loss goes over the axis of the samples",),
        ("If that is not meant, look for a mean, softmax or attention over the wrong axis",),
        layer,
    )


def _all_alike(prediction: Tensor, read: Read) -> bool:
    """Whether samples that differ have one prediction."""
    if read.samples not in prediction.shape[:1] or read.batch_axis is None:
        return False
    x, rows = read.x.detach().movedim(read.batch_axis, 0), prediction.detach()
    if not bool((x != x[:1]).any()) or not bool(rows.any()):
        return False
    return bool((rows - rows[:1]).abs().max() <= 1e-6 * rows.abs().max())


def _softmax_over(case: Case, read: Read) -> str:
    """A softmax over the axis of the samples, in a tensor laid out as the layer's."""
    prediction = case.sight.prediction
    if prediction is None or read.batch_axis is None:
        return ""
    for node in upstream(prediction):
        if type(node).__name__ != "SoftmaxBackward0":
            continue
        shape, axis = node._saved_result.shape, node._saved_dim
        axis = (axis - 2**64 if axis >= 2**63 else axis) % max(1, len(shape))
        others = [size for place, size in enumerate(shape) if place != axis]
        if axis == read.batch_axis and shape[axis] == read.samples and read.steps in others:
            return "a softmax"
    return ""


def _attention_over(case: Case, read: Read) -> str:
    """An nn.MultiheadAttention that takes samples for steps, as it does without batch_first."""
    found: list[str] = []
    model = copied_model(case.model)

    def note(name: str) -> Callable[..., None]:
        def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            query = args[0] if args else kwargs.get("query")
            axis = 0 if module.batch_first else 1
            if isinstance(query, Tensor) and query.ndim == 3 and read.batch_axis is not None:
                laid_out = query.shape[read.batch_axis] == read.samples != query.shape[axis]
                if laid_out and query.shape[axis] == read.steps:
                    found.append(name)

        return look

    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    try:
        see(model, case.batch, case.loss_fn, case.seed)
    except Exception:
        return ""
    return f"the attention of {found[0]!r}" if found else ""


def _apart_in_the_model(case: Case, read: Read) -> bool:
    """Whether the model keeps apart what the loss brings together."""
    found = []
    for output in case.sight.outputs:
        if output.requires_grad and output.ndim:
            views = by_sample(output, read.samples, read.steps)
            found += [any(apart(ask(view, [read])) for view in views)]
    return bool(found) and all(found)


def _normalised(model: nn.Module) -> list[str]:
    """The normalisations at work in which samples meet."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and (module.training or not module.track_running_stats)
    ]


NAME = "samples-mixed"

WRONG_AXIS = (
    "Name the axis: softmax(dim=1) or mean(1) over the steps of [B, T, features], and "
    "batch_first=True for nn.MultiheadAttention as for the layer"
)

SWAPPED = "The axes of the batch are not in the order that the layer reads (batch_first)"


def _others(
    count: int,
    limited: bool = True,
    words: str = "other samples that a prediction depends on",
) -> Evidence:
    return Evidence(words, float(count), "samples", 0.0 if limited else None, "below")


def _right_axes(layer: str, read: Read) -> str:
    if read.batch_axis == 1:
        return f"{layer}.batch_first = True (or batch_first=True in its constructor)"
    if read.time_axis is None:
        return "Loop over the steps: for t in range(T): h = cell(x[:, t], h)"
    return f"{layer}.batch_first = False, or transpose the batch"


def _time_is_samples(layer: str, read: Read, rows: int, steps: int, one: bool) -> Finding:
    shape = list(read.x.shape)
    axis = f" it reads axis {read.time_axis} as {steps} steps and axis {read.batch_axis} as"
    called = f", {steps} times, it reads"
    severity: Severity = "error" if one else "info"
    return Finding(
        NAME,
        severity,
        layer,
        f"{layer!r} runs along the samples: of its input {shape}"
        f"{called if read.time_axis is None else axis} {read.samples} samples, but the loss "
        f"has {rows} rows, so that the prediction of one sample depends on the input of "
        "the samples before it"
        if one
        else f"{layer!r} runs along the rows of the loss: of its input {shape}"
        f"{called if read.time_axis is None else axis} {read.samples} samples, which are brought "
        f"together in {rows} predictions. That is right if the rows are steps, and wrong if they "
        "are samples",
        (Evidence("rows of the loss that are steps of the layer", float(steps), "rows"),),
        (SWAPPED,),
        (_right_axes(layer, read),),
    )


def _one_sequence(layer: str, rows: int) -> Finding:
    return Finding(
        NAME,
        "info",
        layer,
        f"{layer!r} takes the {rows} rows of its input for the steps of one sequence, and the loss "
        "has a target for each. That is right for one sequence; if the rows are samples, each "
        "prediction depends on the samples before it",
        (Evidence("rows of the loss that are steps of the layer", float(rows), "rows"),),
        ("The input has no axis of its own for the samples, or none for the steps",),
        ("Give samples of one step an axis for it: x.unsqueeze(1) with batch_first=True",),
    )


def _next_sample(layer: str, read: Read) -> Finding:
    return Finding(
        NAME,
        "error",
        layer,
        f"{layer!r} runs along the samples: the target is the input one place on along axis "
        f"{read.batch_axis}, which it reads as {read.samples} samples, while its steps are axis "
        f"{read.time_axis}",
        (Evidence("size of the axis that it takes for the steps", float(read.steps), "steps"),),
        (SWAPPED,),
        (_right_axes(layer, read),),
    )


def _likely(layer: str, read: Read, along: float, across: float) -> Finding:
    return Finding(
        NAME,
        "warning",
        layer,
        f"Steps and samples of {layer!r} look like each other's: its input hardly depends on the "
        f"step before (autocorrelation {along:.2f} along axis {read.time_axis}, which it reads as "
        f"{read.steps} steps) and strongly on the sample before ({across:.2f} along axis "
        f"{read.batch_axis}, read as {read.samples} samples). With a target for each of both "
        "nothing else can tell",
        (
            Evidence("autocorrelation along the steps", along, "of a step"),
            Evidence("autocorrelation along the samples", across, "of a sample"),
        ),
        (SWAPPED, "Or samples are sorted, and their steps are noise"),
        (_right_axes(layer, read),),
    )


def _mixed(layer: str, answer: Answer, why: str = "", advice: str = "") -> Finding:
    return Finding(
        NAME,
        "error",
        layer,
        f"Samples see each other: the prediction of sample {answer.sample} depends on what "
        f"{layer!r} reads in sample{'s' * (len(answer.others) > 1)} {listed(answer.others)}"
        + (f"; {why}" if why else "" if answer.sample in answer.reached else ", not on its own"),
        (_others(len(answer.others)),),
        ("Something goes over the axis of the samples in place of that of the steps",)
        if advice
        else (
            "A reshape or view puts the axes of samples, steps, layers or directions together in "
            "the wrong order",
            SWAPPED,
        ),
        (
            advice
            or "Move axes by transpose or permute, never by view or reshape: h_n is [layers * "
            "directions, B, H], and h_n.transpose(0, 1).reshape(B, -1) keeps samples apart",
        ),
    )


def _legitimate(
    message: str,
    answer: Answer,
    causes: tuple[str, ...],
    advice: tuple[str, ...] = (),
    layer: str | None = None,
) -> Finding:
    return Finding(
        NAME, "info", layer, message, (_others(len(answer.others), False),), causes, advice
    )


def _mixed_before(layer: str, others: list[int], sample: int) -> Finding:
    return Finding(
        NAME,
        "error",
        layer,
        f"Samples are mixed before {layer!r} reads them: when sample {sample} of the batch is "
        f"given other data, what {layer!r} reads in sample{'s' * (len(others) > 1)} "
        f"{listed(others)} changes too",
        (_others(len(others), words="other samples that depend on one"),),
        (
            "A view or reshape that was meant to swap axes: x.view(T, B, features) of a batch "
            "[B, T, features] renames the axes and leaves the numbers where they were",
        ),
        ("Move axes by x.transpose(0, 1), or tell the layer with batch_first=True",),
    )


SAMPLES = Experiment(
    NAME,
    "Samples see each other",
    "Whether the prediction of one sample depends on the input of another: the derivative of the "
    "one by the other, which is exactly 0 where samples are kept apart. One sample is then given "
    "the data of another, which shows whether they were mixed before. Axes in the wrong order "
    "and a wrong reshape mix them, and the model then learns from what it will not have. Where "
    "samples meet by design, in batch normalisation, pooling or a contrastive loss, the loss does "
    "not depend on their order: they are put in another one, and what then stays the same is named "
    "as such. Where there is a target for every step of every sample, no shape tells the two axes "
    "apart, and the data are asked which of them looks like time.",
    _look,
    replaces=("unreached", "forget-gate-too-short", "vanishing", "near-lags-dominate"),
    kind="wiring",
    remedies=("batch-first",),
)
