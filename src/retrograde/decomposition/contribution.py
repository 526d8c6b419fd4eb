"""A single contribution as a tensor: one loss step, one use step."""

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.decomposition.by_lag import Lags
from retrograde.engine import Entries, Unrolled


def contribution(
    unrolled: Unrolled, direct: Float[Tensor, "T B S"], parameter: str, t: int, k: int
) -> Float[Tensor, "*R"]:
    """C[t,k] of a parameter, by a pass with the row of step t alone."""
    alone = torch.zeros_like(direct)
    alone[t] = direct[t]
    entries = Entries.of(alone)
    if not len(entries):  # the loss does not enter at t
        return torch.zeros_like(unrolled.cell.parameters[parameter])
    lag = range(t - k, t - k + 1)
    around = (range(0, lag.start), lag, range(lag.stop, len(direct)))
    lags = Lags(tuple(each for each in around if each))
    return lags.parts(unrolled, entries)[parameter].parts()[lags.lags.index(lag)]
