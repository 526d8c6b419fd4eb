"""Is there anything left to learn? The loss beside that of the best constant prediction.

share = loss / loss of the constant that fits the targets of this batch best
"""

from collections.abc import Callable

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.diagnosis.sight import Comparison


def share_left(case: Case) -> float | None:
    """The loss as a share of that of the best constant; None where that is not known."""
    if len(case.sight.comparisons) != 1:
        return None
    each = case.sight.comparisons[0]
    constant = best_constant(each)
    if constant is None:
        return None
    with torch.no_grad():
        result, other = each.result.detach().double(), each.call(constant).double()
    if each.function == "difference":
        result, other = result.square(), other.square()
    now, then = float(result.mean()), float(other.mean())
    return now / then if then > 0 and now == now else None


def best_constant(each: Comparison) -> Tensor | None:
    """The prediction that is the same in all samples and has the least loss."""
    target, prediction = each.target.detach(), each.prediction.detach()
    if not target.ndim or not prediction.ndim or not target.numel():
        return None
    if each.function in ("mse_loss", "difference", "huber_loss", "smooth_l1_loss"):
        if target.shape != prediction.shape:
            return None
        return _of_each_output(target, torch.mean).expand_as(prediction).to(prediction)
    if each.function == "l1_loss":
        if target.shape != prediction.shape:
            return None
        return _of_each_output(target, torch.median).expand_as(prediction).to(prediction)
    if each.function == "cross_entropy" and not target.is_floating_point() and prediction.ndim > 1:
        classes = prediction.shape[1]
        known = target[(target >= 0) & (target < classes)]
        known = known[known != each.options.get("ignore_index", -100)]
        counts = torch.bincount(known.flatten(), minlength=classes).double() + 1e-9
        shape = [1, classes] + [1] * (prediction.ndim - 2)
        return (counts / counts.sum()).log().view(shape).expand_as(prediction).to(prediction)
    if each.function == "binary_cross_entropy_with_logits":
        mean = target.double().mean().clamp(1e-6, 1 - 1e-6)
        return torch.logit(mean).expand_as(prediction).to(prediction)
    return None


def _of_each_output(target: Tensor, middle: Callable[..., Tensor]) -> Tensor:
    """The mean or median of each entry of the last axis, over everything else; else of all."""
    if target.ndim < 2:
        return middle(target.double())
    rows = target.double().flatten(0, -2)
    found = middle(rows, 0)
    return found if isinstance(found, Tensor) else found.values


def _look(case: Case) -> list[Finding] | NotApplicable:
    share = share_left(case)
    if share is None:
        return NotApplicable("the loss of the best constant prediction is not known")
    limit = case.limits["solved_share"]
    if share > limit:
        return []
    return [
        Finding(
            "solved",
            "info",
            None,
            "The model has learnt: its loss is a small part of that of the best constant, and a "
            "short or small gradient is then nothing to worry about",
            (
                Evidence(
                    "loss over that of the best constant", share, "", limit, "above", "solved_share"
                ),
            ),
        )
    ]


SOLVED = Experiment(
    "solved",
    "There is little left to learn",
    "The loss of this batch beside that of the constant prediction that fits it best. Where it is "
    "a small part of that, the model has solved its task by whatever lags that takes: what is said "
    "of memory is then a remark.",
    _look,
    thresholds=("solved_share",),
    kind="memory",
)
