"""The forward pass as a value: the states, and any step recomputed from the state before it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellAdjoint, CellStep, Factors
from retrograde.engine.border import Border
from retrograde.errors import ArgumentError

CHUNK = 32
"""Steps that are recomputed together. Only the states are kept over the whole sequence."""


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A cell, its inputs x [T, B, I] and its states [T+1, B, S], the initial state first.

    `borders` are the steps that were not entered with the state before. `kept` are the steps
    themselves, for those who have the memory; without them each is computed again from the state
    that enters it. `factors` are those by which a clipped cell multiplies its adjoints, step by
    step; without them each pull-back chooses its own.
    """

    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    states: Float[Tensor, "T1 B S"]
    kept: tuple[CellStep, ...] = ()
    borders: Mapping[int, Border] = field(default_factory=dict)
    factors: tuple[Factors, ...] = ()

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def output(self) -> Float[Tensor, "T B H"]:
        """h_k of the top layer, the layer's output."""
        return self.states[1:, :, self.cell.output]

    def steps(self, start: int, stop: int) -> CellStep:
        """Steps start..stop-1, linearised, all at once."""
        x, previous = self.x[start:stop], self.states[start:stop]
        here = {k: border for k, border in self.borders.items() if start <= k < stop}
        if here:
            previous = previous.clone()
        for k, border in here.items():
            previous[k - start] = border.entering(previous[k - start])
        if self.kept:
            states = self.states[start + 1 : stop + 1]
            steps = CellStep.stack(self.kept[start:stop], x, previous, states)
        else:
            steps = self.cell.step(x, previous)
        if self.factors:
            steps = steps.clipped(Factors.stack(self.factors[start:stop]))
        return self.cell.linearise(steps)

    def pull_back(self, k: int, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        """Pull rows of dL/ds_k back through step k and the border before it, if there is one."""
        pulled = self.cell.pull_back(step, delta)
        if k not in self.borders:
            return pulled
        return replace(pulled, to_before=self.borders[k].pull_back)

    def chunks(self) -> Iterator["Chunk"]:
        """CHUNK steps at a time, from the end of the sequence to its start."""
        for stop in range(len(self), 0, -CHUNK):
            start = max(0, stop - CHUNK)
            yield Chunk(start, self.steps(start, stop))

    def backwards(self) -> Iterator[tuple[int, CellStep]]:
        """(k, step k) for k = T-1 .. 0, holding CHUNK steps at a time."""
        for chunk in self.chunks():
            yield from chunk.backwards()


@dataclass(frozen=True, eq=False)
class Chunk:
    """Neighbouring steps that were linearised together, the first of them step `first`."""

    first: int
    steps: CellStep

    def backwards(self) -> Iterator[tuple[int, CellStep]]:
        """(k, step k), the last one first."""
        return reversed(list(enumerate(self.steps.unbind(), self.first)))

    def merged(self, k: int, count: int) -> CellStep:
        """Steps k..k+count-1 as if they were samples of one step: a cell knows no time."""
        return self.steps.between(k - self.first, k - self.first + count).merged()


@torch.no_grad()
def unroll(
    cell: AbstractCell,
    x: Float[Tensor, "..."],
    initial: Float[Tensor, "..."] | None = None,
    keep: bool = False,
    borders: Mapping[int, Border] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> Unrolled:
    """Run a cell over a sequence.

    Args:
        cell: the recurrence.
        x: inputs, shape [T, B, I].
        initial: s before the first step, shape [B, S]; zeros if None.
        keep: keep the steps with all their activations, and not the states alone.
        borders: the steps that are not entered with the state before.
        lengths: the number of steps of each sample; after them its state stays as it is.

    Raises:
        ArgumentError: if x or the initial state does not fit the cell.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman
        >>> from retrograde.engine import unroll
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> unroll(cell, torch.ones(3, 1, 1)).output.flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    if x.ndim != 3 or x.shape[2] != cell.input_size:
        raise ArgumentError(
            f"x must have shape [T, B, {cell.input_size}]; got {tuple(x.shape)}. Transpose a "
            "batch-first tensor with x.transpose(0, 1)"
        )
    expected = (x.shape[1], cell.state_size)
    if initial is not None and tuple(initial.shape) != expected:
        raise ArgumentError(
            f"the initial state must have shape {list(expected)} [B, S]; got {list(initial.shape)}"
        )
    states = x.new_empty(x.shape[0] + 1, *expected)
    states[0] = 0 if initial is None else initial
    each, kept, borders = states.unbind(), [], borders or {}
    for k, (x_k, projected) in enumerate(zip(x, cell.project(x), strict=True)):
        entering = borders[k].entering(each[k]) if k in borders else each[k]
        step = cell.advance(x_k, projected, entering)
        if lengths is None:
            each[k + 1].copy_(step.state)
        else:
            torch.where((k < lengths).unsqueeze(-1), step.state, each[k], out=each[k + 1])
        if keep:
            kept.append(step)
    return Unrolled(cell, x, states, tuple(kept), borders)
