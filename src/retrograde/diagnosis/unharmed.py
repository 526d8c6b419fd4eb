"""What is the user's stays as it is: model, batch and random numbers, whatever is run on copies."""

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from retrograde.errors import ArgumentError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, Python and NumPy start at a seed, and go on afterwards as before."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The user's own model stays as it is, even if the loss function runs it in spite of all.

    Raises:
        ArgumentError: if a gradient came to it, and not to the copy alone.
    """
    parameters = [(parameter, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    used = False
    try:
        for parameter, _ in parameters:
            parameter.grad = None
        yield
    finally:
        used = any(parameter.grad is not None for parameter, _ in parameters)
        for parameter, grad in parameters:
            parameter.grad = grad
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                if buffer.shape == value.shape and not torch.equal(buffer, value):
                    buffer.copy_(value)
        if used:
            raise ArgumentError(
                "loss_fn(model, batch) must use the model that it is given, a copy; gradients came "
                "to the original"
            )


def copied_model(model: nn.Module) -> nn.Module:
    """A copy of the user's model.

    Raises:
        ArgumentError: if it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ArgumentError(
            f"the model cannot be copied ({type(error).__name__}: {error}), and retrograde runs "
            "nothing but copies. Tensors of an earlier pass that it keeps (a carried state) must "
            "be detached; or record a pass yourself, and diagnose(recording)"
        ) from error


def copied(batch: Any) -> Any:
    """The batch for one pass, which may change it; one that cannot be copied is used as it is."""
    try:
        return copy.deepcopy(batch)
    except Exception:
        return batch
