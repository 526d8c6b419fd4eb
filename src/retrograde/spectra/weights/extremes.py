"""Spectral radius and largest singular value of a matrix of any size.

Up to EXACT units all eigenvalues are found. Beyond it that takes minutes for a layer, and only the
outermost ones are asked for: those of a Krylov space of STEPS vectors come close.

Reference: Walter E. Arnoldi, "The principle of minimized iterations in the solution of the matrix
eigenvalue problem", Quarterly of Applied Mathematics 9 (1951).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 1024
STEPS = 200

TINY = 1e-12
"""A new direction this much shorter than the vector it is left of is rounding error."""


def is_exact(matrix: Float[Tensor, "N M"]) -> bool:
    """Whether the numbers below are exact for a matrix of this size, or estimates."""
    return max(matrix.shape) <= EXACT


def spectral_radius(matrix: Float[Tensor, "N N"]) -> float:
    """The largest modulus of an eigenvalue, max |lambda|.

    An estimate beyond EXACT rows: for matrices far from normal it may lie on either side.
    """
    if is_exact(matrix):
        return float(torch.linalg.eigvals(matrix).abs().max())
    return _outermost(lambda v: matrix @ v, matrix)


def largest_singular_value(matrix: Float[Tensor, "N M"]) -> float:
    """||W||_2, by which the matrix lengthens a vector at most; an estimate from below if large."""
    if is_exact(matrix):
        return float(torch.linalg.matrix_norm(matrix, 2))
    return float(_outermost(lambda v: matrix.T @ (matrix @ v), matrix) ** 0.5)


def _outermost(apply: Callable[[Tensor], Tensor], matrix: Tensor) -> float:
    """The largest modulus of a Ritz value after STEPS steps of Arnoldi, from a fixed start."""
    size = matrix.shape[1]
    basis = matrix.new_zeros(STEPS + 1, size)  # vectors in rows, side by side in memory
    hessenberg = matrix.new_zeros(STEPS + 1, STEPS)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[0] = start / torch.linalg.vector_norm(start)
    for step in range(STEPS):
        so_far = basis[: step + 1]
        v = apply(basis[step])
        length = torch.linalg.vector_norm(v)
        for _ in range(2):  # once more, as the first pass leaves what rounding gave it
            along = so_far @ v
            v = v - along @ so_far
            hessenberg[: step + 1, step] += along
        rest = torch.linalg.vector_norm(v)
        if rest <= TINY * length:
            return float(torch.linalg.eigvals(hessenberg[: step + 1, : step + 1]).abs().max())
        hessenberg[step + 1, step] = rest
        basis[step + 1] = v / rest
    return float(torch.linalg.eigvals(hessenberg[:STEPS]).abs().max())
