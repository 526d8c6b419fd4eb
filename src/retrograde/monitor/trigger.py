"""What makes a training run worth a closer look: a loss or a gradient that is not as before."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

REMEMBERED, LEAST = 50, 5
"""The median is of so many blocks at most, and says nothing before it has so many."""


@dataclass(frozen=True)
class Event:
    """A block whose loss or gradient norm set off the trigger.

    Attributes:
        step: the number of the block.
        reason: what was seen, in words.
    """

    step: int
    reason: str


class Trigger:
    """Says when a loss is not finite, or a gradient norm is not finite or jumps.

    A norm jumps if it is more than `factor` times the median of the 50 before it. What goes on is
    one event: the next one needs a block in between that is as usual.

    Args:
        factor: from which multiple of the median on a norm is a jump.

    Attributes:
        going_on: whether the latest block was not as usual.
    """

    def __init__(self, factor: float):
        self.factor = factor
        self._norms: deque[float] = deque(maxlen=REMEMBERED)
        self.going_on = False

    def seen(self, loss: float | None, norm: float) -> str:
        """The reason to look closer at what follows; "" if there is none.

        Args:
            loss: of the block, None if nobody told it.
            norm: of all gradients together; NaN may be one.
        """
        reason = self._reason(loss, norm)
        fresh = reason if not self.going_on else ""
        self.going_on = bool(reason)
        if not reason:
            self._norms.append(norm)
        return fresh

    def _reason(self, loss: float | None, norm: float) -> str:
        if loss is not None and not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the norm of the gradient is {norm}"
        usual = median(self._norms) if len(self._norms) >= LEAST else math.inf
        if norm > self.factor * usual:
            return (
                f"the norm of the gradient is {norm:.3g}, {norm / usual:.3g} times the median of "
                f"the {len(self._norms)} blocks before"
                if usual
                else f"the norm of the gradient is {norm:.3g}, and was 0"
            )
        return ""


def norm_of(parameters: Iterable[nn.Parameter]) -> float:
    """The L2 norm of all gradients together, as they lie in `.grad`; 0 if there is none."""
    grads = [p.grad.detach() for p in parameters if p.grad is not None]
    dense: list[Tensor] = [g.coalesce().values() if g.is_sparse else g for g in grads]
    return float(torch.nn.utils.get_total_norm(dense)) if dense else 0.0
