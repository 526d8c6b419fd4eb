"""The window that a layer's gradient needs, and how far its signal goes, from one look."""

from functools import partial

from jaxtyping import Float
from torch import Tensor

from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.from_recording import unasked
from retrograde.horizons.another_past import FEWEST_PAIRED, paired, parts_of_the_past
from retrograde.horizons.curvature import readout_of_the_loss
from retrograde.horizons.over_batches import TRAINING_STEPS
from retrograde.horizons.used import one_way
from retrograde.recording import Recorded
from retrograde.truncation.signal import FEWEST_SHOWN, signal_of

SAMPLES = 40
"""The number of samples looked at for `learnable`, where a batch has that many
(benchmarks/monitor_cost.py measures what they cost)."""

GROUPS = 10
"""The number of groups that they are split into, each in the place of a batch."""


def window(recorded: Recorded, delta: float) -> dict[str, float]:
    """The scalar `window` of a part of a pass; nothing where there is none.

    Args:
        recorded: the part.
        delta: the bias that the window may have.
    """
    chosen = unasked(recorded).horizon().window(delta)
    return {} if chosen is None else {"window": float(chosen)}


def learnable(recorded: Recorded, batch_size: int) -> dict[str, float]:
    """The scalar `learnable` of a part of a pass; nothing where it cannot be told.

    That is with fewer than 16 samples, which make 8 pairs, where states are reset or a layer reads
    the sequence both ways, and where inputs follow each other so closely that few samples could
    lend each other a past.

    Args:
        recorded: the part, of the only recurrent layer of a model.
        batch_size: the samples of a batch of the training.
    """
    samples = recorded.x.shape[1]
    groups = GROUPS if samples >= 2 * GROUPS else FEWEST_SHOWN
    size = samples // groups
    if size < 2 or recorded.boundaries or not one_way(recorded):
        return {}
    flows = [
        unasked(recorded.part(range(first, first + size)))
        for first in range(0, groups * size, size)
    ]
    if sum(map(paired, flows)) < FEWEST_PAIRED * len(flows):
        return {}
    lags = lag_bins("octaves", flows[0].steps)
    readout, parts = readout_of_the_loss(flows), []
    for flow in flows:
        left = readout.left_of(flow)
        parts.append(parts_of_the_past(flow, left, partial(_unmoved, left), lags))
    found = signal_of(lags, parts, size).learnable(TRAINING_STEPS, batch_size)
    return {} if found is None else {"learnable": float(found)}


def _unmoved(left: Float[Tensor, "T B S"], states: Float[Tensor, "T1 B S"]) -> Tensor:
    """What the loss asks whatever the states are."""
    return left
