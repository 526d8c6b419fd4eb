"""What is rounding and what is a bug: the tolerance bands, for each precision.

The contract. Let eps be the rounding error of a precision, T the number of steps, and `moved` what
a disturbance of weights, inputs and states by one rounding, up or down at random, makes of a
quantity of the reference, relative to its size. A relative error up to

    allowed = max(4 eps (8 + sqrt(T)), 16 moved)

is rounding. Up to 8 times that it is `unclear`: a sum in another order, a fused kernel, perhaps a
lower precision inside; worth a look, no bug to report. Beyond that it is a difference: the
implementation computes something else. For a well-conditioned pass of T = 100 steps:

    precision   eps       rounding up to   a difference from
    float64     2.2e-16   1.6e-14          1.3e-13
    float32     1.2e-07   8.6e-06          6.9e-05
    bfloat16    7.8e-03   0.5              none: 8 bits tell too little
    float16     9.8e-04   0.070            0.5
"""

from typing import Literal

import torch

from retrograde.decomposition.residual import HALF, MARGIN, ROUNDINGS

UNCLEAR = 8.0
"""Up to this multiple of what rounding explains an error is unclear."""

Verdict = Literal["rounding", "unclear", "difference"]


def allowed(dtype: torch.dtype, steps: int, moved: float) -> float:
    """The relative error that rounding explains, at most 0.5."""
    eps = float(torch.finfo(dtype).eps)
    return float(min(HALF, max(ROUNDINGS * eps * (8 + steps**0.5), MARGIN * moved)))


def verdict(error: float, bound: float) -> Verdict:
    """What an error is; one that is no number is a difference."""
    if error <= bound:
        return "rounding"
    return "unclear" if error <= min(UNCLEAR * bound, HALF) else "difference"
