"""Other sizes: of what goes in, of what is compared, of the gradient and of the step."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde.clipping import StateNorm
from retrograde.declarations.keras import LAYER, is_a
from retrograde.diagnosis.remedies.remedy import Applied, Target, Unfit, expression, remedy
from retrograde.errors import ArgumentError
from retrograde.nn import GRU, LSTM, RNN
from retrograde.nn import clip_inside as hold


def _standardised(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 in every feature; a constant one becomes 0."""
    every = tuple(range(x.ndim - 1))
    mean, spread = x.mean(every, keepdim=True), x.std(every, keepdim=True)
    return (x - mean) / torch.where(spread > 0, spread, 1)


@remedy(
    "standardise-input",
    "What the layer reads is shifted and scaled to mean 0 and standard deviation 1 in every "
    "feature: large inputs push gates to the flat ends of their activation functions.",
    "The layer's input is not scaled",
    "Scale the input",
    "Standardise every feature",
)
def standardise_input(target: Target) -> Applied:
    def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        if isinstance(x, PackedSequence):
            return (x._replace(data=_standardised(x.data)), *others)
        return (_standardised(x), *others)

    target.layer.register_forward_pre_hook(scale)
    return Applied(
        "input scaled to mean 0 and standard deviation 1",
        f"# what {target.here} reads; better with mean and std of the whole training set\n"
        "spread = x.std((0, 1))\n"
        "x = (x - x.mean((0, 1))) / spread.where(spread > 0, 1)  # a constant feature stays 0",
    )


CLIP = 1.0
"""The norm that everybody clips to."""


@remedy(
    "clip",
    "`torch.nn.utils.clip_grad_norm_` at 1.0 after the backward pass, as is common practice: it "
    "scales the sum over lags and changes no part of it against another.",
)
def clip(target: Target) -> Applied:
    def afterwards(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)

    code = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {CLIP})  # after loss.backward()"
    if is_a(target.model, LAYER):
        code = f"model.optimizer.global_clipnorm = {CLIP}  # before fit"
    return Applied(
        f"clipping by norm at {CLIP:g}, at the end",
        code,
        afterwards,
        note="clipping at the end scales the sum and leaves what happens in time as it is",
        by_training=True,
    )


@remedy(
    "clip-inside",
    "The norm of the state's adjoint is held inside back-propagation, at every step, to the "
    "largest with which the loss itself enters: growth on the way back ends there.",
)
def clip_inside(target: Target) -> Applied:
    if not isinstance(target.layer, nn.RNNBase | LSTM | GRU | RNN):
        raise Unfit
    limit = float(f"{target.entering:.2g}")
    if not 0 < limit < math.inf:
        raise Unfit
    try:
        hold(target.layer, StateNorm(limit))
    except ArgumentError as error:
        raise Unfit from error
    code = (
        f"policy = retrograde.clipping.StateNorm({limit!r})\n"
        f"retrograde.nn.clip_inside({target.here}, policy)"
    )
    return Applied(f"the adjoint of the state held to norm {limit:g} at every step", code)


@remedy(
    "clip-groups",
    "Recurrent layer and output layer are clipped apart, each to the smaller norm of the two: "
    "with one norm over both, the larger gradient decides how much is left of the other.",
)
def clip_groups(target: Target) -> Applied:
    if not target.after:
        raise Unfit
    groups = [[target.path], list(target.after)]

    def afterwards(model: nn.Module) -> None:
        parts = [
            [p for path in group for p in model.get_submodule(path).parameters()]
            for group in groups
        ]
        sizes = [
            float(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]))
            for part in parts
        ]
        for part in parts:
            nn.utils.clip_grad_norm_(part, min(sizes))

    lines = [
        f"torch.nn.utils.clip_grad_norm_({expression(path)}.parameters(), max_norm)"
        for group in groups
        for path in group
    ]
    title = "recurrence and output layer clipped apart, to the smaller norm of the two"
    return Applied(title, "\n".join(lines), afterwards)


@remedy(
    "lower-rate",
    "The optimiser that was given runs at a tenth of its learning rate: steps that are too large "
    "throw away what was learned, and drive states into saturation.",
    "A learning rate that was too large",
    "Lower the learning rate",
)
def lower_rate(target: Target) -> Applied:
    code = 'for group in optimizer.param_groups:\n    group["lr"] *= 0.1'
    title = "a tenth of the learning rate"
    return Applied(title, code, by_training=True, rate=0.1)


@remedy(
    "standardise-target",
    "Predictions are made in units of the target: the output is multiplied by its standard "
    "deviation and its mean is added, so that an output layer that starts near 0 starts near it.",
    "The target is in its own units",
    "Standardise the target",
)
def standardise_target(target: Target) -> Applied:
    if target.targets is None or not target.after:
        raise Unfit
    mean, spread = target.targets
    if not math.isfinite(mean) or not 0 < spread < math.inf:
        raise Unfit

    def scale(module: nn.Module, args: Any, output: Any) -> Any:
        return output * spread + mean

    target.module(target.after[-1]).register_forward_hook(scale)
    return Applied(
        f"targets in units of their spread ({spread:.3g}) around their mean ({mean:.3g})",
        f"mean, spread = {mean:.6g}, {spread:.6g}  # better those of the whole training set\n"
        "loss = criterion(prediction, (y - mean) / spread)\n"
        "prediction = prediction * spread + mean  # wherever it is used",
    )


LOSS_SCALE = 2.0**12
"""A factor for the loss at which gradients of 1e-8 fit into float16."""


@remedy(
    "loss-scale",
    "The loss is multiplied before the backward pass and the gradient divided after it, as "
    "torch.amp.GradScaler does: float16 holds nothing below 6e-8.",
    "The gradient is below what float16 can hold",
    "Scale the loss",
)
def loss_scale(target: Target) -> Applied:
    code = (
        f"scaler = torch.amp.GradScaler(init_scale={LOSS_SCALE:g})  # once\n"
        "scaler.scale(loss).backward()\n"
        "scaler.step(optimizer)\n"
        "scaler.update()"
    )
    title = f"the loss scaled by {LOSS_SCALE:g}"
    return Applied(title, code, by_training=True, loss_scale=LOSS_SCALE)
