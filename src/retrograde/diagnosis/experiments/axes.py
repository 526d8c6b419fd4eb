"""Which axis of the data looks like time? Neighbours in time resemble each other.

r = sum_k z_k z_{k-1} / sum_k z_k^2     along one axis, z without its mean along that axis
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

LONG = 8
"""Both axes must be this long for an autocorrelation to mean anything."""

FEATURES = 16
"""The first features of an input are compared with the target."""

HIGH, LOW = 0.7, 0.2
"""A smooth series has more than the one; noise has less than the other."""


def likely_swapped(x: Float[Tensor, "T B I"]) -> tuple[float, float] | None:
    """The autocorrelations along steps and samples, if the steps are noise and the samples smooth.

    Of the features that vary along both axes; None where nothing is conspicuous.
    """
    if min(x.shape[:2]) < LONG or not bool(x.isfinite().all()):
        return None
    along, across = (_autocorrelation(each.double()) for each in (x, x.transpose(0, 1)))
    known = along.isfinite() & across.isfinite()
    if not bool(known.any()):
        return None
    steps, samples = float(along[known].mean()), float(across[known].mean())
    return (steps, samples) if samples > HIGH and steps < LOW else None


def is_next(target: Tensor, inputs: Sequence[Tensor], axis: int) -> bool:
    """Whether a target [A, B] is an input (or a feature of one) one place on along an axis."""
    rows, columns = target.shape
    if target.shape[axis] < 3:
        return False
    for each in inputs:
        if each.ndim not in (2, 3) or each.shape[0] < rows or each.shape[1] < columns:
            continue
        features = each[:rows, :columns].reshape(rows, columns, -1)[..., :FEATURES]
        own = target.narrow(axis, 0, target.shape[axis] - 1).unsqueeze(-1)
        following = features.narrow(axis, 1, target.shape[axis] - 1)
        varies = (following != following[:1, :1]).flatten(0, 1).any(0)
        if bool(((own == following).flatten(0, 1).all(0) & varies).any()):
            return True
    return False


def _autocorrelation(x: Float[Tensor, "A B I"]) -> Float[Tensor, "I"]:
    """Along the first axis, of each feature; NaN for one that does not vary along it."""
    z = x - x.mean(0)
    power = z.square().sum((0, 1))
    power = power.where(power > 1e-9 * x.square().sum((0, 1)), float("nan"))
    r: Tensor = (z[1:] * z[:-1]).sum((0, 1)) / power
    return r
