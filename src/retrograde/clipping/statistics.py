"""What clipping did over many steps: kept on the device, read when somebody asks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.clipping.gradients import Effect
from retrograde.clipping.groups import ALL

BLOCK = 256
"""How many steps are joined into one tensor, so that a long run keeps few of them."""

PERCENTILES = (5, 25, 50, 75, 95, 100)

BEFORE, AFTER, COSINE, BIT = range(4)


class History:
    """One row of four numbers a group for each of the last steps; never read from the device here.

    Args:
        keep: how many steps are kept; None for all. A step takes 16 bytes a group.
    """

    def __init__(self, keep: int | None = None):
        self._keep = keep
        self._blocks: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, effect: Effect) -> None:
        """Note what was done in a step."""
        row = (effect.before, effect.after, effect.cosine, effect.clipped.to(effect.before.dtype))
        self._rows.append(torch.stack(row))
        if len(self._rows) == BLOCK:
            self._blocks.append(torch.stack(self._rows))
            self._rows = []
            spare = len(self._blocks) * BLOCK - (self._keep or 0)
            if self._keep is not None and spare >= BLOCK:
                del self._blocks[: spare // BLOCK]

    def rows(self) -> Tensor | None:
        """All that is kept, [steps, 4, groups]; None before the first step."""
        parts = [*self._blocks, *([torch.stack(self._rows)] if self._rows else [])]
        if not parts:
            return None
        rows = torch.cat(parts)
        return rows if self._keep is None else rows[-self._keep :]

    def load(self, rows: Tensor | None) -> None:
        """Put back what `rows` gave."""
        self._blocks, self._rows = [], []
        if rows is not None:
            whole = len(rows) // BLOCK * BLOCK
            self._blocks = list(torch.split(rows[:whole], BLOCK)) if whole else []
            self._rows = list(rows[whole:].unbind())


@dataclass(frozen=True)
class GroupStatistics:
    """What clipping did to one group.

    Attributes:
        clip_rate: share of the steps in which its gradient was clipped.
        norm: percentiles of its L2 norm before clipping, by percent; 100 is the largest.
        cosine: between the clipped and the true gradient, mean over the steps.
        least_cosine: the smallest of them.
        kept: its L2 norm after clipping in that before, mean over the steps in which it was
            clipped; 1 if it never was.
        share: of the group in the whole gradient before clipping, <part, part> / <whole, whole>,
            mean over the steps; the shares of all groups sum to 1. NaN if there was no gradient.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> clipper = retrograde.clipping.Clipper(model, retrograde.clipping.GlobalNorm(1.0))
        >>> model(torch.tensor([[4.0]])).sum().backward()
        >>> norm = clipper()
        >>> group = clipper.statistics().groups["all"]
        >>> group.clip_rate, group.norm[100], round(group.kept, 3)
        (1.0, 4.0, 0.25)
    """

    clip_rate: float
    norm: Mapping[int, float]
    cosine: float
    least_cosine: float
    kept: float
    share: float

    @property
    def bit(self) -> float:
        """`clip_rate` under its earlier name, until 0.2."""
        return self.clip_rate


@dataclass(frozen=True)
class Statistics:
    """What clipping did over the steps that were kept; `print` shows it as a table.

    Attributes:
        steps: how many there were.
        skipped: how many more had a gradient that was not finite, and were given up.
        groups: by group; "all" is the whole.

    Example:
        >>> import math, torch, retrograde
        >>> lstm = torch.nn.LSTM(1, 2)
        >>> clipper = retrograde.clipping.Clipper(lstm, retrograde.clipping.GlobalNorm(math.inf))
        >>> lstm(torch.ones(5, 3, 1))[0].sum().backward()
        >>> norm = clipper()
        >>> statistics = clipper.statistics()
        >>> statistics.steps, sorted(statistics.groups)
        (1, ['all', 'input', 'recurrent'])
    """

    steps: int
    skipped: int
    groups: Mapping[str, GroupStatistics]

    def __str__(self) -> str:
        lines = [f"{self.steps} steps, {self.skipped} more skipped as not finite"]
        wide = max([5, *map(len, self.groups)])
        lines.append(
            f"{'group':<{wide}}  {'clipped':>7}  {'norm 50 %':>9}  {'95 %':>9}  {'largest':>9}"
            f"  {'kept':>6}  {'cosine':>6}  {'least':>6}  {'share':>6}"
        )
        for name, group in self.groups.items():
            lines.append(
                f"{name:<{wide}}  {group.clip_rate:>7.1%}  {group.norm[50]:>9.3g}"
                f"  {group.norm[95]:>9.3g}  {group.norm[100]:>9.3g}  {group.kept:>6.1%}"
                f"  {group.cosine:>6.3f}  {group.least_cosine:>6.3f}  {group.share:>6.1%}"
            )
        return "\n".join(lines)


def summarise(rows: Tensor, skipped: int, groups: Sequence[str]) -> Statistics:
    """The statistics of some rows of a history, at least one."""
    before, after, cosine, clipped_at = with_whole(rows).unbind(1)
    share = (before / before[:, -1:]).square()
    percentiles = [percent / 100 for percent in PERCENTILES]
    norms = torch.quantile(before, torch.tensor(percentiles, dtype=before.dtype), dim=0)
    found = {}
    for i, group in enumerate([*groups, ALL]):
        clipped = (clipped_at[:, i] > 0) & (before[:, i] > 0)
        kept = (after[clipped, i] / before[clipped, i]).mean() if clipped.any() else 1.0
        found[group] = GroupStatistics(
            float(clipped_at[:, i].mean()),
            dict(zip(PERCENTILES, norms[:, i].tolist(), strict=True)),
            float(cosine[:, i].mean()),
            float(cosine[:, i].min()),
            float(kept),
            float(share[:, i].nanmean()),
        )
    return Statistics(len(rows), skipped, found)


def with_whole(rows: Tensor) -> Tensor:
    """Rows in float64 on the CPU, with one more group at the end: the whole.

    <clipped, true> of the whole is the sum of those of the groups, each |clipped| |true| cosine.
    """
    rows = rows.to(device="cpu").double()
    norms = torch.linalg.vector_norm(rows[:, : AFTER + 1], dim=2)
    before, after = norms.unbind(1)
    there = (before > 0) & (after > 0)
    scaled = rows[:, BEFORE] / before[:, None] * (rows[:, AFTER] / after[:, None])
    cosine = torch.where(there, (scaled * rows[:, COSINE]).sum(1), 1.0)
    whole = torch.stack([before, after, cosine, rows[:, BIT].amax(1)], 1)
    return torch.cat([rows, whole[:, :, None]], 2)
