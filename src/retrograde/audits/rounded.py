"""Arithmetic of another precision, played in float64: every result is rounded at random.

What a disturbance of this kind makes of a quantity says how many of its digits rounding leaves,
whatever the reason: sums that cancel, units so saturated that 1 - h^2 is nothing but rounding,
numbers beyond the range of the precision. Below its smallest normal number digits are lost, and
much code gives 0 (torch's sigmoid(-90) in float32): there a result moves by that number.

Reference: Douglass Stott Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point
arithmetic", Technical Report CSD-970002, UCLA (1997).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

SLOPES = ("sigmoid_backward", "tanh_backward", "softplus_backward", "log_sigmoid_backward")
"""Operations that multiply what comes back, their first argument, by the slope of an activation."""


def smallest_normal(dtype: torch.dtype) -> float:
    """The smallest number with all the digits of the precision that results are computed in.

    float16 is computed in float32 and holds what lies below its own smallest normal number, 6e-5,
    to the nearest multiple of 6e-8, as all code does.
    """
    return float(torch.finfo(torch.float32 if dtype == torch.float16 else dtype).smallest_normal)


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds the result of every operation, also in the backward pass, to a precision.

    A result is first moved up or down by one rounding error of the precision, at random. The slope
    of an activation is at most about 1, and many take it as a difference from 1, as in
    y' = y (1 - y): what comes back through one moves by a rounding error of what went in.
    """

    def __init__(self, dtype: torch.dtype, seed: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype, self._eps = dtype, float(torch.finfo(dtype).eps)
        self._floor = smallest_normal(dtype)
        self._generator = torch.Generator().manual_seed(seed)

    def round(self, values: Tensor, by: Tensor | None = None) -> Tensor:
        """The values as this precision might hold them, in their own data type.

        Args:
            values: what is rounded.
            by: where given, an error is relative to the sum of both sizes.
        """
        if not values.is_floating_point():
            return values
        up = torch.randint(0, 2, values.shape, generator=self._generator).to(values)
        size = values if by is None else values.abs() + by.abs()
        by_one = self._eps * size + self._floor * (values != 0)  # a zero is no rounded number
        return (values + by_one * (2 * up - 1)).to(self._dtype).to(values.dtype)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        aliases = [result.alias_info for result in func._schema.returns]  # type: ignore[attr-defined]
        if not any(aliases):
            by = args[0] if func.__name__.partition(".")[0] in SLOPES else None
            return _each(lambda values: self.round(values, by), returned)
        if any(alias is not None and alias.is_write for alias in aliases):
            _each(lambda values: values.copy_(self.round(values)), returned)
        return returned  # views, of what is rounded already


def _each(change: Callable[[Tensor], Tensor], returned: Any) -> Any:
    """What an operation returned, which is one tensor but for few of them, with each changed."""
    if isinstance(returned, Tensor):
        return change(returned)
    return tree_map_only(Tensor, change, returned)
