"""From a recording, or from a model, a batch and a loss, to a report."""

import copy
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from retrograde.decompose import decompose
from retrograde.decompose.glance import NEAR
from retrograde.errors import ArgumentError, NonFiniteError, RetrogradeError
from retrograde.record import Recording, record
from retrograde.report.layer import Layer
from retrograde.report.report import Report

LossFunction = Callable[[nn.Module, Any], Tensor]


@overload
def diagnose(subject: Recording) -> Report: ...
@overload
def diagnose(subject: nn.Module, batch: Any, loss_fn: LossFunction) -> Report: ...
def diagnose(
    subject: Recording | nn.Module, batch: Any = None, loss_fn: LossFunction | None = None
) -> Report:
    """Report how far back in time the gradient of every recurrent layer reaches.

    Args:
        subject: a recording, or a model. A model is copied first, and the copy is run.
        batch: what `loss_fn` takes beside the model.
        loss_fn: maps (model, batch) to the scalar loss; it must use the model it is given.

    Raises:
        ArgumentError: if the loss is not a scalar tensor with a gradient.
        NonFiniteError: if something is NaN or infinite, with the first place it is seen.
        RetrogradeError: whatever `record` and `decompose` refuse.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(1, 2), torch.ones(5, 1, 1), lambda model, x: model(x)[0].sum()
        ... )
        >>> report.layers[0].name, report.layers[0].steps
        ('GRU', 5)
    """
    if isinstance(subject, Recording):
        return _report(subject)
    if loss_fn is None:
        raise ArgumentError("diagnose takes a recording, or a model, a batch and a loss function")
    recording, loss = _run(copy.deepcopy(subject), batch, loss_fn)
    report = _report(recording)
    if not bool(loss.isfinite()):
        raise NonFiniteError(
            f"the loss is {float(loss)}, although input, weights, states and dL/dh are finite: "
            "look at the loss function"
        )
    return report


def _run(model: nn.Module, batch: Any, loss_fn: LossFunction) -> tuple[Recording, Tensor]:
    with torch.random.fork_rng(), torch.enable_grad(), record(model) as recording:
        loss = loss_fn(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            arrived = (
                f"a tensor of shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
                if isinstance(loss, Tensor)
                else f"{type(loss).__name__}"
            )
            raise ArgumentError(
                "loss_fn(model, batch) must return the scalar loss as a tensor that depends on the "
                f"model's parameters; got {arrived}"
            )
        loss.backward()  # type: ignore[no-untyped-call]
    return recording, loss.detach()


def _report(recording: Recording) -> Report:
    flows, notes, errors = {}, [], []
    for name in recording:
        try:
            flow = decompose(recording[name])
        except RetrogradeError as error:
            errors.append(error)
            continue
        flows[name] = flow
        found = [str(flow.non_finite)] if flow.non_finite else []
        notes += [f"{name}: {note}" for note in (*flow.recorded.notes, *found)]
    if errors and not flows:
        raise errors[0]
    if not flows:
        recording.only()  # says why
    longest = max(flow.steps for flow in flows.values())
    bins = (0, NEAR, max(NEAR + 1, longest // 2))
    layers = tuple(Layer.of(name, flow, bins) for name, flow in flows.items())
    refused = {*recording.refused.values(), *map(str, errors)}
    notes += [f"Not taken apart: {why}" for why in sorted(refused)]
    return Report("How far back in time do the gradients reach?", layers, notes=tuple(notes))
