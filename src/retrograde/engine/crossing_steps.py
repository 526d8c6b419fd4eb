"""Rows of all classes of crossings, pulled back through neighbouring steps.

By the library, or by operations of torch where it does not hold the steps or a boundary is no plain
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.program import Program, new_rows
from retrograde.compiled import crossings as compiled
from retrograde.engine.gathered import Gathered
from retrograde.engine.merging import Merging
from retrograde.engine.scan import Entering, plain_boundaries
from retrograde.engine.unroll import Chunk


@dataclass(frozen=True, eq=False)
class Way:
    """Neighbouring steps that rows are pulled back through, and what becomes of them there.

    Attributes:
        entering: the steps, how many entries there are at each, and what the loss gives, at the
            latest one, too.
        turns: the steps at which neighbouring entries become one, the latest first.
        lags: of each entry at each step, -1 where it has not entered yet, [E, K].
        merging: what the entries stand for at the earliest step.
        merged: how many fewer they are there than if none had become one on the way.
    """

    entering: Entering
    turns: Sequence[compiled.Turn]
    lags: Int[Tensor, "E K"]
    merging: Merging | None
    merged: int = 0


def are_summed(chunk: Chunk, first: int, count: int) -> bool:
    """Whether the library sums the rows at neighbouring steps, if they are asked for in sums."""
    steps = chunk.compiled_by_crossing
    if steps is None or chunk.compiled_uses is None:
        return False
    return compiled.sums_pay(steps) and plain_boundaries(chunk, first, count) is not None


def pull_back(
    chunk: Chunk, start: Float[Tensor, "N B S"], way: Way, gathered: Gathered | None
) -> compiled.Crossed:
    """Rows of all classes pulled back from step to step, on exponents that stay between turns.

    Args:
        chunk: what holds the steps.
        start: what comes back to the latest of the steps, all classes of an entry one after the
            other.
        way: the steps.
        gathered: where the rows are summed to, if they are.
    """
    entering, binned = way.entering, None
    first, count = entering.first, len(entering)
    steps, passed = chunk.compiled_by_crossing, plain_boundaries(chunk, first, count)
    if steps is None or passed is None:
        return _eagerly(chunk, start, way)
    if gathered is not None:
        places = gathered.bins.numbers(way.lags)
        binned = compiled.Binned(len(gathered.bins), places, gathered.room(count))
    return compiled.pull_back(
        steps,
        first - chunk.first,
        start,
        way.turns,
        entering.rows,
        entering.values,
        passed,
        entering.back,
        binned,
    )


def _eagerly(chunk: Chunk, start: Float[Tensor, "N B S"], way: Way) -> compiled.Crossed:
    """The same by operations of torch, with a single turn."""
    entering, (turn,) = way.entering, way.turns
    rows, count, moves, first = entering.rows, len(entering), turn.moves, entering.first
    classes = moves.shape[1] + 1
    most = rows[0] * classes
    one = start.shape[1:]
    values = new_rows(start, count * most, *one).view(count, most, *one)
    started = _started(start, turn, classes)
    for number, after in enumerate((*rows[1:], len(started) // classes)):
        values[number, after * classes :] = 0
    values[-1, : len(started)] = started
    step = _Step(chunk, moves, new_rows(start, most, *one))
    back = new_rows(start, most, *one) if entering.back else None
    for number in range(count - 1, -1, -1):
        some = rows[number] * classes
        if entering.values is not None:
            values[number, some - classes] += entering.values[number]
        before = values[number - 1, :some] if number else back
        if before is not None:
            step.pull_back(first + number, values[number, :some], before)
    sizes = _largest(values).T
    return compiled.Crossed(
        sizes, back, None if back is None else _largest(back), values.transpose(0, 1), None
    )


def _started(
    arriving: Float[Tensor, "N B S"], turn: compiled.Turn, classes: int
) -> Float[Tensor, "M B S"]:
    """The rows that become of those which arrive, without what the loss gives there."""
    count = torch.tensor(turn.sources, device=arriving.device).diff()
    target = torch.arange(len(count), device=count.device).repeat_interleave(count)
    target = target.unsqueeze(1) * classes + torch.arange(classes, device=count.device)
    total = arriving.new_zeros(len(count) * classes, *arriving.shape[1:])
    return total.index_add_(0, target.flatten(), arriving * turn.weights.view(-1, 1, 1))


def _largest(rows: Float[Tensor, "*N B S"]) -> Float[Tensor, "*N"]:
    """The size of the largest entry of each."""
    flat = rows.flatten(-2)
    return torch.maximum(flat.amax(-1), -flat.amin(-1))


class _Step:
    """Rows of all classes, pulled back through one step of a chunk.

    Args:
        chunk: what holds the steps.
        moves: what crosses from each class to the next is multiplied by.
        room: for what crossed.
    """

    def __init__(self, chunk: Chunk, moves: Float[Tensor, "E C1"], room: Float[Tensor, "N B S"]):
        self._chunk, self._classes, self._crossed = chunk, moves.shape[1] + 1, room
        self._program: Program = chunk.plan.by_crossing(frozenset(chunk.cell.recurrent_routes))
        self._moves = moves[..., None, None]
        self._width = room.shape[-1]

    def pull_back(self, k: int, rows: Float[Tensor, "N B S"], out: Float[Tensor, "N B S"]) -> None:
        """Write what comes back to the state before: what stays, and what crossed once more."""
        chunk, program, classes = self._chunk, self._program, self._classes
        crossed, boundary = self._crossed[: len(rows)], chunk.boundaries.get(k)
        staying, crossing = program.slots
        if boundary is not None:
            whole = [slice(0, self._width)]
            staying, crossing = (whole if slots else [] for slots in program.slots)
        covered = {(slot.start, slot.stop) for slot in (*staying, *crossing)}
        if sum(stop - start for start, stop in covered) < self._width:
            out.zero_()
        frame = program.at(k - chunk.first)
        program.run_to(frame, rows, [out, crossed], fill=boundary is not None)
        if boundary is not None:
            out.copy_(boundary.pull_back(out))
            crossed = boundary.pull_back(crossed)
        moves = self._moves[: len(rows) // classes]
        for slot in crossing:
            moving = crossed[..., slot].unflatten(0, (-1, classes))  # type: ignore[no-untyped-call]
            here = out[..., slot].unflatten(0, (-1, classes))  # type: ignore[no-untyped-call]
            if slot in staying:
                here[:, 1:].addcmul_(moving[:, :-1], moves)
            else:
                here[:, 0] = 0
                torch.mul(moving[:, :-1], moves, out=here[:, 1:])
            here[:, -1].add_(moving[:, -1])
