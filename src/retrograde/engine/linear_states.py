"""The states of a linear recurrence, many steps at once.

The gates of such a cell read x_k alone, so that all factors are known before any state is, and
where units lead to themselves alone the states follow by blocks of steps (`engine.blocks`).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.cells.linear import AbstractLinear
from retrograde.cells.stacked import Stacked
from retrograde.cells.unitwise import unitwise
from retrograde.engine.blocks import FEW, recurrence, slabs


def by_blocks(cell: AbstractCell, x: Float[Tensor, "T B I"]) -> bool:
    """Whether many steps of a cell can be taken at once, and are enough for that to pay."""
    layers = cell.layers if isinstance(cell, Stacked) and not cell.masked else (cell,)
    return (
        len(x) > FEW
        and x.dtype in (torch.float32, torch.float64)
        and all(isinstance(each, AbstractLinear) for each in layers)
        and all(unitwise(each.structure) is not None for each in layers)
    )


def linear_states(
    cell: AbstractCell, x: Float[Tensor, "T B I"], initial: Float[Tensor, "B S"]
) -> Float[Tensor, "T1 B S"]:
    """All states of a cell that `by_blocks` allows, the initial one first."""
    if not isinstance(cell, Stacked):
        return _states(cell, x, initial)
    found = []
    for layer, start in zip(cell.layers, cell.split(initial), strict=True):
        found.append(_states(layer, x, start))
        x = found[-1][1:, :, layer.output]
    return torch.cat(found, -1)


def _states(cell: AbstractCell, x: Tensor, initial: Tensor) -> Tensor:
    states = x.new_zeros(len(x) + 1, *initial.shape)
    states[0] = initial
    for steps in slabs(len(x), initial.numel()):
        here, after = x[steps.start : steps.stop], states[steps.start + 1 : steps.stop + 1]
        before, projected = states[steps.start : steps.stop], cell.project(here)
        from_zero = cell.advance(here, projected, torch.zeros_like(before))
        for group in unitwise(cell.linearise(from_zero)) or ():
            factors = group.factors(before.shape[:2], states)
            added = torch.stack([from_zero.state[..., slot] for slot in group.slots])
            start = torch.stack([before[0, :, slot] for slot in group.slots])
            for row, slot in zip(recurrence(factors, added, start), group.slots, strict=True):
                after[..., slot] = row
        after.copy_(cell.advance(here, projected, before).state)  # and what no step reads
    return states
