"""The whole gradient of a pass: ours, the recorded one, and how nearly they should agree."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from retrograde.decomposition.replay import ends_as_recorded
from retrograde.decomposition.residual import Allowance, Residual, residual
from retrograde.decomposition.rounding import moved_by_rounding, rounding_of, whole_gradient
from retrograde.engine import Scaled, Unrolled
from retrograde.recording import Recorded

LOW = 2.0**-10
"""The rounding error from which on a precision is low: that of float16."""


@dataclass(frozen=True, eq=False)
class Whole:
    """What the parts of a pass should sum to, and by how much they may miss it.

    That is autograd's gradient. Where autograd knows none of what was done, because routes are cut
    or samples left out, it is the gradient pulled back in one row.

    Attributes:
        recorded: the pass, with autograd's gradients.
        unrolled: the cell that is taken apart, which need not be the recorded one.
    """

    recorded: Recorded
    unrolled: Unrolled

    @cached_property
    def gradient(self) -> Mapping[str, Scaled]:
        """The gradient of each parameter, as one row [1, ...] that holds the summed loss."""
        return whole_gradient(self.unrolled, self.recorded.direct)

    @property
    def is_autograds(self) -> bool:
        """Whether autograd has found this gradient too."""
        same = self.unrolled.cell is self.recorded.cell
        return same and bool(self.recorded.gradients)

    @property
    def expected(self) -> Mapping[str, Tensor]:
        """The gradients that the parts should sum to."""
        if self.is_autograds:
            return self.recorded.gradients
        return {name: row.plain().squeeze(0) for name, row in self.gradient.items()}

    @property
    def at_hand(self) -> Mapping[str, Scaled]:
        """Autograd's gradient, which saves a pass for our own; empty where it is less precise."""
        given, dtype = self.recorded.gradients, self.recorded.direct.dtype
        names = self.unrolled.cell.parameters
        if not self.is_autograds or self.rounding > torch.finfo(dtype).eps:
            return {}
        if any(name not in given or not given[name].isfinite().all() for name in names):
            return {}
        return {name: Scaled.of(given[name].to(dtype).unsqueeze(0)) for name in names}

    @property
    def rounding(self) -> float:
        """The coarsest rounding error in what the parts are compared with, and in the parts."""
        if self.is_autograds:
            return rounding_of(self.recorded)
        return float(torch.finfo(self.recorded.direct.dtype).eps)

    @cached_property
    def moved_by_rounding(self) -> Mapping[str, float]:
        """By how much of its norm rounding moves the gradient of each parameter."""
        return moved_by_rounding(replace(self.recorded, cell=self.unrolled.cell), self.rounding)

    @cached_property
    def forward_agrees(self) -> bool | None:
        """Whether the forward pass, run again, ends as the recorded one; None if not known."""
        return ends_as_recorded(self.recorded, self.unrolled, self.rounding)

    def residual(
        self,
        parts: Mapping[str, Scaled],
        grown: Callable[[], float],
        cancelling: Mapping[str, float] | None = None,
        sizes: Callable[[], Mapping[str, float]] | None = None,
    ) -> Residual:
        """The residual of some parts, and whether the precision of the pass allows it.

        Args:
            parts: their sum for each parameter, as one row.
            grown: finds how far the adjoint grows on its way, in powers of two.
            cancelling: how much larger the contributions of each parameter are than their sum.
            sizes: finds `cancelling` where that takes a pass, so that it is not known beforehand.
        """

        def reason(off: Mapping[str, float], sensitive: bool) -> str:
            return self._amplified(grown()) if sensitive else self._likely_reason(off)

        against = self.recorded.against
        if not self.is_autograds:
            against = "its own gradient, pulled back in one row,"
        allowance = Allowance(
            self.rounding,
            len(self.unrolled),
            cancelling or {},
            lambda: self.moved_by_rounding,
            reason,
            sizes,
        )
        return residual(parts, self.expected, allowance, against)

    def _amplified(self, grown: float) -> str:
        """Why rounding alone decides the gradient, in words."""
        amplified = (
            f"the pass amplifies rounding errors as it does the adjoint, by 2^{grown:.0f}"
            if grown >= 1
            else "its contributions cancel, or its units are saturated"
        )
        return (
            f"rounding alone decides this gradient: {amplified}. A model in float64 may give "
            "numbers that mean something"
        )

    def _likely_reason(self, off: Mapping[str, float]) -> str:
        """Why the parts may not add up to the gradient where rounding does not explain it."""
        if self.forward_agrees is False:
            return (
                "the forward pass, run again with the recorded weights, ends in another state: "
                "weights were changed in between, or the layer does more than its class"
            )
        if self.recorded.against:
            return (
                f"the cell does not do what led to {self.recorded.against}: its step differs, or "
                "its pull-back is not the derivative of its step"
            )
        reasons = (
            f"only the gradient of {', '.join(off)} differs, so the adjoints are right: a hook "
            "on the weight changes it, or a part of it does not come through the layer"
            if len(off) < len(self.unrolled.cell.parameters)
            else "a hook that changes gradients on their way back, an operation in the backward "
            "pass that is not the derivative, or weights that changed between the passes"
        )
        if self.rounding >= LOW:
            reasons += "; or low precision, for example underflow. Compare with float32"
        return reasons
