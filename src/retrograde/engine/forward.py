"""The forward pass, some steps at a time, and states that are found again from checkpoints.

    s_k = step(x_k, s_{k-1})        k = first .. stop-1, from a state that is known

Of a long pass only every SEGMENT-th state is kept; the others are computed again from there when
they are asked for, one segment at a time, so that T steps take the memory of T / SEGMENT + SEGMENT
states.

Reference: Tianqi Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016),
arXiv 1604.06174.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.precision import no_autocast
from retrograde.compiled.library import Library
from retrograde.compiled.states import library_for, numbers_kept, run
from retrograde.engine.boundary import Boundary

SEGMENT = 2**12
"""Steps that are run at a time, in one call of the compiled library."""


@dataclass(frozen=True, eq=False)
class Forward:
    """A cell and what it is run over.

    Attributes:
        cell: the recurrence.
        x: inputs, [T, B, I].
        boundaries: the steps that are not entered with the state before.
        lengths: the number of steps of each sample; after them its state stays as it is.
    """

    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    boundaries: Mapping[int, Boundary]
    lengths: Int[Tensor, "B"] | None

    def segments(self) -> Iterator[range]:
        """The steps, in order, as many as are run at a time."""
        for first in range(0, len(self.x), SEGMENT):
            yield range(first, min(first + SEGMENT, len(self.x)))

    @torch.no_grad()
    def run(
        self,
        steps: range,
        states: Float[Tensor, "K1 B S"],
        kept: list[CellStep] | None = None,
    ) -> None:
        """Write the states after some steps, behind the one before them, which is there already.

        Args:
            steps: the steps.
            states: the state before them, and room for those after.
            kept: takes the steps with all their activations.
        """
        if kept is None and (library := library_for(self.cell, self.x, states[0])) is not None:
            self._compiled(library, steps, states)
            return
        each, x = states.unbind(), self.x[steps.start : steps.stop]
        with no_autocast(x.device):
            rows = zip(steps, x, self.cell.project(x), strict=True)
            for number, (k, x_k, projected) in enumerate(rows):
                before, after = each[number], each[number + 1]
                entering = self.boundaries[k].entering(before) if k in self.boundaries else before
                step = self.cell.advance(x_k, projected, entering)
                if self.lengths is None:
                    after.copy_(step.state)
                else:
                    there = (k < self.lengths).unsqueeze(-1)
                    torch.where(there, step.state, before, out=after)
                if kept is not None:
                    kept.append(step)

    @torch.no_grad()
    def at_once(self, states: Float[Tensor, "T1 B S"], most: int) -> CellStep | None:
        """Write all states in one call of the compiled library, and give the steps with all their
        activations; None where these are more numbers than `most`, where the library is not in use,
        or a state is not simply handed on."""
        library = library_for(self.cell, self.x, states[0])
        if library is None or self.boundaries or self.lengths is not None or not len(self.x):
            return None
        if numbers_kept(library, self.cell, self.x) > most:
            return None
        return run(library, self.cell, self.x, states, states[0], keep=True)

    def _compiled(self, library: Library, steps: range, states: Float[Tensor, "K1 B S"]) -> None:
        """The same by the compiled library, from boundary to boundary."""
        here = {k for k in self.boundaries if k in steps}
        for first, last in pairwise(sorted({steps.start, steps.stop, *here})):
            some = states[first - steps.start : last - steps.start + 1]
            entering = self.boundaries[first].entering(some[0]) if first in here else some[0]
            run(library, self.cell, self.x[first:last], some, entering, keep=False)
            if self.lengths is not None:
                ran = (self.lengths - first).clamp(min=0)
                step = torch.arange(1, len(some), device=ran.device).unsqueeze(1).minimum(ran)
                some[1:] = some[step, torch.arange(len(ran), device=ran.device)]


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """The states of a pass, of which the first of each segment is kept.

    Attributes:
        forward: the pass.
        kept: the states before steps 0, SEGMENT, 2 SEGMENT, ..., and the last one.
    """

    forward: Forward
    kept: Float[Tensor, "C B S"]
    _found: dict[int, Float[Tensor, "K1 B S"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.forward.x) + 1

    def segment(self, number: int) -> Float[Tensor, "K1 B S"]:
        """The states of a segment, that before its first step included; the latest is held."""
        if number not in self._found:
            first = number * SEGMENT
            steps = range(first, min(first + SEGMENT, len(self.forward.x)))
            states = self.kept.new_empty(len(steps) + 1, *self.kept.shape[1:])
            states[0] = self.kept[number]
            self.forward.run(steps, states)
            self._found.clear()
            self._found[number] = states
        return self._found[number]

    def between(self, first: int, last: int) -> Float[Tensor, "K1 B S"]:
        """The states before steps first .. last, first included and last too."""
        numbers = range(first // SEGMENT, max(first, last - 1) // SEGMENT + 1)
        if last == first == len(self) - 1:
            return self.kept[-1:]
        parts = []
        for number in numbers:
            states, start = self.segment(number), number * SEGMENT
            stop = last + 1 if number == numbers[-1] else start + SEGMENT
            parts.append(states[max(first, start) - start : stop - start])
        return parts[0] if len(parts) == 1 else torch.cat(parts)
