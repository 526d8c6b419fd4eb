"""What a case of the trial set is, and which half of the set it belongs to.

The set is split before any threshold is set by it. What stood in this repository before the split
had been looked at while the diagnosis was written, so it can only be developed on; new cases are
divided by a hash of their name, within each kind.
"""

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retrograde.diagnosis.finding import Severity

LossFunction = Callable[[nn.Module, Any], Tensor]
Made = tuple[nn.Module, Any, LossFunction]
"""A model, a batch, and the loss of the two."""

Half = Literal["development", "judgement"]
HALVES: tuple[Half, ...] = ("development", "judgement")
HEALTHY = "healthy"
"""What a case is called in which nothing is wrong."""

REFUSED = "refused"
"""What stands in the place of a rule where it is right to refuse the model with a reason."""

REMARKS = ("solved", "window", "misleading-radius")
"""Rules that say something of a model in which nothing is wrong."""


@dataclass(frozen=True)
class Training:
    """What a model has learned before it is looked at, with Adam.

    Attributes:
        steps: of the optimiser.
        rate: the learning rate.
        batches: gives the batch of each step; None draws them as the case draws its own.
        by_heart: train on the batch of the case alone.
        afterwards: what is done to the model when it is trained.
    """

    steps: int
    rate: float = 5e-3
    batches: Callable[[], Any] | None = None
    by_heart: bool = False
    afterwards: Callable[[Any], object] | None = None

    def __call__(self, model: nn.Module, loss_fn: LossFunction, batches: Callable[[], Any]) -> None:
        """Train a model."""
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of some troubles itself
            for _ in range(self.steps):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_fn(model, batches())
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.afterwards is not None:
            with torch.no_grad():
                self.afterwards(model)


@dataclass(frozen=True)
class Case:
    """A model with its batch and loss, and what the diagnosis must say of it.

    Attributes:
        name: what was done to it.
        rules: the rules any of which names the trouble; none for a healthy model.
        make: gives model, batch and loss function, from torch's random numbers.
        also: rules that must be told beside it, of a model with two troubles.
        strength: how strong the trouble is.
        least: the severity that the finding has at least.
        training: what the model has learned before; None for fresh weights.
        options: further arguments of `retrograde.diagnose`.
        seen: whether it was known before the set was split, or was added later.
    """

    name: str
    rules: tuple[str, ...]
    make: Callable[[], Made]
    also: tuple[str, ...] = ()
    strength: Literal["mild", "strong"] = "strong"
    least: Severity = "warning"
    training: Training | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seen: bool = False

    @property
    def kind(self) -> str:
        """The rule that is meant, the two that are, or that nothing is wrong."""
        if self.also:
            return "two at once"
        return self.rules[0] if self.rules else HEALTHY

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, so that a warning would be a false one."""
        return all(rule in REMARKS for rule in self.rules)

    def build(self, seed: int = 0) -> Made:
        """Model, batch and loss function; torch's own random numbers are left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, batch, loss_fn = self.make()
            if self.training is not None:
                alone = (lambda: batch) if self.training.by_heart else (lambda: self.make()[1])
                self.training(model, loss_fn, self.training.batches or alone)
        return model, batch, loss_fn


def halves(cases: Sequence[Case]) -> dict[str, Half]:
    """The half of each case, by its name.

    Cases that were seen before are developed on. Those of a kind that were not are put in the order
    of the SHA-256 hash of their names, and every third is developed on; the first one too, where
    none of the kind was seen before.
    """
    split: dict[str, Half] = {}
    kinds: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.seen:
            split[case.name] = "development"
        kinds[case.kind].append(case)
    for members in kinds.values():
        known = any(case.seen for case in members)
        new = sorted((case.name for case in members if not case.seen), key=_hash)
        for place, name in enumerate(new):
            developed = place % 3 == 2 or (place == 0 and not known)
            split[name] = "development" if developed else "judgement"
    return split


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
