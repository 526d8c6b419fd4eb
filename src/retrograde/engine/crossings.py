"""The backward recursion, its rows told apart by how often their paths crossed recurrent weights.

    v(n)_{k-1} = A_k^T v(n)_k + R_k^T v(n-1)_k

R holds the routes that cross recurrent weights, A the others; the last class keeps what crosses
that often or more. The sum over n is the adjoint of adjoint.py. Class 0 is the carousel alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.base import AbstractCell, CellAdjoint, fill, new_rows
from retrograde.engine.adjoint import refuse_non_finite
from retrograde.engine.entries import Entries
from retrograde.engine.scaling import CENTRE, NOTHING, Scaled, in_range, power_of_two
from retrograde.engine.unroll import Chunk, Unrolled


@dataclass(frozen=True)
class CrossingStep:
    """All adjoint rows at one use step: row `entry * classes + n` holds the paths of n crossings.

    `sizes` are the largest entries of the rows, `lags` the lags of the entries, latest first.
    `chunk` holds the neighbours of step k.
    """

    k: int
    delta: Scaled
    sizes: Float[Tensor, "N"]
    lags: Int[Tensor, "E"]
    chunk: Chunk


@torch.no_grad()
def backpropagate_by_crossing(
    unrolled: Unrolled, entries: Entries, classes: int
) -> Iterator[CrossingStep]:
    """The stream of steps for k = T-1 .. 0, with `classes` rows for each entry.

    Raises:
        NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
    """
    cell = unrolled.cell
    delta = Scaled.of(entries.direct.new_zeros(0, *entries.direct.shape[1:]))
    sizes = delta.values.new_zeros(0)
    pulled: CellAdjoint | None = None
    for chunk in unrolled.chunks():
        for k, step in chunk.backwards():
            rows = len(delta.exponent) // classes
            opens = entries.opens(k, rows)
            if pulled is not None:
                delta = _arriving(pulled, delta.exponent, sizes, cell, classes, opens)
            elif opens:
                delta = Scaled.of(entries.direct.new_zeros(classes, *entries.direct.shape[1:]))
            if opens:  # what enters has crossed nothing yet
                entering = entries.at(k)
                delta.values[-classes] = entering.values[0]
                delta.exponent[-classes:] = entering.exponent
            elif entries.covers(k, rows):
                newest = slice((rows - 1) * classes, (rows - 1) * classes + 1)
                joined = Scaled(delta.values[newest], delta.exponent[newest]).plus(entries.at(k))
                delta.values[newest], delta.exponent[newest] = joined.values, joined.exponent
            if not len(delta.exponent):
                continue
            sizes = delta.values.abs().amax((1, 2))
            filled = torch.where(sizes == 0, 2.0**CENTRE, sizes)  # many rows are still empty
            if not in_range(filled):
                delta = delta.centred(sizes)
                sizes = delta.values.abs().amax((1, 2))
                refuse_non_finite(sizes, k)
            pulled = unrolled.pull_back(k, step, delta.values)
            yield CrossingStep(k, delta, sizes, entries.lags(k, len(sizes) // classes), chunk)


def _arriving(
    pulled: CellAdjoint,
    exponent: Int[Tensor, "N"],
    sizes: Float[Tensor, "N"],
    cell: AbstractCell,
    classes: int,
    opens: bool,
) -> Scaled:
    """delta_{k-1}: what stays in its class, and what crossed and moves to the next one.

    With rows of zeros at the end for an entry that opens there.
    """
    staying = pulled.by_slot([route for route in cell.routes if route not in cell.recurrent_routes])
    crossing = pulled.by_slot(cell.recurrent_routes)

    # One exponent for all that meets in a class; a row without anything in it has no say.
    own = torch.where(sizes > 0, exponent, NOTHING).view(-1, classes)
    from_before = torch.cat((torch.full_like(own[:, :1], NOTHING), own[:, :-1]), 1)
    top = torch.maximum(own, from_before)
    stays = power_of_two(own - top, pulled.like)[..., None, None]
    moves = power_of_two(from_before - top, pulled.like)[..., None, None]

    count, *shape = pulled.like.shape
    values = new_rows(pulled.like, count + opens * classes, *shape)
    values[count:] = 0
    if not fill((slot for slot, _ in (*staying, *crossing)), shape[-1]):
        values.zero_()
    total = values[:count].view(*top.shape, *shape)
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
    exponents[:count] = torch.where(top == NOTHING, 0, top).flatten()
    return Scaled(values, exponents)
