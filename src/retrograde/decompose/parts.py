"""What every decomposition does with its parts: shares in their sum, parameters joined."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.engine.scaling import Scaled, aligned, as_vectors


def shares(parts: Scaled, whole: Scaled | None = None) -> Float[Tensor, "N"]:
    """Signed share <part, G> / <G, G> of each row in G, the sum of all unless given; NaN if 0."""
    whole = (parts.total() if whole is None else whole).normalised()[0]
    direction = whole.values.flatten().double()
    inner = as_vectors(parts.values).double() @ direction / direction.square().sum()
    return inner * torch.exp2((parts.exponent - whole.exponent).double())


def joined(parts: Sequence[Scaled]) -> Scaled:
    """The parts of several parameters side by side, each row one vector."""
    sums = aligned(parts)
    return Scaled(torch.cat([as_vectors(one.values) for one in sums], 1), sums[0].exponent)
