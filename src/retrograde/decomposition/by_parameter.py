"""By parameter: the gradient in its blocks, layer by layer, gate by gate, weight by weight."""

from collections.abc import Mapping
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from retrograde.cells.base import AbstractCell
from retrograde.decomposition.parts import Parts
from retrograde.decomposition.rows import joined
from retrograde.engine.scaling import Scaled, as_vectors


def by_parameter(cell: AbstractCell, gradient: Mapping[str, Scaled]) -> Parts:
    """Cut the gradient into its blocks. Blocks do not overlap, so a share is never negative."""
    parameters: list[str] = []
    gates: list[str | None] = []
    lengths: list[int] = []
    log2: list[Tensor] = []
    for name, whole in gradient.items():
        of_this = cell.gates_of(name) or (None,)
        blocks = as_vectors(whole.values).chunk(len(of_this), 1)  # gates lie in blocks of rows
        for gate, rows in zip(of_this, blocks, strict=True):
            parameters.append(name)
            gates.append(gate)
            lengths.append(rows.shape[1])
            log2.append(Scaled(rows, whole.exponent).log2_norms().squeeze(0))
    sizes = torch.stack(log2)
    share = torch.softmax(2 * sizes * torch.log(sizes.new_tensor(2.0)), 0)
    every = joined(list(gradient.values()))
    axes = ({"parameter": tuple(parameters), "gate": tuple(gates)},)
    former = partial(_blocks, every, torch.tensor(lengths))
    return Parts.measured(axes, None, sizes, share, every, former)


def _blocks(
    every: Scaled, lengths: Int[Tensor, "N"], groups: Int[Tensor, "N"], count: int
) -> Mapping[str, Scaled]:
    """The whole gradient as one vector for each group, with zeros in place of other blocks."""
    number = groups.repeat_interleave(lengths).to(every.values.device)
    inside = number == torch.arange(count, device=number.device).unsqueeze(1)
    return {"": Scaled(every.values * inside, every.exponent.expand(count))}
