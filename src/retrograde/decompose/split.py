"""A gradient split by the way that it came, lag by lag: what `by_route` and `by_crossing` give."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import charts
from retrograde.decompose.parts import shares
from retrograde.engine.scaling import Scaled


@dataclass(frozen=True, eq=False)
class Split:
    """The gradient of one parameter (or, as one vector, of all) in parts by way and lag.

    Attributes:
        parameter: the parameter's name, None for the whole gradient.
        kind: what the ways are: "route" or "crossings".
        ways: "direct" and the names of the routes, or the numbers of crossings ("8+" is 8 or more).
        lags: the lags of each part, as ranges.
        scaled: the parts as values and exponents of two, way by way, [W * M, ...].
    """

    parameter: str | None
    kind: str
    ways: tuple[str, ...]
    lags: tuple[range, ...]
    scaled: Scaled

    @property
    def log2(self) -> Float[Tensor, "W M"]:
        """log2 of the Frobenius norm of each part, float64; -inf for a part of zero."""
        return self.scaled.log2_norms().view(len(self.ways), -1)

    @property
    def norm(self) -> Float[Tensor, "W M"]:
        """The norms as plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    @property
    def share(self) -> Float[Tensor, "W M"]:
        """Signed share <part, G> / <G, G> of each part in the whole gradient G; they sum to 1."""
        return shares(self.scaled).view(len(self.ways), -1)

    def parts(self) -> Float[Tensor, "W M *R"]:
        """The parts as plain tensors of the parameter's shape; they sum to the gradient."""
        return self.scaled.plain().unflatten(0, (len(self.ways), -1))  # type: ignore[no-untyped-call, no-any-return]

    def chart(self) -> Any:
        """Sizes over lag as lines, shares stacked, as an Altair chart."""
        return charts.ways_by_lag(self.kind, self.ways, self.lags, self.log2, self.share)
