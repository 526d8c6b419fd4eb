"""What makes a training run worth a closer look: a loss or a gradient that is not as before."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

REMEMBERED, LEAST = 50, 5
"""The median is taken of at most, and of at least, this many of the latest blocks."""


@dataclass(frozen=True)
class Event:
    """A block whose loss or gradient norm set off the trigger.

    Attributes:
        step: the number of the block.
        scalar: "retrograde/loss", or "retrograde/gradient_norm" for that of the whole model.
        value: its value.
        reason: what was seen, in words.

    Example:
        >>> from retrograde.monitor import Event
        >>> Event(812, "retrograde/loss", float("nan"), "the loss is nan").reason
        'the loss is nan'
    """

    step: int
    scalar: str
    value: float
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
        self.going_on = False
        self._norms: deque[float] = deque(maxlen=REMEMBERED)

    def seen(self, step: int, loss: float | None, norm: float) -> Event | None:
        """What is new about a block; None if it is as usual, or no better than the one before.

        Args:
            step: the number of the block.
            loss: of the block, None if nobody told it.
            norm: of all gradients together; NaN may be one.
        """
        event = self._event(step, loss, norm)
        fresh = event if not self.going_on else None
        self.going_on = event is not None
        if event is None:
            self._norms.append(norm)
        return fresh

    def _event(self, step: int, loss: float | None, norm: float) -> Event | None:
        if loss is not None and not math.isfinite(loss):
            return Event(step, "retrograde/loss", loss, f"the loss is {loss}")
        what = f"the norm of the gradient is {norm:.3g}"
        usual = median(self._norms) if len(self._norms) >= LEAST else math.inf
        if math.isfinite(norm) and norm <= self.factor * usual:
            return None
        if math.isfinite(norm):
            times = f"{norm / usual:.3g} times " if usual else "and 0 was "
            what += f", {times}the median of the {len(self._norms)} blocks before"
        return Event(step, "retrograde/gradient_norm", norm, what)


def norm_of(parameters: Iterable[nn.Parameter]) -> float:
    """The L2 norm of all gradients together, as they lie in `.grad`; 0 if there is none."""
    grads = [p.grad.detach() for p in parameters if p.grad is not None]
    dense: list[Tensor] = [g.coalesce().values() if g.is_sparse else g for g in grads]
    return float(torch.nn.utils.get_total_norm(dense)) if dense else 0.0
