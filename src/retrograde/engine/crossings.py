"""The backward recursion, its rows told apart by how often their paths crossed recurrent weights.

    v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

R holds the routes that cross recurrent weights, A the others; the last class keeps what crosses
that often or more. The sum over n is the adjoint of adjoint.py. Class 0 is the carousel alone.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.program import new_rows
from retrograde.engine.adjoint import AdjointStep, refuse_non_finite
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import CENTRE, NO_EXPONENT, Scaled, in_range, power_of_two
from retrograde.engine.scan import AbstractRule, scan
from retrograde.engine.unroll import Chunk, Unrolled

Parts = list[tuple[slice, Float[Tensor, "N B _"]]]
"""Adjoints of the state before, as far as they are not zero: parts of the state."""


class PerCrossing(AbstractRule):
    """For each entry a row for every number of crossings: row `entry * classes + n`.

    Attributes:
        delta: the adjoints at the step.
        sizes: the sizes of their largest entries.
    """

    def __init__(self, cell: AbstractCell, entries: Entries, classes: int):
        self._recurrent = frozenset(cell.recurrent_routes)
        self._entries, self._classes = entries, classes
        self._back: Callable[[], tuple[Parts, Parts]] | None = None
        self.delta = Scaled.of(entries.direct.new_zeros(0, *entries.direct.shape[1:]))
        self.sizes = self.delta.values.new_zeros(0)

    def rows(self, k: int) -> Float[Tensor, "N B S"] | None:
        entries, classes = self._entries, self._classes
        rows = len(self.delta.exponent) // classes
        opens = entries.opens(k, rows)
        if self._back is not None:
            delta = self._arriving(*self._back(), opens)
        elif opens:
            delta = Scaled.of(entries.direct.new_zeros(classes, *entries.direct.shape[1:]))
        else:
            return None
        if opens:  # what enters has crossed nothing yet
            entering = entries.at(k)
            delta.values[-classes] = entering.values[0]
            delta.exponent[-classes:] = entering.exponent
        elif entries.covers(k, rows):
            newest = slice((rows - 1) * classes, (rows - 1) * classes + 1)
            joined = Scaled(delta.values[newest], delta.exponent[newest]).plus(entries.at(k))
            delta.values[newest], delta.exponent[newest] = joined.values, joined.exponent
        sizes = delta.values.abs().amax((1, 2))
        filled = torch.where(sizes == 0, 2.0**CENTRE, sizes)  # many rows are still empty
        if not in_range(filled):
            delta = delta.centred(sizes)
            sizes = delta.values.abs().amax((1, 2))
            refuse_non_finite(sizes, k)
        self.delta, self.sizes = delta, sizes
        return delta.values

    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        self._back = partial(self._split, chunk, k, rows)  # if asked for

    def _split(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> tuple[Parts, Parts]:
        """What comes back and stays in its class, and what crosses to the next one."""
        program, whole = chunk.plan.by_crossing(self._recurrent), k in chunk.boundaries
        results = chunk.through(program, k, rows, fill=whole)
        parts = []
        for result, slots in zip(results, program.slots, strict=True):
            if whole and slots:
                slots = [slice(0, rows.shape[-1])]
            parts.append([(slot, result[..., slot]) for slot in slots])
        return parts[0], parts[1]

    def _arriving(self, staying: Parts, crossing: Parts, opens: bool) -> Scaled:
        """delta_{k-1}: what stays in its class, and what crossed and moves to the next one.

        With rows of zeros at the end for an entry that opens there.
        """
        before, exponent, sizes, classes = (
            self.delta.values,
            self.delta.exponent,
            self.sizes,
            self._classes,
        )

        # One exponent for all that meets in a class; a row without anything in it has no say.
        own = torch.where(sizes > 0, exponent, NO_EXPONENT).view(-1, classes)
        from_before = torch.cat((torch.full_like(own[:, :1], NO_EXPONENT), own[:, :-1]), 1)
        top = torch.maximum(own, from_before)
        stays = power_of_two(own - top, before)[..., None, None]
        moves = power_of_two(from_before - top, before)[..., None, None]

        count, *shape = before.shape
        values = new_rows(before, count + opens * classes, *shape)
        values[count:] = 0
        total = values[:count].view(*top.shape, *shape)
        slots = {(slot.start, slot.stop) for slot, _ in (*staying, *crossing)}
        if sum(stop - start for start, stop in slots) < shape[-1]:
            total.zero_()
        for slot, part in staying:
            torch.mul(part.view(*top.shape, *part.shape[1:]), stays, out=total[..., slot])
        for slot, part in crossing:
            moving, here = part.view(*top.shape, *part.shape[1:]), total[..., slot]
            if any(slot == other for other, _ in staying):
                here[:, 1:].addcmul_(moving[:, :-1], moves[:, 1:])
            else:
                here[:, 0] = 0
                torch.mul(moving[:, :-1], moves[:, 1:], out=here[:, 1:])
            here[:, -1:].addcmul_(moving[:, -1:], stays[:, -1:])
        exponents = top.new_zeros(len(values))
        exponents[:count] = torch.where(top == NO_EXPONENT, 0, top).flatten()
        return Scaled(values, exponents)


@torch.no_grad()
def backpropagate_by_crossing(
    unrolled: Unrolled, entries: Entries, classes: int
) -> Iterator[AdjointStep]:
    """The stream of steps for k = T-1 .. 0, with `classes` rows for each entry.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    rule = PerCrossing(unrolled.cell, entries, classes)
    for k, chunk in scan(unrolled, rule):
        entered = len(rule.sizes) // classes
        yield AdjointStep(k, rule.delta, rule.sizes, chunk, entries, entered)
