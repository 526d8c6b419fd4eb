"""What every decomposition does with its parts: shares in their sum, parameters joined."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.engine.scaling import Scaled, aligned


def shares(parts: Scaled) -> Float[Tensor, "N"]:
    """Signed share <part, G> / <G, G> of each row in the sum G of all; NaN if G is zero."""
    whole = parts.total().normalised()[0]
    direction = whole.values.flatten().double()
    inner = parts.values.flatten(1).double() @ direction / direction.square().sum()
    return inner * torch.exp2((parts.exponent - whole.exponent).double())


def joined(parts: Sequence[Scaled]) -> Scaled:
    """The parts of several parameters side by side, each row one vector."""
    sums = aligned(parts)
    return Scaled(torch.cat([one.values.flatten(1) for one in sums], 1), sums[0].exponent)
