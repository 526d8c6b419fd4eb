"""What a model uses, asked of its forward pass: the loss when all older than K steps is replaced.

    s_t(K) = the state at t after the last K inputs, from another past's state at t - K

For every t at once, as samples of one pass, which goes on from one K to the next: K' - K more steps
after s_{t-K'+K}(K). The layer's output is replaced by what these states give, and the rest of the
model computes its loss from it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde.declarations.keras import in_both_directions
from retrograde.decomposition import Flow
from retrograde.diagnosis.run import LossFunction
from retrograde.engine import Unrolled, unroll
from retrograde.horizons.replaced_output import follows_from, loss_of
from retrograde.recording import Recorded, recurrent_layers

PASTS = ("another sample", "mean", "zeros")
"""What the past can be replaced by."""

TOGETHER = 2**20
"""Windows and steps are run together while their states are no more numbers than this, 4 MiB in
float32."""

MOST_STEPS = 64
"""Maximum number of steps that are run together."""

ROUNDINGS = 4
"""States that differ by no more than so many rounding errors of the largest are alike."""


def why_not_replaced(
    model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, flow: Flow
) -> str:
    """Why the layer's output cannot be put together from other states; "" where it can.

    Args:
        model: the user's model; a copy is run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        flow: the recorded pass of the layer.
    """
    recorded = flow.recorded
    if recorded.boundaries or recorded.lengths is not None:
        return "states are reset, or samples end before others"
    layers = recurrent_layers(model)
    if (
        recorded.name not in layers
        or not one_way(recorded)
        or in_both_directions(model, recorded.name)
    ):
        return "the layer reads the sequence both ways"
    if not follows_from(model, batch, loss_fn, seed, recorded, flow.unrolled.states):
        return "its output does not follow from its states alone"
    return ""


def losses_without_the_past(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    flow: Flow,
    steps: Sequence[int],
    past: str,
) -> list[float]:
    """The loss with all older than K steps replaced, for each K.

    Args:
        model: the user's model; copies are run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        flow: the recorded pass of the layer, whose output can be replaced.
        steps: the K; with T and more nothing is replaced.
        past: one of `PASTS`; another sample's only where there is one.
    """
    recorded, unrolled = flow.recorded, flow.unrolled
    before = _pasts(recorded, unrolled, past)
    with torch.no_grad():
        return [
            float(loss_of(model, batch, loss_fn, seed, recorded, replaced))
            for replaced in windowed(unrolled, before, steps)
        ]


@torch.no_grad()
def windowed(
    unrolled: Unrolled, before: Float[Tensor, "T1 B S"], steps: Sequence[int]
) -> Iterator[Float[Tensor, "T1 B S"]]:
    """The states when each looks back over K steps, from the states of another past.

    Once the other past has left no trace in any state, what follows is the pass's own: a network
    that forgets within a hundred steps takes a hundred of them, however large K is.

    Args:
        unrolled: the pass.
        before: the states that the windows start from, the initial one first.
        steps: the K, ascending; with 0 the states themselves are those of the other past, with T
            and more nothing is replaced.
    """
    own, moving, at = unrolled.states, before[1:], 0
    for count in steps:
        if count < len(unrolled) and len(moving):
            moving, at = _further(unrolled, moving[: len(unrolled) - count], at, count), count
            if _alike(moving, own[count + 1 :]):
                moving = moving[:0]
        yield own if count >= len(unrolled) else torch.cat((own[: len(own) - len(moving)], moving))


def _further(
    unrolled: Unrolled, windows: Float[Tensor, "N B S"], at: int, stop: int
) -> Float[Tensor, "N B S"]:
    """Windows that have taken `at` steps, when they have taken `stop`."""
    size = windows[0].numel()
    together = max(1, TOGETHER // (MOST_STEPS * size))
    found = []
    for number, some in enumerate(torch.split(windows, together)):
        first = 1 + number * together
        for step in range(at, stop, MOST_STEPS):
            count = min(MOST_STEPS, stop - step)
            read = unrolled.x[first + step : first + step + len(some) + count - 1]
            x = read.unfold(0, count, 1).permute(3, 0, 1, 2).flatten(1, 2)  # [count, N B, I]
            states = unroll(unrolled.cell, x, some.flatten(0, 1)).states
            some = states[-1].view_as(some)
        found.append(some)
    return torch.cat(found)


def _alike(some: Float[Tensor, "N B S"], others: Float[Tensor, "N B S"]) -> bool:
    """Whether states are the same but for rounding."""
    limit = ROUNDINGS * torch.finfo(others.dtype).eps * others.abs().amax()
    return bool(((some - others).abs() <= limit).all())


def _pasts(recorded: Recorded, unrolled: Unrolled, past: str) -> Float[Tensor, "T1 B S"]:
    """The states of the other past, at every step."""
    if past == "another sample":
        return unrolled.states.roll(recorded.x.shape[1] // 2, 1)
    x, width = unrolled.x.clone(), recorded.x.shape[2]
    read = x[..., :width]  # what follows are masks
    x[..., :width] = 0 if past == "zeros" else read.mean((0, 1))
    return unroll(unrolled.cell, x, recorded.initial).states


def one_way(recorded: Recorded) -> bool:
    """Whether a layer reads the sequence in one direction."""
    return not any("reverse" in name for name in recorded.cell.slots)
