"""What is the user's stays as it is: model, batch and random numbers, whatever is run on copies."""

import copy
import random
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.errors import ArgumentError


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch, Python and NumPy start at a seed, and go on afterwards as before."""
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng():
            _seed_torch(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)


def _seed_torch(seed: int) -> None:
    """As `torch.manual_seed`, which without an accelerator takes 0.5 ms to note its caller's stack.

    A training of small networks is seeded before every step, which itself takes a few of them.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


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


@dataclass(frozen=True, eq=False)
class Copy:
    """A copy of the user's model.

    Attributes:
        model: the copy.
        kept: what the model keeps of an earlier pass (attention weights, a carried state, a weight
            that was computed): leaves that stand where their graph was cut off, by the place in the
            model.
    """

    model: nn.Module
    kept: Mapping[str, Tensor]

    @property
    def reached(self) -> tuple[str, ...]:
        """The places of those that a backward pass of the copy went into."""
        return tuple(place for place, leaf in self.kept.items() if leaf.grad is not None)


def copied_model(model: nn.Module) -> nn.Module:
    """A copy of the user's model.

    Raises:
        ArgumentError: if it cannot be copied.
    """
    return copy_of(model).model


def copy_of(model: nn.Module) -> Copy:
    """A copy of the user's model, and what it keeps of an earlier pass.

    torch copies no tensor that has a graph behind it. Such a tensor is copied without the graph,
    and as the original it can be changed in place and gets a gradient.

    Raises:
        ArgumentError: if it cannot be copied; the message names the attribute.
    """
    memo: dict[int, Any] = {}  # where deepcopy looks for what is copied already
    kept: dict[str, Tensor] = {}
    places: dict[int, str] = {}
    found = list(within(model))  # as long as they are held, no id is used again
    for place, value in found:
        places[id(value)] = place
        if isinstance(value, Tensor) and not value.is_leaf:
            kept[place] = value.detach().clone().requires_grad_(value.requires_grad)
            with torch.enable_grad():
                memo[id(value)] = kept[place].clone()
    try:
        with warnings.catch_warnings():  # Keras copies by saving, and starts its optimiser anew
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            return Copy(copy.deepcopy(model, memo), kept)
    except Exception as error:
        place = _failed_at(error, places)
        raise ArgumentError(
            f"the model cannot be copied: {place} is in the way ({type(error).__name__}: {error}), "
            "and retrograde only runs copies. Create it where it is needed, or set it to None "
            "for the diagnosis; or record a pass yourself, and diagnose(recording)"
        ) from error


def within(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything that a model holds, each thing once, with its place in words."""
    seen: dict[int, Any] = {id(model): model}
    waiting: list[tuple[str, Any]] = [("model", model)]
    while waiting:
        place, holder = waiting.pop()
        yield place, holder
        with suppress(Exception):  # what cannot be listed may be copied all the same
            for end, value in _held(holder):
                if not isinstance(value, _PLAIN) and id(value) not in seen:
                    seen[id(value)] = value
                    waiting.append((place + end, value))


_PLAIN = (
    str,
    bytes,
    int,
    float,
    complex,
    type,
    type(None),
    ModuleType,
    FunctionType,
    BuiltinFunctionType,
    torch.dtype,
    torch.device,
)
"""What holds nothing, or is not copied."""


def _held(holder: Any) -> Iterator[tuple[str, Any]]:
    """What copy.deepcopy would copy along, each with how it is reached."""
    if isinstance(holder, Mapping):
        for key, value in holder.items():
            yield f"[{key!r}]", value
            yield f" has a key {type(key).__name__}", key
    elif isinstance(holder, list | tuple | deque):
        for number, value in enumerate(holder):
            yield f"[{number}]", value
    elif isinstance(holder, set | frozenset):
        for value in holder:
            yield f" has an element {type(value).__name__}", value
    elif isinstance(holder, partial):
        yield from ((".func", holder.func), (".args", holder.args), (".keywords", holder.keywords))
    elif isinstance(holder, MethodType):
        yield ".__self__", holder.__self__
    elif isinstance(holder, Tensor) and holder.is_leaf:
        yield ".grad", holder.grad
    own = dict(getattr(holder, "__dict__", None) or {})
    if isinstance(holder, nn.Module):
        for group in ("_parameters", "_buffers", "_modules"):
            own |= own.pop(group, None) or {}
    for kind in type(holder).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with suppress(AttributeError):
                own.setdefault(name, getattr(holder, name))
    for name, value in own.items():
        yield f".{name}", value


def _failed_at(error: Exception, places: Mapping[int, str]) -> str:
    """The innermost thing of known place that was being copied when it failed."""
    place, trace = "something in it", error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code is copy.deepcopy.__code__:
            place = places.get(id(frame.f_locals.get("x")), place)
    return place


def copied(batch: Any) -> Any:
    """The batch for one pass, which may change it; one that cannot be copied is used as it is."""
    try:
        return copy.deepcopy(batch)
    except Exception:
        return batch
