"""What is rounding and what is a bug: the tolerance bands, for each precision.

The contract. Let eps be the rounding error of a precision and T the number of steps. A relative
error up to

    allowed = 4 eps (8 + sqrt(T))

is rounding. Where an error is larger, `moved` is measured: what becomes of a quantity of the
reference, relative to its size, when weights, inputs, and the result of every operation in both
passes are moved by one rounding error of the precision, up or down at random, and rounded to it.
A rounding error is eps times the number, plus the smallest normal number of the precision (1.2e-38
in float32, in bfloat16, and in which float16 is computed; 2.2e-308 in float64) unless it is 0.
Then 16 moved is rounding, too. Up to 8 times what is allowed an error is `unclear`: a sum in
another order, a fused kernel, perhaps a lower precision inside; worth a look, no bug to report.
Beyond that it is a difference: the implementation computes something else.

Where 16 moved is more than half of the quantity itself, rounding decides it (a sum that cancels,
saturated units, numbers beyond the range): `allowed` is infinite, and an error of any size is
`unclear`. For a well-conditioned pass of T = 100 steps:

    precision   eps       rounding up to   a difference from
    float64     2.2e-16   1.6e-14          1.3e-13
    float32     1.2e-07   8.6e-06          6.9e-05
    bfloat16    7.8e-03   0.5              none: 8 bits tell too little
    float16     9.8e-04   0.070            0.5
"""

import math
from typing import Literal

import torch

from retrograde.decomposition.residual import HALF, MARGIN, ROUNDINGS

UNCLEAR = 8.0
"""Up to this multiple of what rounding explains an error is unclear."""

Verdict = Literal["rounding", "unclear", "difference"]


def allowed(dtype: torch.dtype, steps: int, moved: float = 0.0) -> float:
    """The relative error that rounding explains; infinite where it decides the quantity."""
    eps = float(torch.finfo(dtype).eps)
    if not MARGIN * moved <= HALF:
        return math.inf
    return float(min(HALF, max(ROUNDINGS * eps * (8 + steps**0.5), MARGIN * moved)))


def verdict(error: float, bound: float) -> Verdict:
    """What an error is; one that is no number is a difference, if anything can be told."""
    if bound == math.inf:
        return "unclear"
    if error <= bound:
        return "rounding"
    return "unclear" if error <= min(UNCLEAR * bound, HALF) else "difference"
