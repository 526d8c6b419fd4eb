"""What a model uses, asked of its forward pass: the loss when all older than K steps is replaced.

    s_t(K) = the state at t after the last K inputs, from another past's state at t - K

For every t at once, as samples of one pass of K steps. The layer's output is replaced by what these
states give, and the rest of the model computes its loss from it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde.cells.precision import no_autocast
from retrograde.declarations.keras import in_both_directions
from retrograde.decomposition import Flow
from retrograde.diagnosis.run import LossFunction
from retrograde.engine import Unrolled, unroll
from retrograde.horizons.replaced_output import follows_from, loss_of
from retrograde.recording import Recorded, recurrent_layers

PASTS = ("another sample", "mean", "zeros")
"""What the past can be replaced by."""


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
    found = []
    for count in steps:
        replaced = windowed(unrolled, before, count)
        with torch.no_grad():
            found.append(float(loss_of(model, batch, loss_fn, seed, recorded, replaced)))
    return found


@torch.no_grad()
def windowed(
    unrolled: Unrolled, before: Float[Tensor, "T1 B S"], count: int
) -> Float[Tensor, "T1 B S"]:
    """The states when each looks back over `count` steps, from the states of another past.

    Args:
        unrolled: the pass.
        before: the states that the windows start from, the initial one first.
        count: K; with 0 the states themselves are those of the other past.
    """
    states = unrolled.states.clone()
    if count >= len(unrolled):
        return states
    moving = before[1 : len(unrolled) - count + 1]
    with no_autocast(moving.device):
        for at in range(count):
            moving = unrolled.cell.step(unrolled.x[1 + at : 1 + at + len(moving)], moving).state
    states[count + 1 :] = moving
    return states


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
