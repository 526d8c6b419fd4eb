"""Linear recurrences by blocks of steps, each unit on its own: many steps in few operations.

    s_k = F_k s_{k-1} + b_k

Blocks of L steps run side by side from a state of zero, which gives what each adds by its end;
with P the product of a block's factors the state that enters the next one is P s + what is added;
then all blocks run once more, from the states that enter them. Within a block the arithmetic is
that of the plain recursion. P has an exponent of its own, so that it neither vanishes beside a
large state nor leaves the range beside a state of 0.

Reference for scans by blocks: Guy E. Blelloch, "Prefix sums and their applications", CMU-CS-90-190
(1990), section 1.3.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import pad

from retrograde.engine.scaling import power_of_two
from retrograde.engine.wide import Wide

FEW = 48
"""Up to this many steps a plain loop takes no longer."""

TOGETHER = 2**21
"""Steps are taken together up to this many numbers of the state, 8 MiB in float32."""


def slabs(steps: int, numbers: int) -> Iterator[range]:
    """Steps, as many at a time as may be taken together of a state of so many numbers."""
    most = max(FEW, TOGETHER // numbers)
    for first in range(0, steps, most):
        yield range(first, min(first + most, steps))


def recurrence(
    factors: Float[Tensor, "n n K B H"],
    added: Float[Tensor, "n K B H"],
    start: Float[Tensor, "n B H"],
) -> Float[Tensor, "n K B H"]:
    """s_k for k = 1 .. K, with s_k[j] = sum_i F_k[i, j] s_{k-1}[i] + b_k[j], unit by unit.

    Args:
        factors: F.
        added: b.
        start: s_0.
    """
    step = _step(len(start))
    steps = added.shape[1]
    states = torch.empty_like(added)
    if steps > FEW:
        length = 1 << ((steps - 1).bit_length() // 2)
        blocks = -(-steps // length)
        missing = blocks * length - steps
        if missing:
            rest = (0, 0, 0, 0, 0, missing)
            factors, added, states = pad(factors, rest), pad(added, rest), pad(states, rest)
        F = _in_blocks(factors, length)
        b, s = (_in_blocks(each, length) for each in (added, states))
        ends = b[:, :, 0].clone()
        for k in range(1, length):
            ends = step(F[:, :, :, k], ends, b[:, :, k])
        entering = _entering(F, ends, start)
        for k in range(length):
            entering = step(F[:, :, :, k], entering, b[:, :, k])
            s[:, :, k] = entering
        states = states[:, :steps]
        if bool(states.isfinite().all()):
            return states
    for k in range(steps):  # the first to leave the range is then the true one
        start = step(factors[:, :, k], start, added[:, k])
        states[:, k] = start
    return states


def _step(parts: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """F s + b."""
    if parts == 1:
        return lambda F, s, b: torch.addcmul(b, F[0], s)
    return lambda F, s, b: (F * s.unsqueeze(1)).sum(0) + b


def _entering(
    F: Float[Tensor, "n n C L B H"], ends: Float[Tensor, "n C B H"], start: Float[Tensor, "n B H"]
) -> Float[Tensor, "n C B H"]:
    """The states that enter the blocks, from what each adds by its end."""
    products = _products(F)
    third = torch.div(products.exponent, 3, rounding_mode="trunc")  # each of them is in the range
    power, rest = power_of_two(third, start), power_of_two(products.exponent - 2 * third, start)
    entering = [start]
    for k in range(ends.shape[1] - 1):
        passed = (products.values[:, :, k] * entering[-1].unsqueeze(1)).sum(0)
        entering.append(passed * power[k] * power[k] * rest[k] + ends[:, k])
    return torch.stack(entering, 1)


def _products(F: Float[Tensor, "n n C L B H"]) -> Wide:
    """The product of the factors of each block, by halves: [n, n, C, B, H]."""
    every = Wide.of(F.flatten(2, 3), torch.zeros((), dtype=torch.int32, device=F.device))
    left = F.shape[3]
    while left > 1:
        left //= 2
        values, exponent = _in_blocks(every.values, 2), _in_blocks(every.exponent, 2)
        earlier, later = (Wide(values[:, :, :, n], exponent[:, n]) for n in (0, 1))
        every = earlier.times(later)
    return every


def _in_blocks(values: Shaped[Tensor, "*n K B H"], length: int) -> Shaped[Tensor, "*n C L B H"]:
    """Steps in blocks of a length that divides them; a view."""
    *before, steps, batch, width = values.shape
    return values.view(*before, steps // length, length, batch, width)
