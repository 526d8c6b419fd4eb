"""By parameter: the gradient in its blocks, layer by layer, gate by gate, weight by weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import charts
from retrograde.cells.base import AbstractCell
from retrograde.engine.scaling import Scaled, as_vectors


@dataclass(frozen=True, eq=False)
class ByParameter:
    """The blocks of the gradient, in the order of the parameters and of their gates.

    Attributes:
        blocks: (parameter, gate) of each block; the gate is None where a cell has none.
        log2: log2 of the Frobenius norm of each block, float64, shape [number of blocks].
        share: share <block, G> / <G, G> in the whole gradient G; they sum to 1.
    """

    blocks: tuple[tuple[str, str | None], ...]
    log2: Float[Tensor, "K"]
    share: Float[Tensor, "K"]

    @property
    def norm(self) -> Float[Tensor, "K"]:
        """The norms as plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    def chart(self) -> Any:
        """Sizes of the blocks as an Altair chart."""
        return charts.blocks(self.blocks, self.log2, self.share)


def by_parameter(cell: AbstractCell, gradient: Mapping[str, Scaled]) -> ByParameter:
    """Cut the gradient into its blocks. Blocks do not overlap, so a share is never negative."""
    blocks: list[tuple[str, str | None]] = []
    log2: list[Tensor] = []
    for name, whole in gradient.items():
        gates = cell.gates_of(name) or (None,)
        blocks_of = as_vectors(whole.values).chunk(len(gates), 1)  # gates lie in blocks of rows
        for gate, rows in zip(gates, blocks_of, strict=True):
            blocks.append((name, gate))
            log2.append(Scaled(rows, whole.exponent).log2_norms().squeeze(0))
    sizes = torch.stack(log2)
    share = torch.softmax(2 * sizes * torch.log(sizes.new_tensor(2.0)), 0)
    return ByParameter(tuple(blocks), sizes, share)
