"""How far the parts are, in sum, from the gradient that autograd itself computed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from retrograde.engine.scaling import Scaled


class Residual(float):
    """The largest relative difference, ||sum of parts - grad|| / ||grad||, over the parameters.

    A float. Where autograd's own gradient left the range of its data type there is nothing to
    compare with: such parameters are left out, `note` names them, and the residual is NaN if none
    is left.
    """

    note: str

    def __new__(cls, value: float, note: str = "") -> "Residual":
        self = super().__new__(cls, value)
        self.note = note
        return self

    def __str__(self) -> str:
        if self != self:
            return self.note
        return f"{float(self):.1e}" + (f" ({self.note})" if self.note else "")


def residual(parts: Mapping[str, Scaled], gradients: Mapping[str, Tensor]) -> Residual:
    """Compare the summed parts with autograd's gradient, parameter by parameter."""
    differences, notes = [], []
    for name, whole in parts.items():
        grad = gradients[name]
        why = _out_of_range(grad, whole)
        if why:
            notes.append(f"autograd's gradient of {name} {why}")
            continue
        ours, theirs = _double(whole), grad.double()
        size = torch.linalg.vector_norm(theirs)
        differences.append(float(torch.linalg.vector_norm(ours - theirs) / size) if size else 0.0)
    return Residual(max(differences, default=float("nan")), "; ".join(notes))


def _double(whole: Scaled) -> Tensor:
    return Scaled(whole.values.double(), whole.exponent).plain().squeeze(0)


def _out_of_range(grad: Tensor, whole: Scaled) -> str:
    if not bool(grad.isfinite().all()):
        return "is infinite or NaN in its data type"
    peak, range_ = float(grad.abs().max()), torch.finfo(grad.dtype)
    log2 = float(whole.log2_norms())
    if peak == 0 and log2 > -torch.inf:
        return f"is 0 in its data type, where the exact one has norm 2^{log2:.0f}"
    if 0 < peak < range_.tiny / range_.eps:
        return "is so small that its data type loses digits"
    return ""
