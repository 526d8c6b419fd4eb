"""The gradient of a data-parallel step: parts of each process, summed over all of them.

A part of the whole batch is the sum of the parts of its shares, so each process asks its own flow,
and the answers are reduced: the exponents by their maximum, then the values on it by their sum.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor

from retrograde import _checks
from retrograde.decomposition.bins import Bins, lag_bins
from retrograde.decomposition.by_phase import by_phase
from retrograde.decomposition.clipped import AbstractGradient
from retrograde.decomposition.parts import Parts, together
from retrograde.decomposition.processes import Processes
from retrograde.decomposition.residual import Residual, of_mean
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.truncation import Horizon, Measures
from retrograde.truncation.horizon import ENDS
from retrograde.truncation.truncated import KINDS, Truncation

SAME = 1e-3
"""Weights are the same up to this part of their norm: processes drift apart by rounding alone."""


class AbstractPass(AbstractGradient):
    """What is asked of the pass of each process."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """T, the length of the sequence."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """The largest lag, in steps, whose mean contribution is still 1 % of that at lag 0."""

    @property
    @abstractmethod
    def lags_end(self) -> bool:
        """Whether lags end at steps where the gradient goes on."""

    @abstractmethod
    def in_chunks(self, steps: int, phase: int) -> Mapping[str, Scaled]:
        """The gradient, each parameter as one row, with the state detached every so many steps."""

    @abstractmethod
    def lag_by_lag(self) -> Iterator[Mapping[str, Scaled]]:
        """The part of each lag, one after the other: a row [1, ...] for each parameter."""


Pass = TypeVar("Pass", bound=AbstractPass)


@dataclass(frozen=True, eq=False)
class AllReduced(AbstractGradient, Generic[Pass]):
    """The backward passes of all processes of a data-parallel run, as one; by `Flow.all_reduce`.

    Its gradient is the mean over the processes of the gradient of each: what
    `DistributedDataParallel` leaves in `.grad`. It is that of the whole batch where every process
    has as many samples and the loss is a mean over them.

    Every method is a collective operation: all processes must call it, in the same order.

    Attributes:
        local: the pass of this process.
        processes: the group.
        steps: T, the largest of any process.
        mean: the averaged gradient of each parameter, as one row [1, ...].
        residual: of the averaged parts against the averaged gradients of autograd.
    """

    local: Pass
    processes: Processes
    steps: int
    mean: Mapping[str, Scaled]
    residual: Residual

    def __repr__(self) -> str:
        return f"AllReduced({self.local!r}, over {self.processes.count} processes)"

    @property
    def gradient(self) -> Mapping[str, Scaled]:
        """The averaged gradient of each parameter, as one row [1, ...]."""
        return self.mean

    def names(self, parameter: str | None = None) -> tuple[str, ...]:
        """One parameter, or all of them for None."""
        return self.local.names(parameter)

    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts of the averaged gradient by lag, as `Flow.by_lag`.

        Raises:
            ArgumentError: as there, and if the processes ask different questions.
            RecordingError: if another process fails.
        """
        return self._averaged("by_lag", parameter, bins, self.local.by_lag)

    def by_route(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts of the averaged gradient by route and lag, as `Flow.by_route`.

        Raises:
            ArgumentError: as there, and if the processes ask different questions.
            RecordingError: if another process fails.
        """
        return self._averaged("by_route", parameter, bins, self.local.by_route)

    def by_crossing(
        self, parameter: str | None = None, max_crossings: int = 8, bins: Bins = "octaves"
    ) -> Parts:
        """The parts of the averaged gradient by crossings and lag, as `Flow.by_crossing`.

        Raises:
            ArgumentError: as there, and if the processes ask different questions.
            RecordingError: if another process fails.
        """
        return self._averaged(
            "by_crossing",
            parameter,
            bins,
            lambda name, starts: self.local.by_crossing(name, max_crossings, starts),
        )

    def horizon(self, kind: str = "sliding") -> Horizon:
        """What truncated back-propagation leaves of the averaged gradient, as `Flow.horizon`.

        The part of each lag is summed over the processes before anything is measured. The reach is
        the largest of any process.

        Args:
            kind: "sliding" or "chunks".

        Raises:
            ArgumentError: for another kind, and if the processes ask for different ones.
            RecordingError: if another process fails.
        """

        def answer() -> tuple[str, str]:
            known = _checks.one_of("kind", kind, KINDS)
            return known, known

        kind = self.processes.agree("kind", answer)
        found = Horizon.of_one(kind, self.truncated(kind), self.steps, self.reach)
        ends = any(self.processes.answers(lambda: self.local.lags_end))
        found = replace(found, notes=(ENDS,) if ends else ())
        if kind == "sliding":
            return found
        return replace(found, by_phase=by_phase(self.gradient, self.steps, self._in_chunks))

    def _in_chunks(self, steps: int, phase: int) -> Mapping[str, Scaled]:
        """The averaged gradient with the states of all processes detached every so many steps."""
        found: list[Mapping[str, Scaled]] = []

        def answer() -> None:
            found.append(self.local.in_chunks(steps, phase))

        self.processes.answers(answer)
        return {name: self.processes.mean(found[0][name]) for name in self.mean}

    @cached_property
    def reach(self) -> int:
        """The largest reach of any process."""
        return max(self.processes.answers(lambda: self.local.reach))

    def truncated(self, kind: str) -> Mapping[str, Measures]:
        """What is left of the gradient of each parameter for K = 1 .. T."""
        truncation = Truncation(kind, self.mean)
        truncation.take(self._lag_by_lag())
        return truncation.result()

    def _lag_by_lag(self) -> Iterator[Mapping[str, Scaled]]:
        """The averaged part of each lag; if one process fails, all do so at the end."""
        nothing = {
            name: Scaled(torch.zeros_like(row.values), row.exponent)
            for name, row in self.mean.items()
        }
        own, failed = self.local.lag_by_lag(), None
        for _ in range(self.steps):
            part: Mapping[str, Scaled] = nothing
            try:
                part = part if failed else next(own, nothing)
            except Exception as error:
                failed = error
            yield {name: self.processes.mean(part[name]) for name in nothing}

        def end() -> None:
            if failed is not None:
                raise failed

        self.processes.answers(end)

    def _averaged(
        self,
        question: str,
        parameter: str | None,
        bins: Bins,
        ask: Callable[[str, Sequence[int]], Parts],
    ) -> Parts:
        """The mean over the processes of what each finds."""

        def answer() -> tuple[str, dict[str, Parts]]:
            lags = lag_bins(bins, self.steps)
            starts = [each.start for each in lags]
            found = {n: _with_lags(ask(n, starts), lags) for n in self.names(parameter)}
            labels = ", ".join(f"{name} {parts.axes}" for name, parts in found.items())
            return f"{question} of {labels}", found

        found = self.processes.agree("the question", answer)
        parts = [
            Parts.of(local.axes, name, self.processes.mean(local.scaled))
            for name, local in found.items()
        ]
        return parts[0] if parameter is not None else together(parts)


def _with_lags(parts: Parts, lags: tuple[range, ...]) -> Parts:
    """Parts with these lags on the last axis; 0 at those beyond the sequence of this process."""
    axes, rows = (*parts.axes[:-1], {"lag": lags}), parts.scaled
    missing = len(lags) - parts.shape[-1]
    if missing:
        shape = math.prod(parts.shape[:-1]), parts.shape[-1]
        values, exponent = rows.values.view(*shape, *rows.values.shape[1:]), rows.exponent
        nothing = values.new_zeros(shape[0], missing, *values.shape[2:])
        values = torch.cat((values, nothing), 1).flatten(0, 1)
        rows = Scaled(values, torch.nn.functional.pad(exponent.view(shape), (0, missing)).flatten())
    return Parts.of(axes, parts.parameter, rows)


@dataclass(frozen=True)
class Share:
    """What a process tells the others of its own pass.

    Attributes:
        model: the cell and the shapes of its weights, in words.
        weights: by parameter, a few numbers that tell one set of weights from another.
        steps: T.
        rounding: the coarsest rounding error in it.
        residual: of the pass.
        sizes: by parameter, the norm of the gradient that its parts are compared with.
    """

    model: str
    weights: Mapping[str, tuple[float, ...]]
    steps: int
    rounding: float
    residual: Residual
    sizes: Mapping[str, float]


def all_reduced(
    flow: Pass,
    processes: Processes,
    ask: Callable[[], tuple[Share, Mapping[str, Scaled], Mapping[str, Tensor]]],
) -> AllReduced[Pass]:
    """The passes of all processes, as one.

    Args:
        flow: the pass of this process.
        processes: all of them.
        ask: runs that pass; returns what is to be told of it, the sum of its parts, and the
            gradients that they are compared with.

    Raises:
        ArgumentError: if the models differ, in every process.
        RecordingError: if another process fails.
    """
    sums: list[tuple[Mapping[str, Scaled], Mapping[str, Tensor]]] = []

    def answer() -> Share:
        share, parts, gradients = ask()
        sums.append((parts, gradients))
        return share

    shares = processes.answers(answer)
    _same_models(shares)
    parts, gradients = sums[0]
    whole = {name: processes.mean(row) for name, row in parts.items()}
    averaged = {
        name: processes.mean_of(grad.to(whole[name].values)) for name, grad in gradients.items()
    }
    bounds = {
        name: sum(share.residual.bound * share.sizes[name] for share in shares) / len(shares)
        for name in whole
    }
    rounding = max(share.rounding for share in shares)
    residual = of_mean(whole, averaged, bounds, rounding, [share.residual for share in shares])
    return AllReduced(flow, processes, max(share.steps for share in shares), whole, residual)


def fingerprint(weight: Tensor) -> tuple[float, ...]:
    """The norm of a weight, and its product with a ramp from -1 to 1."""
    values = weight.detach().float().flatten()
    ramp = torch.linspace(-1, 1, len(values), device=values.device)
    return float(torch.linalg.vector_norm(values)), float(values @ ramp)


def _same_models(shares: Sequence[Share]) -> None:
    """Refuse models that differ between processes."""
    first = shares[0]
    for rank, other in enumerate(shares):
        if other.model != first.model:
            raise ArgumentError(
                "all_reduce needs the same layer in all processes; rank 0 has "
                f"{first.model}, rank {rank} has {other.model}"
            )
        for name, (size, ramp) in first.weights.items():
            there, slope = other.weights[name]
            if not max(abs(there - size), abs(slope - ramp)) <= SAME * size:
                raise ArgumentError(
                    f"all_reduce needs the same weights in all processes; {name} of rank {rank} "
                    "differs from that of rank 0. Wrap the model in DistributedDataParallel, which "
                    "hands out those of rank 0"
                )
