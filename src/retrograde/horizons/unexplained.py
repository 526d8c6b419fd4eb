"""The part of the loss's gradient that a better readout of the present state would not remove.

    delta~_t = delta_t - A [h_t, 1]      A by least squares over all samples, steps and batches

In a fresh network most of dL/ds_t follows from the state itself: an output that is too large or has
the wrong mean. That part is the same in every batch, and whatever the recurrence sends back of it
is a signal at every lag, in data without any memory too. What is left of delta_t does not follow
from h_t (to first order), so that a signal in it comes from what was read earlier and is not in
the state. Nothing is left of a loss that is linear in the outputs, which asks the same of every
sample, nor of one that is quadratic in them and has no targets.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.decomposition import Flow
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import Lags
from retrograde.engine import Entries, Scaled
from retrograde.horizons.seen import rows_of

ROWS_FOR_EACH = 10
"""With fewer rows for each unit of the output a regression would explain noise, too; the mean alone
is taken out then."""

ROUNDING = 16
"""What is left counts as rounding up to so many rounding errors of dL/ds_t, of norm to norm."""


def unexplained(flows: Sequence[Flow]) -> list[Float[Tensor, "T B S"]]:
    """What is left of dL/ds_t of one layer in several batches; 0 where that is rounding alone.

    Args:
        flows: the layer's pass in each batch.
    """
    known, given = _rows(flows)
    ones = known.new_ones(len(known), 1)
    enough = len(known) >= ROWS_FOR_EACH * (known.shape[1] + 1)
    left = _left(flows, given, torch.cat((known, ones), 1) if enough else ones)
    found = []
    for flow in flows:
        direct = torch.zeros_like(flow.entries.direct)
        steps = _loss_steps(flow)
        rows, left = left.tensor_split([int(steps.sum()) * direct.shape[1]])
        direct[steps] = rows.to(direct.dtype).view(-1, *direct.shape[1:])
        found.append(direct)
    return found


def same_for_all(flows: Sequence[Flow]) -> bool:
    """Whether dL/ds_t is the same at every loss step of every sample, up to rounding."""
    _, given = _rows(flows)
    return not bool(_left(flows, given, given.new_ones(len(given), 1)).any())


def _loss_steps(flow: Flow) -> Bool[Tensor, "T"]:
    return flow.entries.direct.flatten(1).any(1)


def _rows(flows: Sequence[Flow]) -> tuple[Float[Tensor, "R H"], Float[Tensor, "R S"]]:
    """The output and dL/ds_t of every sample at every loss step of every batch."""
    output, direct = (
        torch.cat([each[_loss_steps(flow)].double().flatten(0, 1) for flow, each in pairs])
        for pairs in (
            [(flow, flow.unrolled.output) for flow in flows],
            [(flow, flow.entries.direct) for flow in flows],
        )
    )
    return output, direct


def _left(
    flows: Sequence[Flow], y: Float[Tensor, "R S"], x: Float[Tensor, "R D"]
) -> Float[Tensor, "R S"]:
    """What a regression leaves of y; 0 if that is rounding, as it was recorded or of the sums."""
    if not len(x):
        return y
    left = y - x @ torch.linalg.lstsq(x, y).solution
    recorded = max(torch.finfo(flow.entries.direct.dtype).eps for flow in flows)
    rounding = ROUNDING * (recorded + len(x) ** 0.5 * torch.finfo(torch.float64).eps)
    small = torch.linalg.vector_norm(left) <= rounding * torch.linalg.vector_norm(y)
    return torch.zeros_like(y) if small else left


@torch.no_grad()
def parts_of(
    flow: Flow, direct: Float[Tensor, "T B S"], starts: Sequence[int]
) -> list[dict[str, Scaled]]:
    """The parts by lag that this would have in the place of dL/ds_t, for each bin."""
    lags = Lags(lag_bins(starts, flow.steps))
    return rows_of(lags.parts(flow.unrolled, Entries.of(direct)))
