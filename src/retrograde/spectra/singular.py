"""All singular values of a product of very many matrices, each to full relative precision.

Multiplied out, a product keeps only the singular values within 2^52 of its largest, and after a few
hundred steps that is one of them. Here the product stays in a form that keeps all,

    P^T Q_0 = Q (R_1 R_2 ...) = Q diag(2^e) W,      W upper triangular, its rows of size 1,

and its singular values are found by rotating pairs of rows that carry their exponents until all are
orthogonal; their sizes are then the singular values. Before that one more factorisation, W^T = Q R
with the largest rows first, leaves rows R_ij 2^(e_j - e_i) with the same singular values, which are
the closer to orthogonal the further the exponents lie apart.

References: Hestenes, "Inversion of Matrices by Biorthogonalization and Related Results", J. SIAM 6
(1958), for the rotations; Demmel and Veselić, "Jacobi's Method is More Accurate than QR", SIAM J.
Matrix Analysis and Applications 13 (1992), for why rows of different sizes keep their precision;
Drmač and Veselić, "New Fast and Accurate Jacobi SVD Algorithm. I", ibid. 29 (2008), for the
factorisation before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import charts, plots
from retrograde.engine.scaling import NO_EXPONENT, power_of_two
from retrograde.spectra.factors import factors
from retrograde.spectra.jacobians import Chain

SWEEPS = 60
"""The largest number of sweeps over all pairs of rows; three to ten are enough."""

ORTHOGONAL = 4
"""Rows are left alone where their cosine is below this multiple of R eps."""


@dataclass(frozen=True, eq=False)
class SingularValues:
    """Singular values of products of Jacobians over windows that end at one step.

    Attributes:
        lengths: the windows, in steps.
        stop: the windows hold the steps stop - length .. stop - 1.
        log2: shape [W, B, n], descending; -inf for a direction that is lost.
        condition: log2 of the largest over the smallest of all (not only of the leading n), shape
            [W, B]; inf where rank is lost.

    The relative error of each is about T eps kappa, with eps = 2^-52 and kappa the condition of one
    step, not of the product. A step whose kappa is beyond 1/eps loses rank; if what it loses is a
    direction that had grown larger than others, these are known to about a bit only, and those
    below 2^-52 of the largest not at all: rounding in that step may let through more than is left.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.cells import Elman
        >>> weight = torch.diag(torch.tensor([2.0, 0.5]))
        >>> cell = Elman(torch.ones(2, 1), weight, activation="identity")
        >>> pass_ = retrograde.record_cell(cell, torch.ones(99, 1, 1), lambda h, s: s.sum())
        >>> found = retrograde.spectrum(pass_).singular_values([1, 99])
        >>> found.log2[:, 0].round(decimals=6)
        tensor([[  1.,  -1.],
                [ 99., -99.]], dtype=torch.float64)
        >>> found.condition.round(decimals=6)
        tensor([[  2.],
                [198.]], dtype=torch.float64)
    """

    lengths: tuple[int, ...]
    stop: int
    log2: Float[Tensor, "W B n"]
    condition: Float[Tensor, "W B"]

    @property
    def plain(self) -> Float[Tensor, "W B n"]:
        """As plain numbers, which may read 0 or inf where the range ends."""
        return torch.exp2(self.log2)

    def chart(self) -> Any:
        """log2 of the singular values over the length of the window, as an Altair chart."""
        return charts.singular_values(*self._drawn)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The same with Matplotlib, as (figure, axes).

        Args:
            ax: the axes to draw on; new ones if None.

        Raises:
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        return plots.singular_values(*self._drawn, ax)

    @property
    def _drawn(self) -> tuple[Sequence[int], list[int], int, list[list[float]]]:
        mean, size = self.log2.mean(1), self.log2.shape[-1]
        shown = charts.directions(size)
        return self.lengths, shown, size, mean[:, shown].tolist()


@torch.no_grad()
def singular_values(chain: Chain, lengths: Sequence[int]) -> Float[Tensor, "W B R"]:
    """log2 of all singular values of the products over the last steps of a chain, descending."""
    product, found = GradedProduct.identity(chain), {}
    longest = chain.between(len(chain) - max(lengths), len(chain))
    for number, factor in enumerate(factors(longest, chain.size), 1):
        product.multiply(factor.r)
        if number in lengths:
            found[number] = product.log2_singular_values()
    return torch.stack([found[length] for length in lengths])


@dataclass
class GradedProduct:
    """A product of upper triangular matrices, row i kept as 2^exponent[i] times a row of size 1."""

    rows: Float[Tensor, "B R R"]
    exponent: Int[Tensor, "B R"]

    @staticmethod
    def identity(chain: Chain) -> "GradedProduct":
        rows = chain.identity().transpose(0, 1).contiguous()
        return GradedProduct(rows, rows.new_zeros(rows.shape[:2], dtype=torch.int64))

    def multiply(self, r: Float[Tensor, "B R R"]) -> None:
        """r times the product so far: row i becomes sum_l r_il row_l."""
        exponent = self.exponent.unsqueeze(1)
        top = torch.where(r != 0, exponent, NO_EXPONENT).amax(2)
        scaled = r * power_of_two((exponent - top.unsqueeze(2)).clamp(max=0), r)
        self.rows, self.exponent = _normalised(scaled @ self.rows, top)

    def log2_singular_values(self) -> Float[Tensor, "B R"]:
        """Descending; -inf for a direction that is lost."""
        rows, exponent = self._nearly_orthogonal()
        rounds = [torch.tensor(pairs, device=rows.device) for pairs in _rounds(rows.shape[1])]
        for _ in range(SWEEPS):
            turned = [_rotate(rows, exponent, *pairs.T) for pairs in rounds]
            rows, exponent = _normalised(rows, exponent)
            if not any(turned):
                break
        log2 = torch.log2(rows.norm(dim=2)) + exponent
        return torch.where(exponent > NO_EXPONENT, log2, -torch.inf).sort(1, descending=True).values

    def _nearly_orthogonal(self) -> tuple[Float[Tensor, "B R R"], Int[Tensor, "B R"]]:
        """Other rows with the same singular values, which take fewer rotations."""
        exponent, order = self.exponent.sort(1, descending=True)
        rows = self.rows.gather(1, order.unsqueeze(2).expand_as(self.rows))
        r = torch.linalg.qr(rows.mT, mode="r").R
        apart = exponent.unsqueeze(1) - exponent.unsqueeze(2)
        return _normalised(r * power_of_two(apart.clamp(max=0), r), exponent)


def _rotate(
    rows: Float[Tensor, "B R R"],
    exponent: Int[Tensor, "B R"],
    first: Int[Tensor, "M"],
    second: Int[Tensor, "M"],
) -> bool:
    """Turn M disjoint pairs of rows, in place, until each pair is orthogonal; whether any was not.

    With x the larger row, y the other and r = 2^(e_y - e_x), the rotation by t = r tau is

        x' = c (x + r t y)      y' = c (y - tau x)      c = 1 / sqrt(1 + t^2)
        tau = sign(z) / (|z| + sqrt(r^2 + z^2))         z = (x.x - r^2 y.y) / (2 x.y)

    of which nothing leaves the range where r does: y' is then what is left of y beside x.
    """
    x, y, e_x, e_y = rows[:, first], rows[:, second], exponent[:, first], exponent[:, second]
    xx, yy, xy = (x * x).sum(2), (y * y).sum(2), (x * y).sum(2)
    least = ORTHOGONAL * rows.shape[2] * torch.finfo(rows.dtype).eps
    alike = xy.abs() > least * (xx * yy).sqrt()
    if not bool(alike.any()):
        return False
    swap = torch.log2(yy) / 2 + e_y > torch.log2(xx) / 2 + e_x
    e_x, e_y = torch.where(swap, e_y, e_x), torch.where(swap, e_x, e_y)
    xx, yy = torch.where(swap, yy, xx), torch.where(swap, xx, yy)
    swap = swap.unsqueeze(2)
    x, y = torch.where(swap, y, x), torch.where(swap, x, y)

    r = power_of_two(e_y - e_x, rows)
    z = (xx - r * r * yy) / (2 * torch.where(alike, xy, 1))
    tau = torch.where(z < 0, -1, 1) / (z.abs() + torch.hypot(r, z))
    tau = torch.where(alike, tau, 0).unsqueeze(2)
    r = r.unsqueeze(2)
    c = (1 + (r * tau).square()).rsqrt()
    rows[:, first], rows[:, second] = c * (x + r * r * tau * y), c * (y - tau * x)
    exponent[:, first], exponent[:, second] = e_x, e_y
    return True


def _normalised(
    rows: Float[Tensor, "B R R"], exponent: Int[Tensor, "B R"]
) -> tuple[Float[Tensor, "B R R"], Int[Tensor, "B R"]]:
    """The same numbers, every row of a size from 1/2 to 1; a zero row has NO_EXPONENT."""
    sizes = rows.norm(dim=2)
    shift = torch.frexp(sizes).exponent.long()
    rows = rows * power_of_two(-shift, rows).unsqueeze(2)
    return rows, torch.where(sizes > 0, exponent + shift, NO_EXPONENT)


def _rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of rows, in rounds of disjoint pairs (the circle method of tournaments)."""
    ring = list(range(count + count % 2))
    for _ in range(len(ring) - 1):
        half = len(ring) // 2
        pairs = zip(ring[:half], reversed(ring[half:]), strict=True)
        if count > 1:
            yield [(min(p), max(p)) for p in pairs if max(p) < count]
        ring = [ring[0], ring[-1], *ring[1:-1]]
