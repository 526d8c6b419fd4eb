"""The polynomials in csrc/kernels.c: a minimax fit of exp.

    python scripts/activation_fit.py

exp(r) - 1 = r + r^2 q(r) on |r| <= ln(2) / 2. A Remez exchange makes the largest error of
q as small as a polynomial of the degree can; its points are those where the error is largest, until
they no longer move.
"""

import mpmath
import numpy

DEGREES = {"float": 4, "double": 9}
"""Of q: the error of the fit is a small part of the rounding of each type."""

mpmath.mp.dps = 50


def remez(degree: int) -> tuple[list[mpmath.mpf], mpmath.mpf]:
    """The coefficients of q, constant first, and the largest relative error of exp(r) - 1."""
    half = mpmath.log(2) / 2

    def target(r: mpmath.mpf) -> mpmath.mpf:
        return (mpmath.expm1(r) - r) / r**2 if abs(r) > 1e-20 else mpmath.mpf(1) / 2

    count = degree + 2
    points = [half * mpmath.cos(mpmath.pi * k / (count - 1)) for k in range(count)]
    grid = [half * mpmath.mpf(k) / 2000 for k in range(-2000, 2001)]
    values = [target(r) for r in grid]
    for _ in range(8):
        rows = [[p**n for n in range(degree + 1)] + [(-1) ** k] for k, p in enumerate(points)]
        solved = mpmath.lu_solve(mpmath.matrix(rows), mpmath.matrix([target(p) for p in points]))
        q = [solved[n] for n in range(degree + 1)]
        error = [mpmath.polyval(q[::-1], r) - v for r, v in zip(grid, values, strict=True)]
        # The largest error between two changes of sign.
        peaks, start = [], 0
        for k in range(1, len(grid) + 1):
            if k == len(grid) or error[k] * error[start] < 0:
                peaks.append(max(range(start, k), key=lambda at: abs(error[at])))
                start = k
        points = [grid[at] for at in peaks]
    assert len(points) == count, "the error does not alternate"
    relative = (abs(e * r**2 / mpmath.expm1(r)) for e, r in zip(error, grid, strict=True) if r)
    return q, max(relative)


def print_coefficients() -> None:
    for name, degree in DEGREES.items():
        q, error = remez(degree)
        print(f"{name}: largest relative error of exp(r) - 1 is {mpmath.nstr(error, 3)}")
        kind = numpy.float32 if name == "float" else numpy.float64
        for value in q:
            print(f"    {float(kind(float(value))).hex()},  // {mpmath.nstr(value, 12)}")


if __name__ == "__main__":
    print_coefficients()
