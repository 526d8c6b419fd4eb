"""A place between two steps where a state was not simply handed on, and the way back through it.

What enters a step may be the state before with some samples reset, masked, scaled or in another
order: each entry reads entries of the state before, times factors. Adjoints pass back along the
same reads, so a border of this kind ends no lag.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Read:
    """What entries read of the state before: `factor * before[source]`.

    Attributes:
        factor: 0 where an entry reads nothing, shape [B, S].
        source: the entry that is read, sample * S + unit, shape [B, S]; None if each reads the one
            in its own place.
    """

    factor: Float[Tensor, "B S"]
    source: Int[Tensor, "B S"] | None = None


@dataclass(frozen=True, eq=False)
class Border:
    """What enters a step, and how it follows from the state before.

    Attributes:
        state: the state that enters, [B, S], where it is not the one before.
        reads: what its entries read of the state before, added up; nothing where they were
            detached, reset, or computed in a way that is not followed.
    """

    state: Float[Tensor, "B S"]
    reads: tuple[Read, ...] = field(default=())

    @staticmethod
    def detached(state: Float[Tensor, "B S"], carried: Bool[Tensor, "B S"]) -> "Border":
        """A border that hands on some entries as they are; the others start afresh."""
        return Border(state, (Read(carried.to(state.dtype)),))

    @cached_property
    def carried(self) -> Bool[Tensor, "B S"]:
        """The entries that were handed on as they are."""
        if len(self.reads) != 1:
            return torch.zeros_like(self.state, dtype=torch.bool)
        read = self.reads[0]
        if read.source is None:
            return read.factor == 1
        own = torch.arange(self.state.numel(), device=self.state.device)
        return (read.factor == 1) & (read.source == own.view_as(self.state))

    def entering(self, before: Float[Tensor, "B S"]) -> Float[Tensor, "B S"]:
        """The state that enters the step."""
        return torch.where(self.carried, before, self.state)

    def pull_back(self, delta: Float[Tensor, "N B S"]) -> Float[Tensor, "N B S"]:
        """Rows of the adjoint of what enters, as those of the state before."""
        if len(self.reads) == 1 and self.reads[0].source is None:
            return delta * self.reads[0].factor
        total = torch.zeros_like(delta)
        for read in self.reads:
            part = delta * read.factor
            if read.source is None:
                total += part
            else:
                total.flatten(1).index_add_(1, read.source.flatten(), part.flatten(1))
        return total

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample reads the state of another one."""
        width = self.state.shape[1]
        own = torch.arange(len(self.state), device=self.state.device).unsqueeze(1)
        return any(
            bool(((read.source // width != own) & (read.factor != 0)).any())
            for read in self.reads
            if read.source is not None
        )

    def part(self, samples: int) -> "Border":
        """That of the first samples, which must not read others."""
        return Border(self.state[:samples], tuple(_part(read, samples) for read in self.reads))

    @staticmethod
    def side_by_side(borders: "Sequence[Border]") -> "Border":
        """Borders of several sequences as one of all their samples."""
        state = torch.cat([border.state for border in borders])
        width, batches = state.shape[1], [len(border.state) for border in borders]
        reads = []
        for number in range(max(len(border.reads) for border in borders)):
            factors, sources, first = [], [], 0
            for border, batch in zip(borders, batches, strict=True):
                own = torch.arange(batch * width, device=state.device).view(batch, width)
                read = border.reads[number] if number < len(border.reads) else None
                factors.append(torch.zeros_like(border.state) if read is None else read.factor)
                sources.append(
                    first + (own if read is None or read.source is None else read.source)
                )
                first += batch * width
            plain = all(
                number >= len(border.reads) or border.reads[number].source is None
                for border in borders
            )
            reads.append(Read(torch.cat(factors), None if plain else torch.cat(sources)))
        return Border(state, tuple(reads))


def _part(read: Read, samples: int) -> Read:
    source = None if read.source is None else read.source[:samples]
    return replace(read, factor=read.factor[:samples], source=source)
