"""Where the batches of a training come from: one batch, a loader, an iterator, or a function."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as tree
from torch.utils.data import DataLoader

from retrograde import _checks
from retrograde.diagnosis.copies import copied, copied_model, seeded, untouched
from retrograde.errors import ArgumentError, RetrogradeError

ROUND = 1024
"""After this many steps the batches that were drawn come again in the same order."""

HELD = 4
"""One batch in this many is held out."""

MOST = 32
"""Maximum number of batches drawn from a loader or an iterator; training goes round them."""


@dataclass(frozen=True, eq=False)
class Batches:
    """What a model is run and trained on.

    Attributes:
        first: the batch of the recorded pass.
        drawn: the batches to train on, where they are no function's.
        function: maps a seed to a batch.
        samples: the number of samples in a single batch that can be drawn again; None for one that
            is used as it is.
        held: batches that are never trained on, on which the loss is judged.
    """

    first: Any
    drawn: tuple[Any, ...] = ()
    function: Callable[[int], Any] | None = None
    samples: int | None = None
    held: tuple[Any, ...] = ()

    @property
    def single(self) -> bool:
        """Whether there is one batch, for training and for judging alike."""
        return self.function is None and len(self.drawn) == 1 and not self.held

    @property
    def words(self) -> str:
        """What is trained on and judged on, in words."""
        if self.function is not None:
            return "a new batch at every step, judged before it is trained on"
        if len(self.drawn) > 1:
            words = f"{len(self.drawn)} batches, drawn with replacement"
        else:
            words = "the same batch at every step"
            words += ", its samples drawn with replacement for each seed" if self.samples else ""
        if self.held:
            others = "another" if len(self.held) == 1 else f"{len(self.held)} others"
            words += f", judged on {others}"
        return words

    def held_out(self, seed: int) -> "Batches":
        """The same with some of the batches kept from training, where there are several."""
        if self.function is not None or len(self.drawn) < 2:
            return self
        generator = torch.Generator().manual_seed(seed % 2**63)
        order = torch.randperm(len(self.drawn), generator=generator).tolist()
        count = max(1, len(order) // HELD)
        held, rest = sorted(order[:count]), sorted(order[count:])
        return replace(
            self,
            drawn=tuple(self.drawn[number] for number in rest),
            held=tuple(self.drawn[number] for number in held),
        )

    def further(self, seed: int, most: int, seconds: float) -> Iterator[Any]:
        """Batches other than the first, no more after this time; `most` counts the first."""
        until = time.monotonic() + seconds
        if self.function is not None:
            given = (_called(self.function, seed + number) for number in range(1, most))
        else:
            given = (batch for batch in self.drawn if batch is not self.first)
        for batch in islice(given, most - 1):
            if time.monotonic() > until:
                return
            yield batch

    def by_step(self, seed: int, as_it_is: bool = False) -> Callable[[int], Any]:
        """The batch of each step of a training, the same ones for the same seed.

        What was drawn is drawn from again, with replacement, so that the spread over seeds is also
        that of the data (the bootstrap).

        Args:
            seed: of what is drawn.
            as_it_is: use a single batch as it is, not its samples drawn again.
        """
        if self.function is not None:
            first = seed % 2**15 * 2**16
            return lambda step: _called(self.function, first + step + 1)
        generator = torch.Generator().manual_seed(seed)
        if len(self.drawn) > 1:
            numbers = torch.randint(len(self.drawn), (ROUND,), generator=generator).tolist()
            return lambda step: self.drawn[numbers[step % ROUND]]
        batch = self.drawn[0]
        if self.samples is not None and not as_it_is:
            batch = taken(batch, torch.randint(self.samples, (self.samples,), generator=generator))
        return lambda step: batch


def taken(batch: Any, samples: Tensor) -> Any:
    """The samples of these numbers out of a batch, as many as it has.

    Args:
        batch: tensors, perhaps in nested tuples, lists and dicts. The axis of the samples is the
            one of that size; a tensor without such an axis stays.
        samples: their numbers, with repetitions or without.

    Raises:
        ArgumentError: if a tensor has two such axes, none has one, or there is something else whose
            samples cannot be told.
    """
    found = 0

    def take(leaf: Any) -> Any:
        nonlocal found
        if isinstance(leaf, str | int | float | bool | type(None)):
            return leaf
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            raise ArgumentError(f"what are the samples of {_checks.shown(leaf)}?")
        axes = [axis for axis, size in enumerate(leaf.shape) if size == len(samples)]
        if len(axes) > 1:
            raise ArgumentError(f"which axis of {_checks.shown(leaf)} is that of its samples?")
        found += len(axes)
        return leaf.index_select(axes[0], samples.to(leaf.device)) if axes else leaf

    result = tree.tree_map(take, batch, is_leaf=lambda part: isinstance(part, PackedSequence))
    if not found:
        raise ArgumentError(f"no tensor of the batch has an axis of size {len(samples)}")
    return result


def is_source(value: object) -> bool:
    """Whether something gives batches and is none: a DataLoader, an iterator, a function of a seed.

    A list or tuple is a batch, as is everything else.
    """
    if isinstance(value, DataLoader | Iterator):
        return True
    if not isinstance(value, FunctionType | MethodType | partial):
        return False
    try:
        _checks.function("batch", value, "of a seed", takes=1)
    except ArgumentError:
        return False
    return True


def calls_next(model: nn.Module, batch: Any, loss_fn: Callable[..., Any], seed: int) -> bool:
    """Whether a loss takes the next batch of an iterator itself, so that it must be given one.

    It is tried on a copy with a batch: `next` of what is no iterator has an error of its own.
    """
    with untouched(model), seeded(seed), torch.no_grad():
        try:
            loss_fn(copied_model(model), copied(batch))
        except TypeError as error:
            return "is not an iterator" in str(error)
        except Exception:  # said where the pass is run
            return False
    return False


def draw(source: object, seed: int, most: int = MOST, seconds: float = float("inf")) -> Batches:
    """Take batches from a source. Random numbers outside, and those of a loader, stay as found.

    Args:
        source: an iterable of batches or a function of a seed.
        seed: of what is random in it.
        most: the maximum number of batches taken from an iterable; an iterator gives them up.
        seconds: no further batch is waited for after this time.

    Raises:
        ArgumentError: if it is no source, fails, or has no batch.
    """
    if callable(source) and not isinstance(source, Iterable):
        function = _checks.function("batches", source, "of a seed", takes=1)
        return Batches(_called(function, seed), function=function)
    if not isinstance(source, Iterable) or isinstance(source, str | bytes):
        raise ArgumentError(
            "batches must be a DataLoader, an iterable of batches or a function of a seed; got "
            f"{_checks.shown(source)}"
        )
    drawn: list[Any] = []
    until = time.monotonic() + seconds
    with seeded(seed), _generators_as_found(source), _failing("the iterable given as batches"):
        for batch in source:
            drawn.append(batch)
            if len(drawn) >= most or time.monotonic() > until:
                break
    if not drawn:
        raise ArgumentError(
            "there is no batch: the iterable given as batches is empty, or an iterator that was "
            "used up before; give a fresh one, or the DataLoader itself"
        )
    return Batches(drawn[0], tuple(drawn))


def _called(function: Callable[[int], Any] | None, seed: int) -> Any:
    assert function is not None
    with seeded(seed), _failing(f"the function of a seed given as batches, called with {seed},"):
        return function(seed)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Errors of the user's own code, said to come from there."""
    try:
        yield
    except RetrogradeError:
        raise
    except Exception as error:
        raise ArgumentError(f"{what} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _generators_as_found(source: object) -> Iterator[None]:
    """The random generators that a DataLoader and its sampler hold go on as before."""
    holders = (source, getattr(source, "sampler", None))
    found = {id(g): g for g in (getattr(each, "generator", None) for each in holders)}
    states = [(g, g.get_state()) for g in found.values() if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
