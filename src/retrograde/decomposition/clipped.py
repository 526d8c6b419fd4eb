"""What clipping makes of a gradient: the parts before and after, for policies at any place.

Inside back-propagation a policy multiplies adjoints by factors, chosen once from the whole adjoint
of each step. At the end it comes to a factor for each element of the gradient. Both ways every part
is multiplied by what the whole was multiplied by, and the parts sum to the clipped gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrograde import charts
from retrograde.clipping import AbstractPolicy, clip
from retrograde.decomposition.bins import Bins
from retrograde.decomposition.parts import Parts, together
from retrograde.decomposition.rows import joined
from retrograde.engine import Scaled


class AbstractGradient(ABC):
    """What can be asked of the gradient of a pass and of a clipped one alike."""

    @property
    @abstractmethod
    def gradient(self) -> Mapping[str, Scaled]:
        """The whole gradient of each parameter, as one row [1, ...]."""

    @abstractmethod
    def names(self, parameter: str | None = None) -> tuple[str, ...]:
        """One parameter, or all of them for None."""

    @abstractmethod
    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts by lag."""

    @abstractmethod
    def by_route(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts by route and lag."""

    @abstractmethod
    def by_crossing(
        self, parameter: str | None = None, max_crossings: int = 8, bins: Bins = "octaves"
    ) -> Parts:
        """The parts by crossings and lag."""


Pass = TypeVar("Pass", bound=AbstractGradient)


@dataclass(frozen=True, eq=False)
class ClippedFlow(AbstractGradient, Generic[Pass]):
    """A pass before and after clipping; made by `Flow.clipped`.

    Attributes:
        before: the true gradient, taken apart.
        after: the pass with what acts inside back-propagation, before anything acts at the end.
        factors: by parameter, what each element is multiplied by at the end; empty where nothing
            acts there.
    """

    before: Pass
    after: Pass
    factors: Mapping[str, Float[Tensor, "..."]]

    @property
    def gradient(self) -> Mapping[str, Scaled]:
        """The clipped gradient of each parameter, as one row [1, ...]."""
        return {
            name: Scaled(whole.values * self.factors[name], whole.exponent)
            if name in self.factors
            else whole
            for name, whole in self.after.gradient.items()
        }

    def names(self, parameter: str | None = None) -> tuple[str, ...]:
        """One parameter, or all of them for None."""
        return self.before.names(parameter)

    def cosine(self, parameter: str | None = None) -> float:
        """Between the clipped and the true gradient of a parameter, or of all as one vector.

        Below 0 the clipped gradient leads uphill. NaN where either is 0.
        """
        names = self.before.names(parameter)
        clipped, true = (
            joined([gradient[name] for name in names]).normalised()[0].values.double().flatten()
            for gradient in (self.gradient, self.before.gradient)
        )
        sizes = torch.linalg.vector_norm(clipped) * torch.linalg.vector_norm(true)
        return float(clipped @ true / sizes)

    def kept(self, parameter: str | None = None) -> float:
        """The norm of the clipped gradient of a parameter, or of all, over that of the true one."""
        names = self.before.names(parameter)
        after, before = (
            joined([gradient[name] for name in names]).log2_norms()
            for gradient in (self.gradient, self.before.gradient)
        )
        return float(torch.exp2(after - before))

    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts of the clipped gradient by lag, as `Flow.by_lag` those of the true one."""
        return self._of_all(parameter, lambda name: self.after.by_lag(name, bins))

    def by_route(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts of the clipped gradient by route and lag, as `Flow.by_route`."""
        return self._of_all(parameter, lambda name: self.after.by_route(name, bins))

    def by_crossing(
        self, parameter: str | None = None, max_crossings: int = 8, bins: Bins = "octaves"
    ) -> Parts:
        """The parts of the clipped gradient by crossings and lag, as `Flow.by_crossing`."""
        return self._of_all(parameter, lambda n: self.after.by_crossing(n, max_crossings, bins))

    def chart(self, parameter: str | None = None) -> Any:
        """Shares by lag and by route before and after, with the cosine, as an Altair chart."""
        flows = (self.before, self)
        by_lag = [flow.by_lag(parameter) for flow in flows]
        by_route = [flow.by_route(parameter).share.sum(1) for flow in flows]
        return charts.clipping(
            by_lag[0].lags,
            (by_lag[0].share, by_lag[1].share),
            self.before.by_route(parameter).labels,
            (by_route[0], by_route[1]),
            self.cosine(parameter),
            self.kept(parameter),
        )

    def _of_all(self, parameter: str | None, ask: Callable[[str], Parts]) -> Parts:
        """The answer for each parameter, times its factors."""
        names = self.before.names(parameter)
        parts = [
            ask(name).times(self.factors[name]) if name in self.factors else ask(name)
            for name in names
        ]
        return parts[0] if parameter is not None else together(parts)


def factors_at_the_end(
    policy: AbstractPolicy, weights: Mapping[str, Tensor], gradient: Mapping[str, Scaled]
) -> dict[str, Tensor]:
    """What a policy at the end multiplies each element of these gradients by.

    Raises:
        ArgumentError: for a policy that looks back at earlier steps.
        NonFiniteError: for a gradient that is out of range.
    """
    layer = nn.Module()
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight.double()))
    true = {n: Scaled(g.values.double(), g.exponent).plain()[0] for n, g in gradient.items()}
    for name, parameter in layer.named_parameters():
        parameter.grad = true[name].clone()
    clip(layer, policy)
    return {
        name: torch.where(true[name] == 0, 1.0, parameter.grad / true[name]).to(weights[name].dtype)
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None
    }
