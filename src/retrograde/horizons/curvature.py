"""How dL/ds_t follows from h_t in the loss itself, where the loss cannot be computed again.

    A = E[delta_t d_t^T] (E[d_t d_t^T] / 2 + r)^-1      d_t = h_t - h'_t

h'_t is what h_t would be after the past of another sample, up to t - 1. Where a loss is quadratic
in the outputs, delta_t = A h_t + m_t, and m_t follows from the targets. Where these are independent
of the past, so is m_t, and E[m_t d_t^T] = 0, so that d_t tells A from a dependence of the targets
on the state: d_t is an instrument for h_t, and E[h_t d_t^T] = E[d_t d_t^T] / 2, as the pasts are
alike. What A leaves of delta_t then holds nothing of the past. A loss that is not quadratic is
taken for that; and what the targets have of the past, and the state shows in a straight line, is
taken out with it. The ridge r, of the size of the sampling error of E[d_t d_t^T], leaves directions
alone in which the past hardly moves h_t.
"""

from collections.abc import Sequence

import torch

from retrograde.decomposition import Flow
from retrograde.horizons.another_past import windows_of
from retrograde.horizons.unexplained import ROUNDING, Readout, loss_steps

RIDGE = 0.1
"""r over the variance of h_t, times the root of the number of rows."""


@torch.no_grad()
def readout_of_the_loss(flows: Sequence[Flow]) -> Readout:
    """A, and the mean of what it leaves.

    Args:
        flows: a layer's passes in several batches, each of at least two samples.
    """
    first = flows[0]
    size, width = first.entries.direct.shape[2], first.unrolled.output.shape[2]
    slope = torch.zeros(size, width, dtype=torch.float64, device=first.entries.direct.device)
    spread, rows = slope.new_zeros(width, width), 0
    for flow in flows:
        for each in windows_of(flow, 1):
            output = flow.unrolled.output[each.ends]
            moved = (output - each.last[..., flow.unrolled.cell.output]).double().flatten(0, 1)
            slope += flow.entries.direct[each.ends].double().flatten(0, 1).T @ moved
            spread += moved.T @ moved / 2
            rows += len(moved)
    every = [(flow.unrolled.output, flow.entries.direct, loss_steps(flow)) for flow in flows]
    h, delta = (
        torch.cat([each[which][each[2]].double().flatten(0, 1) for each in every])
        for which in (0, 1)
    )
    ridge = RIDGE * h.var(0).mean() * rows**0.5 * torch.eye(width).to(spread)
    weight = torch.linalg.lstsq(spread + ridge, slope.T).solution if rows else slope.T
    bias = (delta - h @ weight).mean(0)
    return Readout(weight, bias, ROUNDING * torch.finfo(first.entries.direct.dtype).eps)
