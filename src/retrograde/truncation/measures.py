"""How far a truncated gradient is from the whole one, and the arithmetic of such measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.engine.scaling import Scaled, times_power_of_two

Curve = Float[Tensor, "K"]
"""A number for each K."""


@dataclass(frozen=True, eq=False)
class Measures:
    """A truncated gradient g_K against the whole gradient g, for each K; numbers in float64.

    Sizes are kept as log2, so that those of gradients out of range compare too.

    Attributes:
        whole: log2 ||g||.
        size: log2 ||g_K||.
        missing: log2 ||g - g_K||.
        cosine: of g_K and g; NaN where either is 0.
        signs: the number of entries whose sign differs, zero being a sign of its own.
        entries: the number of entries.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(lstm) as recording:
        ...     lstm(torch.randn(20, 4, 2))[0][-1].sum().backward()
        >>> (measures,) = retrograde.decompose(recording).horizon().measures[""]  # of a batch
        >>> len(measures.bias)
        20
    """

    whole: float
    size: Curve
    missing: Curve
    cosine: Curve
    signs: Curve
    entries: int

    @property
    def bias(self) -> Curve:
        """||g - g_K|| / ||g||; NaN where g is 0."""
        return torch.exp2(self.missing - self.whole)

    @property
    def ratio(self) -> Curve:
        """||g_K|| / ||g||; NaN where g is 0."""
        return torch.exp2(self.size - self.whole)

    @staticmethod
    def together(parts: Sequence["Measures"]) -> "Measures":
        """Those of several gradients as one vector."""
        whole = torch.tensor([part.whole for part in parts], dtype=torch.float64).unsqueeze(1)
        size, missing = (
            torch.stack([getattr(part, name).cpu() for part in parts])
            for name in ("size", "missing")
        )
        total, of_size = root_of_squares(whole), root_of_squares(size)
        inner = torch.stack([part.cosine.cpu() for part in parts])
        scale = torch.exp2(size - of_size + whole - total)
        inner = torch.where(scale > 0, inner * scale, 0).sum(0)
        inner = torch.where(of_size.isfinite() & total.isfinite(), inner, torch.nan)
        signs = torch.stack([part.signs.cpu() for part in parts]).sum(0)
        return Measures(
            float(total),
            of_size,
            root_of_squares(missing),
            inner.clamp(-1, 1),
            signs,
            sum(part.entries for part in parts),
        )

    def extended(self, more: int) -> "Measures":
        """The same for so many more K, at which nothing more is truncated."""

        def longer(curve: Curve) -> Curve:
            return torch.cat((curve, curve[-1:].expand(more)))

        size, missing = longer(self.size), longer(self.missing)
        return Measures(
            self.whole, size, missing, longer(self.cosine), longer(self.signs), self.entries
        )


def root_of_squares(log2: Float[Tensor, "N *R"]) -> Float[Tensor, "*R"]:
    """log2 of the root of the sum of squares over the leading axis."""
    ln2 = torch.log(log2.new_tensor(2.0))
    return torch.logsumexp(2 * log2 * ln2, 0) / (2 * ln2)


class Total:
    """A sum in float64 whose exponent follows what is added, so that it leaves no range.

    Attributes:
        values: the sum.
        exponent: what it is in units of, as a power of two.
    """

    def __init__(self, like: Tensor):
        self.values: Tensor = torch.zeros_like(like, dtype=torch.float64)
        self.exponent = 0
        self._empty = True

    def add(self, values: Tensor, exponent: int) -> None:
        """Add numbers in units of 2^exponent."""
        if self._empty:
            self.values, self.exponent, self._empty = self.values + values, exponent, False
            return
        shift = exponent - self.exponent
        if abs(shift) <= BAND:
            self.values.add_(values, alpha=2.0**shift)
            return
        largest = values.abs().max(), self.values.abs().max()
        tops = [int(torch.frexp(each).exponent) for each in largest]
        if not bool(largest[0]):
            return
        top = max(tops[0] + exponent, tops[1] + self.exponent if bool(largest[1]) else -(2**60))
        rows = Scaled(
            torch.stack((values.double(), self.values)), torch.tensor([exponent, self.exponent])
        )
        moved = times_power_of_two(rows.values, rows.exponent - top)
        self.values, self.exponent = moved[0] + moved[1], top


BAND = 300
"""Numbers are added as they are where their units are within 2^BAND, well inside of float64."""


class Comparison:
    """Gradients that are compared with the whole one as they come, parameter by parameter.

    Args:
        whole: the whole gradient of each parameter, as one row.
    """

    def __init__(self, whole: Mapping[str, Scaled]):
        self._whole: dict[str, tuple[Tensor, int]] = {}
        for name, row in whole.items():
            centred = row.normalised()[0]
            self._whole[name] = (centred.values[0].double().flatten(), int(centred.exponent))
        zero = {name: values == 0 for name, (values, _) in self._whole.items()}
        self._zero = {name: entries for name, entries in zero.items() if bool(entries.any())}
        self._found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in whole}
        self._exponents: dict[str, list[int]] = {name: [] for name in whole}
        self._factors: list[float] = []

    def add(self, truncated: Mapping[str, Total], factor: float = 1.0) -> None:
        """The truncated gradient for the next K, times a factor."""
        self._factors.append(factor)
        for name, (whole, exponent) in self._whole.items():
            total = truncated[name]
            values = total.values.flatten()
            shift = 2.0 ** max(-1022, min(1000, total.exponent - exponent))
            difference = torch.sub(whole, values, alpha=factor * shift)
            product = values * whole
            same = torch.count_nonzero(product > 0)
            if name in self._zero:
                same = same + torch.count_nonzero(self._zero[name] & (values == 0))
            size, missing = map(torch.linalg.vector_norm, (values, difference))
            self._found[name].append((size, missing, product.sum(), same))
            self._exponents[name].append(total.exponent)

    def result(self) -> dict[str, Measures]:
        """What was found, by parameter."""
        found, factors = {}, torch.tensor(self._factors, dtype=torch.float64)
        for name, (whole, exponent) in self._whole.items():
            columns = zip(*self._found[name], strict=True)
            size, missing, inner, same = (torch.stack(each).cpu() for each in columns)
            norm = torch.linalg.vector_norm(whole).cpu()
            units = torch.tensor(self._exponents[name], dtype=torch.float64)
            found[name] = Measures(
                float(torch.log2(norm)) + exponent,
                torch.log2(size * factors) + units,
                torch.log2(missing) + exponent,
                (inner / size / norm).clamp(-1, 1),
                (len(whole) - same).double(),
                whole.numel(),
            )
        return found
