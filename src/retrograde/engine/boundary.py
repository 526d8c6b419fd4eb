"""A boundary between two steps at which the state is not handed on unchanged.

What enters a step may be the state before with some samples reset, masked, scaled or in another
order: each entry reads entries of the state before, times factors. Adjoints pass back along the
same reads, so a boundary of this kind ends no lag.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
class Boundary:
    """What enters a step, and how it follows from the state before.

    Attributes:
        state: the state that enters, [B, S].
        carried: the entries that enter as the state before has them, whatever `state` says.
        reads: what the entries read of the state before, added up; nothing where they were
            detached, reset, or computed in a way that is not followed.
    """

    state: Float[Tensor, "B S"]
    carried: Bool[Tensor, "B S"]
    reads: tuple[Read, ...]

    @staticmethod
    def detached(state: Float[Tensor, "B S"], carried: Bool[Tensor, "B S"]) -> "Boundary":
        """A boundary that passes some entries unchanged; the others start anew."""
        return Boundary(state, carried, (Read(carried.to(state.dtype)),))

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

    def push(self, before: Float[Tensor, "N B S"]) -> Float[Tensor, "N B S"]:
        """Changes of the state before as changes of what enters."""
        total = torch.zeros_like(before)
        for read in self.reads:
            source = before if read.source is None else before.flatten(1)[:, read.source]
            total += source * read.factor
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

    @property
    def passes(self) -> bool:
        """Whether every sample reads something of the state before."""
        reads = torch.zeros_like(self.carried)
        for read in self.reads:
            reads |= read.factor != 0
        return bool(reads.any(1).all())

    def double(self) -> "Boundary":
        """The same in float64."""
        reads = tuple(replace(read, factor=read.factor.double()) for read in self.reads)
        return Boundary(self.state.double(), self.carried, reads)

    def part(self, samples: Int[Tensor, "M"]) -> "Boundary":
        """That of some samples, by their numbers, which must not read others."""
        reads = tuple(_part(read, samples) for read in self.reads)
        return Boundary(self.state[samples], self.carried[samples], reads)

    @staticmethod
    def side_by_side(boundaries: "Sequence[Boundary]") -> "Boundary":
        """Borders of several sequences as one of all their samples."""
        state = torch.cat([boundary.state for boundary in boundaries])
        width, batches = state.shape[1], [len(boundary.state) for boundary in boundaries]
        reads = []
        for number in range(max(len(boundary.reads) for boundary in boundaries)):
            factors, sources, first = [], [], 0
            for boundary, batch in zip(boundaries, batches, strict=True):
                own = torch.arange(batch * width, device=state.device).view(batch, width)
                read = boundary.reads[number] if number < len(boundary.reads) else None
                factors.append(torch.zeros_like(boundary.state) if read is None else read.factor)
                sources.append(
                    first + (own if read is None or read.source is None else read.source)
                )
                first += batch * width
            plain = all(
                number >= len(boundary.reads) or boundary.reads[number].source is None
                for boundary in boundaries
            )
            reads.append(Read(torch.cat(factors), None if plain else torch.cat(sources)))
        carried = torch.cat([boundary.carried for boundary in boundaries])
        return Boundary(state, carried, tuple(reads))


def _part(read: Read, samples: Int[Tensor, "M"]) -> Read:
    factor, source = read.factor[samples], None
    if read.source is not None:
        width = factor.shape[1]
        own = torch.arange(len(factor), device=factor.device).unsqueeze(1)
        source = own * width + read.source[samples] % width
    return replace(read, factor=factor, source=source)
