"""The factors of a clipped pass, chosen once from the whole adjoint for every part of it."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import Factors
from retrograde.cells.clipped import policy_of
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
    delta, factors = torch.zeros_like(direct[:1]), list[Factors]()
    for k, step in unrolled.backwards():
        delta = delta + direct[k]
        if not bool(delta.isfinite().all()):
            raise NonFiniteError(
                f"the clipped adjoint becomes infinite or NaN at step {k}: the policy does not "
                "hold what grows there. Lower its threshold, or clip in float64"
            )
        pulled = unrolled.pull_back(k, step, delta)
        assert pulled.factors is not None
        factors.append(pulled.factors)
        delta = pulled.previous()
    return replace(unrolled, factors=tuple(reversed(factors)))
