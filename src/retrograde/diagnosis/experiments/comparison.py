"""Is the prediction compared with the target as it should be? Shapes, probabilities, scale."""

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.sight import Comparison

SQUASHED = {"SoftmaxBackward0": "softmax", "SigmoidBackward0": "sigmoid"}
"""The nodes of the graph that make probabilities."""

REGRESSIONS = ("difference", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses whose target is in the units of the prediction."""


def _shapes(case: Case) -> list[Finding] | NotApplicable:
    if not case.sight.comparisons:
        return NotApplicable("the loss was not seen to compare a prediction with a target")
    found: dict[tuple[torch.Size, torch.Size], Finding] = {}
    for each in case.sight.comparisons:
        one, other = each.prediction.shape, each.target.shape
        if each.function in REGRESSIONS and one != other and _both_grow(one, other):
            found.setdefault((one, other), _broadcast(each, case.sight.warnings))
    return list(found.values())


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
        "that the model can learn is their mean",
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
        if each.function in ("cross_entropy", "binary_cross_entropy_with_logits", "nll_loss")
    ]
    if not looked:
        return NotApplicable("the loss takes no logits")
    return [found for each in looked[:1] if (found := _squashed(each)) is not None]


def _squashed(each: Comparison) -> Finding | None:
    values = each.prediction.detach()
    by = _made_by(each.prediction)
    axis = 1 if values.ndim > 1 else 0
    sums = values.double().sum(axis)
    adds_up = bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    if each.function == "nll_loss":
        wrong, expected = bool((values > 0).any()) or adds_up, "log-probabilities"
        what = "probabilities" if adds_up else "numbers that are no log-probabilities"
    elif each.function == "cross_entropy":
        wrong, expected, what = adds_up and values.shape[axis] > 1, "logits", "probabilities"
    else:
        wrong, expected, what = by == "sigmoid", "logits", "probabilities"
    if not wrong:
        return None
    return Finding(
        "probabilities",
        "error",
        None,
        f"{each.function} is given {what}{f' (of {by})' if by else ''} and takes {expected}: it "
        "squashes them once more, which leaves the gradient next to nothing of what the model says",
        (Evidence("largest value that it was given", float(values.max()), ""),),
        ("A softmax or sigmoid stands at the end of the model, and the loss has its own",),
        (
            "Give the loss log_softmax(logits, dim=1), or use cross_entropy on the logits"
            if each.function == "nll_loss"
            else "Leave the last softmax or sigmoid out; the loss applies it",
        ),
    )


def _made_by(prediction: Tensor) -> str:
    """The function that made probabilities of it, through changes of shape alone."""
    node = prediction.grad_fn
    for _ in range(8):
        if node is None:
            return ""
        name = type(node).__name__
        if name in SQUASHED:
            return SQUASHED[name]
        if not name.startswith(("View", "Squeeze", "Unsqueeze", "Transpose", "Permute", "Reshape")):
            return ""
        node = node.next_functions[0][0]
    return ""


def _target_scale(case: Case) -> list[Finding] | NotApplicable:
    looked = [each for each in case.sight.comparisons if each.function in REGRESSIONS]
    if not looked:
        return NotApplicable("no regression was seen")
    findings = []
    for each in looked[:1]:
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


BROADCAST = Experiment(
    "broadcast",
    "Prediction and target are broadcast",
    "The shapes of what the loss compares. [B, 1] against [B] is broadcast to [B, B] without an "
    "error, and every prediction is compared with every target.",
    _shapes,
)
PROBABILITIES = Experiment(
    "probabilities",
    "The loss takes logits and is given probabilities",
    "What cross_entropy, nll_loss and binary_cross_entropy_with_logits are given: numbers that add "
    "up to one, or that a softmax or sigmoid has made, are squashed once more.",
    _probabilities,
)
TARGET_SCALE = Experiment(
    "target-scale",
    "The targets are out of reach of the output",
    "How far the targets lie from the predictions, in units of the largest prediction. States are "
    "at most 1, and a fresh output layer turns them into numbers near 0.",
    _target_scale,
    thresholds=("target_scale",),
)
