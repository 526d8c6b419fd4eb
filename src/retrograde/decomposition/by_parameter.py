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
    numbers: list[Tensor] = []  # of the block that each entry belongs to
    log2: list[Tensor] = []
    for name, whole in gradient.items():
        of_this = cell.gates_of(name) or (None,)
        values, first = whole.values, len(parameters)
        number = torch.arange(values[0].numel(), device=values.device)
        if cell.structure.columns(name):  # gates lie in blocks of rows, or here of columns
            number = number % values.shape[-1] * len(of_this) // values.shape[-1]
        else:
            number = number * len(of_this) // len(number)
        once = len(dict.fromkeys(of_this))
        rounds = len(of_this) // once
        several = rounds > 1 and of_this == of_this[:once] * rounds
        for block, gate in enumerate(of_this):
            # Keras keeps both biases of a GRU in one, [2, 3 * units].
            parameters.append(f"{name}[{block // once}]" if several else name)
            gates.append(gate)
            rows = as_vectors(values)[:, number == block]
            log2.append(Scaled(rows, whole.exponent).log2_norms().squeeze(0))
        numbers.append(number + first)
    sizes = torch.stack(log2)
    share = torch.softmax(2 * sizes * torch.log(sizes.new_tensor(2.0)), 0)
    every = joined(list(gradient.values()))
    axes = ({"parameter": tuple(parameters), "gate": tuple(gates)},)
    former = partial(_blocks, every, torch.cat(numbers))
    return Parts.measured(axes, None, sizes, share, every, former)


def _blocks(
    every: Scaled, numbers: Int[Tensor, "P"], groups: Int[Tensor, "N"], count: int
) -> Mapping[str, Scaled]:
    """The whole gradient as one vector for each group, with zeros in place of other blocks."""
    number = groups.to(every.values.device)[numbers]
    inside = number == torch.arange(count, device=number.device).unsqueeze(1)
    return {"": Scaled(every.values * inside, every.exponent.expand(count))}
