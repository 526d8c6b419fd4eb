"""How large single contributions are at some lags, where no table of all pairs can be held."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.decomposition.by_time import ContributionNorms
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.entries import Entries
from retrograde.engine.unitwise import adjoints_at_lags
from retrograde.engine.unroll import Unrolled


@dataclass(frozen=True, eq=False)
class NormsAtLags:
    """log2 ||C[k + lag, k]|| for some lags and every use step k.

    Attributes:
        lags: 0, 1, 2, 3, 5, 9, 17, ..., the first lags of octaves.
        log2: by parameter, [L, T]; -inf where k + lag lies behind the end.

    Example:
        >>> import torch, retrograde
        >>> cell = retrograde.cells.MinGRU(torch.ones(2, 1), torch.tensor([-1.0, 0.0]))
        >>> flow = retrograde.decompose(
        ...     retrograde.record_cell(cell, torch.zeros(200, 1, 1), lambda h, s: h.sum())
        ... )
        >>> found = flow.norms_at_lags()
        >>> found.lags[:7], found.log2["bias_ih"].shape
        ((0, 1, 2, 3, 5, 9, 17), torch.Size([10, 200]))
        >>> steps = torch.tensor(found.lags)[1:6]  # each step keeps sigma(1) = 2^-0.45
        >>> (found.log2["bias_ih"][1:6, 100] - found.log2["bias_ih"][0, 100]) / steps
        tensor([-0.4519, -0.4519, -0.4519, -0.4519, -0.4519], dtype=torch.float64)
    """

    lags: tuple[int, ...]
    log2: Mapping[str, Float[Tensor, "L T"]]

    def mean(self, parameter: str) -> Float[Tensor, "L"]:
        """log2 of the mean norm at each lag, over the steps that have a loss so much later."""
        table = self.log2[parameter]
        count = table.shape[1] - torch.tensor(self.lags)
        return torch.logsumexp(table * math.log(2), 1) / math.log(2) - count.double().log2()


@torch.no_grad()
def norms_at_lags(unrolled: Unrolled, entries: Entries) -> NormsAtLags:
    """The norms of single contributions in a pass that `is_unitwise`."""
    parameters = tuple(unrolled.cell.parameters)
    lags, rows = list[int](), list[dict[str, Tensor]]()
    single = Entries.of(entries.direct, 1)  # one row holds the loss of all steps
    for lag, slabs in adjoints_at_lags(unrolled, entries):
        norms = ContributionNorms(single, len(unrolled), parameters)
        for slab in slabs:
            values, exponent = slab.values.unsqueeze(0), slab.exponent.unsqueeze(0)
            sizes = values.flatten(2).norm(dim=2)
            at = torch.full_like(exponent, lag)
            norms.update(AdjointSpan(slab.chunk.first, values, exponent, sizes, at, slab.chunk))
        lags.append(lag)
        rows.append({name: table[0] for name, table in norms.result().items()})
    log2 = {name: torch.stack([row[name] for row in rows]) for name in parameters}
    return NormsAtLags(tuple(lags), log2)
