"""What parts are held as: all their numbers, or size and share of each.

Parts by time are hardly ever formed; they are measured, and formed where sums of them are asked
for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition.rows import joined, shares, summed
from retrograde.engine.scaling import Scaled
from retrograde.errors import ArgumentError

Former = Callable[[Int[Tensor, "N"], int], Mapping[str, Scaled]]
"""Forms sums of parts, parameter by parameter: the number of the sum that each part belongs to (-1:
to none) and how many sums there are; as many rows."""


@dataclass(frozen=True, eq=False)
class Formed:
    """Parts that were formed: all their numbers are there.

    Attributes:
        values: a row for each part.
        whole: the gradient that they are parts of, as one row; their sum if None.
    """

    values: Scaled
    whole: Scaled | None = None

    @cached_property
    def log2(self) -> Float[Tensor, "N"]:
        """log2 of the Frobenius norm of each part."""
        return self.values.log2_norms()

    @cached_property
    def share(self) -> Float[Tensor, "N"]:
        """Signed share of each part in the whole gradient."""
        return shares(self.values, self.whole)

    def rows(self) -> Scaled:
        """The parts themselves."""
        return self.values

    def grouped(self, groups: Int[Tensor, "N"], count: int) -> "Formed":
        """Sums of the parts that share a number, without those whose number is -1."""
        whole = self.values.total() if self.whole is None else self.whole
        return Formed(summed(self.values, groups, count), whole)


@dataclass(frozen=True, eq=False)
class Measured:
    """Parts of which size and share were found without forming them, or were all that was kept.

    Attributes:
        log2, share: of each part.
        whole: the gradient that they are parts of, as one row.
        names: the parameters whose gradients make up that row.
        former: forms sums of them after all; None where that is not possible.
    """

    log2: Float[Tensor, "N"]
    share: Float[Tensor, "N"]
    whole: Scaled | None = None
    names: tuple[str, ...] = ()
    former: Former | None = None

    def rows(self) -> Scaled:
        """The parts themselves, which are formed here."""
        return self._form(torch.arange(len(self.log2)), len(self.log2))

    def grouped(self, groups: Int[Tensor, "N"], count: int) -> "Formed | Measured":
        """Sums of the parts that share a number, without those whose number is -1."""
        kept = torch.nonzero(groups >= 0).squeeze(1)
        if len(kept) > count:
            return Formed(self._form(groups, count), self.whole)
        kept = kept[torch.argsort(groups[kept])]
        former = self.former and partial(_of_some, self.former, kept, len(groups))
        at = kept.to(self.log2.device)
        return Measured(self.log2[at], self.share[at], self.whole, self.names, former)

    def _form(self, groups: Int[Tensor, "N"], count: int) -> Scaled:
        if self.former is None:
            raise ArgumentError(
                "only the sizes and shares of these parts are known, as in a report or a map that "
                "was pooled; ask the flow, as in retrograde.decompose(recording).by_lag()"
            )
        rows = self.former(groups, count)
        parts = [rows[name] for name in self.names]
        return parts[0] if len(parts) == 1 else joined(parts)


def _of_some(
    former: Former, kept: Int[Tensor, "K"], places: int, groups: Int[Tensor, "K"], count: int
) -> Mapping[str, Scaled]:
    """Sums of some of the parts."""
    every = torch.full((places,), -1)
    every[kept] = groups
    return former(every, count)
