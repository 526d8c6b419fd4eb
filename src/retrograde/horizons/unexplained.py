"""The part of the loss's gradient that a better readout of the present state would not remove.

    delta~_t = delta_t - A [h_t, 1]      A by least squares over all samples, steps and batches

In a fresh network most of dL/ds_t follows from the state itself: an output that is too large or has
the wrong mean. That part is the same in every batch, and whatever the recurrence sends back of it
is a signal at every lag, in data without any memory too. What is left of delta_t does not follow
from h_t (to first order), so that a signal in it comes from what was read earlier and is not in
the state.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.decomposition import Flow
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import Lags
from retrograde.engine import Entries, Scaled
from retrograde.horizons.seen import rows_of

ROWS_FOR_EACH = 10
"""With fewer rows for each unit of the output a regression would explain noise, too; the mean alone
is taken out then."""


def unexplained(flows: Sequence[Flow]) -> list[Float[Tensor, "T B S"]]:
    """What is left of dL/ds_t of one layer in several batches.

    Args:
        flows: the layer's pass in each batch.
    """
    known, given = [], []
    for flow in flows:
        steps = flow.entries.direct.flatten(1).any(1)
        known.append(flow.unrolled.output[steps].double().flatten(0, 1))
        given.append(flow.entries.direct[steps].double().flatten(0, 1))
    x, y = torch.cat(known), torch.cat(given)
    ones = x.new_ones(len(x), 1)
    enough = len(x) >= ROWS_FOR_EACH * (x.shape[1] + 1)
    x = torch.cat((x, ones), 1) if enough else ones
    left = y - x @ torch.linalg.lstsq(x, y).solution if len(x) else y
    found = []
    for flow, rows in zip(flows, left.split([len(some) for some in given]), strict=True):
        direct = torch.zeros_like(flow.entries.direct)
        steps = flow.entries.direct.flatten(1).any(1)
        direct[steps] = rows.to(direct.dtype).view(-1, *direct.shape[1:])
        found.append(direct)
    return found


@torch.no_grad()
def parts_of(
    flow: Flow, direct: Float[Tensor, "T B S"], starts: Sequence[int]
) -> list[dict[str, Scaled]]:
    """The parts by lag that this would have in the place of dL/ds_t, for each bin."""
    lags = Lags(lag_bins(starts, flow.steps))
    return rows_of(lags.parts(flow.unrolled, Entries.of(direct)))
