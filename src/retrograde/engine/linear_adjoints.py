"""The adjoints of a linear recurrence, many steps at once: the states' recursion backwards.

    r_{k-1} = F_k r_k + b_k          b_k = J_k^T direct_k

r is what comes back to a state from later steps, and b what comes back through a single one.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.unitwise import unitwise
from retrograde.engine.blocks import recurrence, slabs
from retrograde.engine.unroll import Chunk, Unrolled


def linear_adjoints(
    unrolled: Unrolled, direct: Float[Tensor, "T B S"]
) -> Iterator[tuple[Chunk, Float[Tensor, "K B S"], Float[Tensor, "B S"]]]:
    """The adjoints of the states after some neighbouring steps, and of the state before them.

    Args:
        unrolled: a pass that `by_blocks` allows, of one layer, without boundaries.
        direct: what the loss gives to each state directly.
    """
    came_back = torch.zeros_like(direct[0])
    for reversed_steps in slabs(len(unrolled), came_back.numel()):
        stop = len(unrolled) - reversed_steps.start
        first = len(unrolled) - reversed_steps.stop
        chunk, given = unrolled.chunk(first, stop), direct[first:stop]
        pulled = chunk.pull_back(given.flatten(0, 1).unsqueeze(0), first, len(chunk))
        by_one = pulled.previous().view_as(given)
        back = torch.zeros_like(torch.cat((given[:1], given)))  # what comes back to every state
        back[-1] = came_back
        for group in unitwise(chunk.graph) or ():
            factors = group.factors(given.shape[:2], given).transpose(0, 1).flip(2)
            added = torch.stack([by_one[..., slot] for slot in group.slots]).flip(1)
            start = torch.stack([came_back[:, slot] for slot in group.slots])
            found = recurrence(factors, added, start).flip(1)
            for row, slot in zip(found, group.slots, strict=True):
                back[:-1, :, slot] = row
        came_back = back[0]
        yield chunk, given + back[1:], came_back
