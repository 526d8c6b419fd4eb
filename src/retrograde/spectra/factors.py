"""The QR factorisations that exponents and singular values are read from, with rank followed.

    J_k^T Q_k = Q_{k-1} R_k

Where a step loses rank, some columns of J^T Q depend on those before them, and what QR puts in
their place is arbitrary. Such directions are lost for good. They are moved behind the others, which
would otherwise be made orthogonal to something arbitrary from there on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrograde.spectra.jacobians import Chain, Rows

SUSPECT = 2.0**-20
"""Factors that are so small beside the largest column make a step look for lost rank. Rounding can
hide it only behind columns that nearly depend on each other, and one of theirs is then as small."""

LOST = 2.0**-36
"""In a step that has lost rank, the first factor as small as this is that of a lost direction: it
is rounding, 2^-52 times the condition of the columns before it."""


@dataclass(frozen=True, eq=False)
class Factor:
    """One step of the factorisation.

    Attributes:
        k: the step.
        q: Q_{k-1}, shape [B, R, n].
        r: R_k, shape [B, n, n], its columns those of Q_k and its rows those of Q_{k-1}; the rows of
            lost directions are 0.
        logs: ln of the growth of each direction of Q_{k-1}, -inf for a lost one.
        moved: which direction of Q_k has become each of Q_{k-1}, None if none changed its place.
    """

    k: int
    q: Float[Tensor, "B R n"]
    r: Float[Tensor, "B n n"]
    logs: Float[Tensor, "B n"]
    moved: Int[Tensor, "B n"] | None


def factors(chain: Chain, n: int, start: Float[Tensor, "B R n"] | None = None) -> Iterator[Factor]:
    """The steps of the chain, the last one first, from n directions.

    Unless they are given, they are random and always the same, the first ones for every n. Unit
    vectors could lie in a part of the state that nothing leaves, as the lowest layer of a stack is.
    """
    q = _random(chain, n) if start is None else start
    live = torch.ones(chain.batch, n, dtype=torch.bool, device=q.device)
    r, moved = q, None  # until the first step is passed

    def between(rows: Rows) -> Rows:
        nonlocal q, r, live, moved
        columns = rows.permute(1, 2, 0)
        q, r = torch.linalg.qr(columns)
        moved, missing = None, _missing(r, live)
        if missing is not None:
            q, r, live, moved = _lost_last(columns, r, live, missing)
            r = r.gather(2, moved.argsort(1).unsqueeze(1).expand_as(r))
        return q.permute(2, 0, 1).contiguous()

    for k, _ in chain.follow(q.permute(2, 0, 1).contiguous(), between):
        r = r * live.unsqueeze(2)
        diagonal = r.diagonal(dim1=1, dim2=2)
        if moved is not None:
            diagonal = r.gather(2, moved.unsqueeze(2)).squeeze(2)
        yield Factor(k, q, r, diagonal.abs().log(), moved)


def _random(chain: Chain, n: int) -> Float[Tensor, "B R n"]:
    """n orthonormal directions."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(chain.size, generator=generator, dtype=torch.float64) for _ in range(n)]
    q: Tensor = torch.linalg.qr(torch.stack(start, 1)).Q
    return q.to(chain.unrolled.x.device).expand(chain.batch, -1, -1)


def _missing(r: Float[Tensor, "B n n"], live: Bool[Tensor, "B n"]) -> Int[Tensor, "B"] | None:
    """How many of the live directions a step has lost; None if it has lost none."""
    if not bool(_small(r, live, SUSPECT).any()):
        return None
    values = torch.linalg.svdvals(r * live.unsqueeze(1))
    resolved = r.shape[-1] * torch.finfo(r.dtype).eps * values[:, :1]
    missing = live.sum(1) - (values > resolved).sum(1)
    return missing if bool(missing.any()) else None


def _small(
    r: Float[Tensor, "B n n"], live: Bool[Tensor, "B n"], share: float
) -> Bool[Tensor, "B n"]:
    """Live directions whose factor is at most such a share of the largest live column."""
    largest = (r * live.unsqueeze(1)).norm(dim=1).amax(1, keepdim=True)
    small: Tensor = r.diagonal(dim1=1, dim2=2).abs() <= share * largest
    return live & small


def _lost_last(
    columns: Float[Tensor, "B R n"],
    r: Float[Tensor, "B n n"],
    live: Bool[Tensor, "B n"],
    missing: Int[Tensor, "B"],
) -> tuple[Float[Tensor, "B R n"], Float[Tensor, "B n n"], Bool[Tensor, "B n"], Int[Tensor, "B n"]]:
    """The factorisation with the lost columns behind the others; Q, R, who is left, and the order.

    The first small factor is that of a lost column; one after it may be small only because of what
    stands in the place of the first. So one is moved at a time, unless just as many are small.
    """
    order = torch.arange(live.shape[1], device=live.device).expand_as(live)
    q = columns  # at least one is missing, or this would not have been asked for
    while bool((missing > 0).any()):
        diagonal = torch.where(live, r.diagonal(dim1=1, dim2=2).abs(), torch.inf)
        small = _small(r, live, LOST) | (diagonal == diagonal.amin(1, keepdim=True))
        just_these = (small.sum(1) == missing).unsqueeze(1)
        lost = torch.where(just_these, small, small & (small.cumsum(1) == 1))
        lost &= (missing > 0).unsqueeze(1) & live
        missing = missing - lost.sum(1)
        live = live & ~lost
        behind = (~live).sort(dim=1, stable=True).indices
        live, order = live.gather(1, behind), order.gather(1, behind)
        q, r = torch.linalg.qr(columns.gather(2, order.unsqueeze(1).expand_as(columns)))
    return q, r, live, order
