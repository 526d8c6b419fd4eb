"""Gradients that can be differentiated no further, and say so."""

from typing import Any

import torch
from torch import Tensor

from retrograde.errors import SecondDerivativeError


class Once(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated itself."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise SecondDerivativeError(
            "a recurrence of retrograde.nn was differentiated twice, but only its first derivative "
            "is implemented. For a second derivative (a gradient penalty, a Hessian) step "
            "its cell in a plain loop: state = module.cells()[0].step(x_k, state).state"
        )
