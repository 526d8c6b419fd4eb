"""Is the prediction compared with the target as it should be? Shapes, probabilities, scale."""

import math

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.sight import RESHAPED, Comparison, Sight, last_node

SQUASHED = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}
"""The nodes of the graph that make probabilities."""

LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
LOG_PROBABILITIES = ("nll_loss", "ctc_loss", "kl_div")
"""Losses that take logits, and those that take logarithms of probabilities."""

NOISE = 1e-3
"""The logarithm of a probability may be this much above 0 by rounding, in low precision."""

REGRESSIONS = ("difference", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses whose target is in the units of the prediction."""


def _shapes(case: Case) -> list[Finding] | NotApplicable:
    if not case.sight.comparisons and not case.sight.broadcast:
        return NotApplicable("no comparison of a prediction with a target was found in the loss")
    found = {
        (each.prediction.shape, each.target.shape): _broadcast(each, case.sight.warnings)
        for each in broadcasts(case)
    }
    return list(found.values())


def broadcasts(case: Case) -> list[Comparison]:
    """The comparisons in which prediction and target were both enlarged by accident.

    Whoever takes differences of all pairs by hand gives both tensors the same number of axes, or
    puts the new one in the middle.
    """
    found = []
    for each in case.sight.comparisons:
        one, other = each.prediction.shape, each.target.shape
        if each.function not in REGRESSIONS or one == other or not _both_grow(one, other):
            continue
        longer = max(one, other, key=len)
        by_accident = len(one) != len(other) and longer[-1] == 1
        if each.function != "difference" or by_accident:
            found.append(each)
    return found or case.sight.broadcast


def _both_grow(one: torch.Size, other: torch.Size) -> bool:
    together = _together(one, other)
    return together is not None and together.numel() > max(one.numel(), other.numel())


def _together(one: torch.Size, other: torch.Size) -> torch.Size | None:
    """The shape that two shapes are broadcast to, if they are."""
    try:
        found: torch.Size = torch.broadcast_shapes(one, other)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None
    return found


def _broadcast(each: Comparison, warned: list[str]) -> Finding:
    one, other = list(each.prediction.shape), list(each.target.shape)
    together = _together(each.prediction.shape, each.target.shape)
    assert together is not None
    said = [words for words in warned if "broadcasting" in words]
    return Finding(
        "broadcast",
        "error",
        None,
        f"The prediction {one} is compared with a target {other}: they are broadcast to "
        f"{list(together)}, so that every prediction is pulled towards every target, and the best "
        "that the model can learn is one number for all of them"
        if each.function in REGRESSIONS
        else f"The loss takes what depends on the model {one} together with {other} of the batch: "
        f"they are broadcast to {list(together)}, each number of the one with every number of the "
        "other",
        (
            Evidence(
                "numbers in the comparison for each target",
                float(together.numel() / max(1, each.target.numel())),
                "",
                1.0,
                "below",
            ),
        ),
        tuple(f"torch warned: {words}" for words in said[:1])
        or ("The two have the same numbers in different shapes",),
        (
            f"Give both one shape: prediction.squeeze(-1), or target.reshape({one})"
            if each.prediction.numel() == each.target.numel()
            else "Give both the same shape",
        ),
    )


def _probabilities(case: Case) -> list[Finding] | NotApplicable:
    looked = [
        each
        for each in case.sight.comparisons
        if each.function in LOGITS or each.function in LOG_PROBABILITIES
    ]
    if not looked:
        return NotApplicable("the loss takes neither logits nor log-probabilities")
    return [found for each in looked[:1] if (found := _squashed(each)) is not None]


def _squashed(each: Comparison) -> Finding | None:
    values = each.prediction.detach()
    by = _made_by(each.prediction)
    axis = (values.ndim - 1 if each.function in ("ctc_loss", "kl_div") else 1) * (values.ndim > 1)
    sums = values.double().sum(axis)
    adds_up = bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    logarithms = each.function in LOG_PROBABILITIES
    if each.function == "nll_loss" and _over_another_axis(each.prediction, axis):
        return _wrong_axis(values.double().exp().sum(axis), axis)
    if logarithms:
        wrong = bool((values > NOISE).any()) or adds_up
        if each.function == "ctc_loss":
            wrong |= not _add_up(values, axis)
    elif each.function == "cross_entropy":
        wrong = (adds_up or by in ("softmax", "sigmoid")) and values.shape[axis] > 1
    else:
        wrong = by == "sigmoid"
    if not wrong:
        return None
    what = "probabilities" if adds_up or by else "numbers that are not log-probabilities"
    return Finding(
        "probabilities",
        "error",
        None,
        f"{each.function} expects {'log-probabilities' if logarithms else 'logits'} and is given "
        f"{what}{f' (from a {by})' if by else ''}: "
        + (
            "it computes no likelihood then, and its minimum is not the right answer"
            if logarithms
            else "it squashes them once more, and the gradient that is left is small and hardly "
            "depends on what the model says"
        ),
        (Evidence("largest value that it was given", float(values.max()), ""),),
        (
            "The model ends in its logits, or in a softmax instead of a log_softmax"
            if logarithms
            else "A softmax or sigmoid stands at the end of the model, and the loss has its own",
        ),
        (
            f"Give the loss log_softmax(logits, dim={axis})"
            + (", or use cross_entropy on the logits" if each.function == "nll_loss" else "")
            if logarithms
            else "Leave the last softmax or sigmoid out; the loss applies it",
        ),
    )


def _over_another_axis(prediction: Tensor, axis: int) -> bool:
    """Whether a log_softmax made all of it, and not over the classes, which lie along this axis."""
    by = type(last_node(prediction, RESHAPED)).__name__
    return by == "LogSoftmaxBackward0" and not _add_up(prediction.detach(), axis)


def _add_up(logarithms: Tensor, axis: int) -> bool:
    """Whether the probabilities along an axis add up to 1, or nearly so."""
    total = logarithms.double().logsumexp(axis)
    return not bool((total.abs() > 0.1).any())


def _wrong_axis(sums: Tensor, axis: int) -> Finding:
    away = float(sums.flatten()[(sums - 1).abs().argmax()])
    return Finding(
        "probabilities",
        "error",
        None,
        f"nll_loss expects log-probabilities of the classes along axis {axis}, and is given those "
        "of a log_softmax over another axis: the probabilities of the classes do not add up to 1, "
        "and what the loss raises for one sample or step it takes from the others",
        (Evidence("sum over the classes, where it is furthest from 1", away, ""),),
        ("log_softmax was given the axis of the samples or the steps (dim=)",),
        (
            "Take log_softmax over the classes, the last axis of an output layer (dim=-1), or use "
            "cross_entropy on the logits",
        ),
    )


def _made_by(prediction: Tensor) -> str:
    """The function that made probabilities of it, through changes of shape alone."""
    return SQUASHED.get(type(last_node(prediction)).__name__, "")


def _target_scale(case: Case) -> list[Finding] | NotApplicable:
    looked = [each for each in case.sight.comparisons if each.function in REGRESSIONS]
    if not looked:
        return NotApplicable("no regression was seen")
    findings = []
    for each in looked[:1]:
        if (found := _out_of_bounds(each, case.sight)) is not None:
            return [found]
        target, prediction = each.target.detach().double(), each.prediction.detach().double()
        if not bool(target.isfinite().all()) or not bool(prediction.isfinite().all()):
            return NotApplicable("prediction or target is not finite")
        spread = float(target.std()) if target.numel() > 1 else 0.0
        size = float(target.abs().max())
        moves = float(prediction.abs().max())
        away = float((target.mean() - prediction.mean()).abs())
        ratio = max(away, spread) / max(moves, 1e-12)
        limit = case.limits["target_scale"]
        if size > limit and ratio > limit:
            findings.append(
                Finding(
                    "target-scale",
                    "warning",
                    None,
                    f"The targets lie {max(away, spread):.3g} away from predictions that are "
                    f"{moves:.3g} at most: an output layer that starts near 0 needs thousands of "
                    "steps to get there, and until then the prediction is one constant",
                    (
                        Evidence(
                            "distance over size of the predictions",
                            ratio,
                            "",
                            limit,
                            "below",
                            "target_scale",
                        ),
                    ),
                    ("The target is in its own units (prices, counts), not standardised",),
                    (
                        "Standardise the target: y = (y - y.mean()) / y.std(), and undo it on the "
                        "predictions",
                        "Or let the output layer start there: head.bias.fill_(y.mean())",
                    ),
                )
            )
    return findings


BOUNDS = {
    "TanhBackward0": ("tanh", -1.0, 1.0),
    "SigmoidBackward0": ("sigmoid", 0.0, 1.0),
    "SoftmaxBackward0": ("softmax", 0.0, 1.0),
    "ReluBackward0": ("relu", 0.0, math.inf),
}
"""The nodes of the graph that bound what they return, and by what."""

OUTSIDE = 0.1
"""Of the targets; outliers may lie beyond what the output can reach."""


def _out_of_bounds(each: Comparison, sight: Sight) -> Finding | None:
    """Targets that the function at the end of the model cannot reach."""
    node = last_node(each.prediction)
    target = each.target.detach().double()
    state = node in sight.returned
    if not state and type(node).__name__ not in BOUNDS or not target.numel():
        return None
    name, low, high = ("recurrent layer", -1.0, 1.0) if state else BOUNDS[type(node).__name__]
    share = float(((target < low) | (target > high)).double().mean())
    if share <= OUTSIDE:
        return None
    span = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
    return Finding(
        "target-scale",
        "error",
        None,
        f"The model ends in a {name}, which returns numbers {span}, and {share:.0%} of the targets "
        f"lie outside (they run from {float(target.min()):.3g} to {float(target.max()):.3g}): no "
        "training can reach them",
        (Evidence("targets out of reach", 100 * share, "%", 100 * OUTSIDE, "below"),),
        (
            "The state of the layer is compared with the target as it is"
            if state
            else f"The last {name} is one too many, or the targets are not scaled to it",
        ),
        (
            "Add a linear output layer, or scale the targets to its range"
            if state
            else f"Leave the last {name} out, or scale the targets to its range",
        ),
    )


BROADCAST = Experiment(
    "broadcast",
    "Prediction and target are broadcast",
    "The shapes of what the loss compares. [B, 1] against [B] is broadcast to [B, B] without an "
    "error, and every prediction is compared with every target.",
    _shapes,
    kind="soundness",
)
PROBABILITIES = Experiment(
    "probabilities",
    "The loss takes logits and is given probabilities",
    "What cross_entropy and binary_cross_entropy_with_logits are given: numbers that add up to "
    "one, or that a softmax or sigmoid has made, are squashed once more. And what nll_loss, "
    "ctc_loss and kl_div are given: numbers above 0 are no logarithms of probabilities, and those "
    "of a log_softmax over samples or steps are not those of the classes.",
    _probabilities,
    kind="soundness",
)
TARGET_SCALE = Experiment(
    "target-scale",
    "The targets are out of reach of the output",
    "How far the targets lie from the predictions, in units of the largest prediction: states are "
    "at most 1, and a fresh output layer turns them into numbers near 0. And whether targets lie "
    "where a tanh, sigmoid, softmax or relu at the end of the model never gets.",
    _target_scale,
    thresholds=("target_scale",),
    kind="scale",
    remedies=("standardise-target",),
)
