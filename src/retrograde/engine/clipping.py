"""The factors of a clipped pass, chosen once from the whole adjoint for every part of it."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.clipped import policy_of
from retrograde.engine.scan import Summed, scan
from retrograde.engine.unroll import Unrolled
from retrograde.errors import NonFiniteError


@torch.no_grad()
def with_factors(unrolled: Unrolled, direct: Float[Tensor, "T B S"]) -> Unrolled:
    """The same pass with the factors by which its cell's policies clip it; as it is without any.

    The adjoint is taken in plain numbers, as autograd takes it, since policies have thresholds.

    Args:
        unrolled: the pass.
        direct: what the loss gives to each state.

    Raises:
        NonFiniteError: if the adjoint leaves the range of its data type in spite of the policy.
    """
    if policy_of(unrolled.cell) is None:
        return unrolled
    summed = Summed(direct)
    for k, _ in scan(unrolled, summed):
        if not bool(summed.deltas.pop().isfinite().all()):
            raise NonFiniteError(
                f"the clipped adjoint becomes infinite or NaN at step {k}: the policy does not "
                "stop the growth there. Lower its threshold, or clip in float64"
            )
    return replace(unrolled, factors=tuple(reversed(summed.factors)))
