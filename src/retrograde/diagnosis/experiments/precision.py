"""Does the data type lose the gradient? The same pass in float32 tells."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.diagnosis.copies import copied, copied_model, seeded
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable
from retrograde.recording import recurrent_layers

LOW = (torch.float16, torch.bfloat16)


def _look(case: Case) -> list[Finding] | NotApplicable:
    low = {p.dtype for p in case.model.parameters() if p.dtype in LOW} | case.sight.autocast
    if not low:
        return NotApplicable("nothing runs in float16 or bfloat16")
    name = str(next(iter(low))).removeprefix("torch.")
    try:
        loss, there = _gradients(case, wide=False)
        wide_loss, wide = _gradients(case, wide=True)
    except Exception as error:
        return NotApplicable(f"the pass does not run in float32: {type(error).__name__}: {error}")
    findings = []
    if math.isfinite(wide_loss) and not math.isfinite(loss):
        findings.append(_lost_loss(name, wide_loss))
    for layer, own in there.items():
        true = wide[layer]
        if not bool(true.isfinite().all()):
            continue
        overflowed = int((~own.isfinite()).sum())
        known = true != 0
        flushed = float((known & (own == 0)).sum() / known.sum().clamp(min=1))
        if overflowed or flushed > case.limits["flushed_share"]:
            findings.append(_lost(layer, name, overflowed, flushed, case.limits["flushed_share"]))
    return findings


def _gradients(case: Case, wide: bool) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradients of each recurrent layer, flat; in float32 throughout if `wide`."""
    model, batch = copied_model(case.model), copied(case.batch)
    if wide:
        model, batch = model.float(), _wide(batch)
    for parameter in model.parameters():
        parameter.grad = None
    with seeded(case.seed), torch.enable_grad(), _without_autocast(wide):
        loss = case.loss_fn(model, batch)
        torch.autograd.backward(loss)
    return float(loss.detach()), {
        name: torch.cat(
            [p.grad.flatten().float() for p in layer.parameters() if p.grad is not None]
        )
        for name, layer in recurrent_layers(model).items()
        if isinstance(layer, nn.Module) and any(p.grad is not None for p in layer.parameters())
    }


def _wide(batch: Any) -> Any:
    """The batch with its low-precision tensors in float32."""
    if isinstance(batch, Tensor):
        return batch.float() if batch.dtype in LOW else batch
    if isinstance(batch, Mapping):
        other = copy.copy(batch)
        for key, value in batch.items():
            other[key] = _wide(value)  # type: ignore[index]
        return other
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
        return type(batch)(map(_wide, batch))
    return batch


@contextmanager
def _without_autocast(off: bool) -> Iterator[None]:
    """Autocast regions have no effect."""
    enter = torch.autocast.__enter__

    def without(self: Any) -> Any:
        self._enabled = False
        return enter(self)  # type: ignore[no-untyped-call]

    if not off:
        yield
        return
    torch.autocast.__enter__ = without  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def _lost_loss(dtype: str, loss: float) -> Finding:
    return Finding(
        "precision",
        "error",
        None,
        f"{dtype} overflows in the loss: it is not finite, and in float32 it is {loss:.3g}. It is "
        "the data type, not the model",
        (Evidence("loss in float32", loss, ""),),
        ("A sum over samples and steps, or a large factor, leaves the range of the data type",),
        (
            "Compute the loss in float32: loss_fn(prediction.float(), target.float())",
            "Use a mean in place of a sum, or bfloat16: it has the range of float32",
        ),
    )


def _lost(layer: str, dtype: str, overflowed: int, flushed: float, limit: float) -> Finding:
    return Finding(
        "precision",
        "error",
        layer,
        f"{dtype} loses the gradient of {layer!r}: "
        + ("entries overflow" if overflowed else "entries are flushed to 0")
        + " that the same pass keeps in float32: it is the data type, not the model",
        (
            Evidence(
                "entries flushed to 0", flushed, "of the gradient", limit, "below", "flushed_share"
            ),
            Evidence("entries that overflow", float(overflowed), "entries", 0.0, "below"),
        ),
        (
            "The scale of the loss is too large for float16"
            if overflowed
            else "The gradient is below what float16 can hold (6e-8), and the loss is not scaled",
        ),
        (
            "Scale the loss (torch.amp.GradScaler), or use bfloat16: it has the range of float32",
            "Keep the recurrence in float32: with torch.autocast(device_type, enabled=False)",
        ),
    )


PRECISION = Experiment(
    "precision",
    "The data type loses the gradient",
    "Where anything runs in float16 or bfloat16 the same pass is run in float32, and the gradients "
    "are compared entry by entry: those that are 0 or not finite in the one and not in the other "
    "are lost to the data type.",
    _look,
    thresholds=("flushed_share",),
    replaces=(
        "unreached",
        "no-gradient",
        "non-finite-loss",
        "void",
        "rounding-decides",
        "non-finite",
        "forget-gate-too-short",
        "vanishing",
        "near-lags-dominate",
    ),
    kind="soundness",
    remedies=("loss-scale",),
)
