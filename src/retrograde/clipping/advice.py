"""A threshold from recorded norms, with what it would have meant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

import torch
from torch import Tensor

from retrograde import _checks
from retrograde.clipping.groups import ALL
from retrograde.clipping.policies import GlobalNorm
from retrograde.errors import ArgumentError

Norms = Sequence[float] | Tensor

LEAST = 100
"""Fewer norms than this say little about a share of 3 %."""


@dataclass(frozen=True)
class GroupAdvice:
    """What the norms of one group say.

    Attributes:
        threshold: the one for this group alone, found in the same way.
        clip_rate: share of the steps that the threshold for all would have clipped, applied to
            this group alone.
        median, mean, largest: of its norms.

    Example:
        >>> import retrograde
        >>> found = retrograde.clipping.suggest({"all": [2.0] * 50, "recurrent": [1.0] * 50})
        >>> found.groups["recurrent"].threshold, found.groups["recurrent"].clip_rate
        (1.0, 0.0)
    """

    threshold: float
    clip_rate: float
    median: float
    mean: float
    largest: float

    @property
    def bit(self) -> float:
        """`clip_rate` under its earlier name, until 0.2."""
        return self.clip_rate


@dataclass(frozen=True)
class Suggestion:
    """A threshold with its consequences; `print` shows them.

    Attributes:
        threshold: for the norm of all gradients together, or of the only group there is.
        clip_rate: share of the steps that it would have clipped.
        groups: by group, as they were given.
        steps: the number of norms that it is based on.
        unused: the number of further norms, which were not finite.

    Example:
        >>> import retrograde
        >>> found = retrograde.clipping.suggest([1.0] * 97 + [8.0, 9.0, 30.0])
        >>> found.threshold, found.clip_rate, found.policy
        (1.0, 0.03, GlobalNorm(max_norm=1.0))
    """

    threshold: float
    clip_rate: float
    groups: Mapping[str, GroupAdvice]
    steps: int
    unused: int

    @property
    def policy(self) -> GlobalNorm:
        """The policy with this threshold."""
        return GlobalNorm(self.threshold)

    @property
    def bit(self) -> float:
        """`clip_rate` under its earlier name, until 0.2."""
        return self.clip_rate

    def __str__(self) -> str:
        whole = self.groups[_whole(self.groups)]
        lines = [
            f"Clip the norm at {self.threshold:g}: it would have clipped {_often(self.clip_rate)} "
            f"({self.steps} steps{f', {self.unused} more not finite' if self.unused else ''}).",
            f"The largest norm was {whole.largest:.3g}, {whole.largest / whole.median:.3g} times "
            f"the median; the threshold is {self.threshold / whole.mean:.2g} times the mean.",
        ]
        for name, group in self.groups.items():
            if group is not whole:
                lines.append(
                    f"Applied to the {name} group alone it would have clipped "
                    f"{_often(group.clip_rate)}; {group.threshold:g} would be the threshold there "
                    f"(median {group.median:.3g}, largest {group.largest:.3g})."
                )
        if self.steps < LEAST:
            lines.append(f"These are few norms; use {LEAST} or more.")
        return "\n".join(lines)


def suggest(history: Mapping[str, Norms] | Norms, clip_rate: float = 0.03) -> Suggestion:
    """Propose a threshold for `GlobalNorm` from norms that were recorded without clipping.

    It is the norm that is passed in at most a given share of the steps, rounded up to three digits:
    above what training does all the time, and below its spikes.

    Args:
        history: L2 norms before clipping, one a step: by group, as `Clipper.norms()` gives them,
            with "all" for the whole; or of one group alone.
        clip_rate: the largest share of the steps that it may clip.

    Raises:
        ArgumentError: for a share outside (0, 1), groups of different lengths, several groups
            without "all", negative norms, and no norm that is finite and above zero.

    Example:
        >>> print(suggest([1.0] * 97 + [8.0, 9.0, 30.0]))
        Clip the norm at 1: it would have clipped 3 % of the steps (100 steps).
        The largest norm was 30, 30 times the median; the threshold is 0.69 times the mean.
    """
    clip_rate = _checks.number(
        "clip_rate", clip_rate, lambda share: 0 < share < 1, "a share between 0 and 1"
    )
    norms = {
        name: _numbers(name, values)
        for name, values in (history if isinstance(history, Mapping) else {ALL: history}).items()
    }
    if not norms:
        raise ArgumentError("history holds no norms: give those of clipper.norms()")
    lengths = {name: list(values.shape) for name, values in norms.items()}
    if (
        any(len(shape) != 1 for shape in lengths.values())
        or len(set(map(str, lengths.values()))) != 1
    ):
        raise ArgumentError(
            f"each group's norms must be one number per step, as many in every group; got {lengths}"
        )
    if len(norms) > 1 and ALL not in norms:
        raise ArgumentError(
            f"the norms of the whole gradient are missing: name them {ALL!r}; got "
            + ", ".join(norms)
        )
    table = torch.stack(list(norms.values()))
    if (table < 0).any():
        raise ArgumentError("norms must not be negative; some of these are")
    finite = table.isfinite().all(0)
    table = table[:, finite]
    whole = table[list(norms).index(_whole(norms))]
    if not (whole > 0).any():
        raise ArgumentError("history must hold a finite norm above zero; it holds none")
    threshold = _passed(whole, clip_rate)
    groups = {
        name: GroupAdvice(
            _passed(values, clip_rate),
            float((values > threshold).double().mean()),
            float(values.median()),
            float(values.mean()),
            float(values.max()),
        )
        for name, values in zip(norms, table, strict=True)
    }
    share = float((whole > threshold).double().mean())
    return Suggestion(threshold, share, groups, len(whole), int((~finite).sum()))


def _numbers(group: str, values: Norms) -> Tensor:
    """The norms of a group as a tensor of float64."""
    try:
        found = torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = torch.empty(0, dtype=torch.bool)
    if found.is_complex() or found.dtype == torch.bool:
        raise ArgumentError(
            f"the norms of {group!r} must be one number per step; got {_checks.shown(values)}"
        )
    return torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()


def _whole(groups: Mapping[str, object]) -> str:
    return ALL if ALL in groups else next(iter(groups))


def _passed(norms: Tensor, share: float) -> float:
    """The norm that is passed in at most this share of the steps, rounded up to three digits."""
    value = float(norms.sort(descending=True).values[int(share * len(norms) + 1e-9)])
    return float(Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(value)))


def _often(share: float) -> str:
    if share == 0:
        return "no step"
    percent = 100 * share
    return f"{percent:.0f} % of the steps" if percent >= 1 else f"{percent:.1g} % of the steps"
