"""Model and batch on another device, whatever the batch is made of."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as tree

from retrograde import _checks
from retrograde.cli.subject import Subject
from retrograde.diagnosis.batches import is_source
from retrograde.errors import InputError


def find(name: str) -> torch.device:
    """The device of this name, if it is there.

    Raises:
        InputError: with what torch says against it.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("tensors on it hold no numbers")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise InputError(
            f"cannot use the device {_checks.shown(name)}: {why}; available here: "
            f"{_checks.listed(_available())}"
        ) from None
    return device


def move(subject: Subject, device: torch.device) -> Subject:
    """Model, batch and a loss that is a module, moved to a device.

    What a batch holds is found by torch's own tree utilities, in nested tuples, lists, dicts and
    namedtuples; whatever has a `to` is moved by it (tensors, packed sequences, modules), and the
    rest stays as it is.

    Raises:
        InputError: if something cannot be moved.
    """
    try:
        model = subject.model.to(device)
        batch = _moved(subject.batch, device)
        if isinstance(subject.loss_fn, torch.nn.Module):
            return replace(subject, model=model, batch=batch, loss_fn=subject.loss_fn.to(device))
        return replace(subject, model=model, batch=batch)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError(f"cannot move model and batch to {device}: {error}") from None


def _moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device; what gives batches gives them there."""
    if is_source(batch):
        if isinstance(batch, Iterable):
            return (_moved(each, device) for each in batch)
        return lambda seed: _moved(batch(seed), device)
    return tree.tree_map(
        lambda leaf: leaf.to(device) if _can_move(leaf) else leaf, batch, is_leaf=_can_move
    )


def _can_move(part: Any) -> bool:
    return callable(getattr(part, "to", None)) and not isinstance(part, type)


def _available() -> list[str]:
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
