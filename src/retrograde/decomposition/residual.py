"""How far the parts are, in sum, from the gradient that autograd itself computed; and how far is
too far, so that what rests on them is void."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retrograde.engine.scaling import Scaled

ROUNDINGS = 4.0
"""Rounding errors allowed for each of (8 + sqrt(T)) steps. Saturated units and chaos need more, and
are measured; tests/decomposition/test_void.py draws passes in all data types and holds them to the
bound."""

MARGIN = 16.0
"""Allowed multiple of what rounding moves, which is measured once, with errors drawn at random."""

HALF = 0.5
"""A gradient that rounding decides to no better than half of its size confirms nothing."""

UNDERFLOW = 16
"""A gradient of 0 is an underflow where the exact one is within this many powers of two, for each
element, of the smallest number that the pass may have held."""


class Residual(float):
    """The largest relative difference, ||sum of parts - grad|| / ||grad||, over the parameters.

    A float. Where autograd's own gradient left the range of its data type there is nothing to
    compare with: such parameters are left out, `note` names them, and the residual is NaN if none
    is left.

    It is rounding error, and as large as the precision of the pass allows. Beyond that the parts
    are not those of this gradient, and whatever rests on them is void. What is allowed, for each
    parameter and never more than 0.5, is

        4 eps (8 + sqrt(T)) max(1, sum over t, k of ||C[t,k]|| / ||grad||)

    with eps the rounding error of the arithmetic that the pass ran in (bfloat16 under autocast,
    TensorFloat-32 on a GPU), T the number of steps, and the last factor for contributions that
    cancel. Where a residual is larger, what rounding does to this pass is measured: 16 times what
    the gradient moves between float32 and float64, or under a disturbance of all numbers by one
    rounding, is allowed as well. A parameter whose gradient rounding moves by half of its size or
    more tells nothing, and is left out; if rounding so decides all that differ, the pass is void,
    being sensitive to rounding.

    Attributes:
        bound: the largest value that this residual might have.
        ok: whether it is within the bound; False: what rests on the parts is void. A NaN, for which
            there is nothing to compare with, is no proof against them.
        note: which parameters are left out, and the likely reason where the residual is void.
        against: what the parts are compared with.
        sensitive: whether rounding alone explains that it is void: the parts are then those of a
            pass that a rounding separates from the one that ran, and their sizes hold for both.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(lstm) as recording:
        ...     lstm(torch.ones(20, 4, 2))[0][-1].sum().backward()
        >>> residual = retrograde.decompose(recording).residual
        >>> residual.ok, residual < residual.bound, residual.note
        (True, True, '')
    """

    note: str
    bound: float
    against: str
    sensitive: bool

    def __new__(
        cls,
        value: float,
        note: str = "",
        bound: float = math.inf,
        against: str = "autograd's gradient",
        sensitive: bool = False,
    ) -> "Residual":
        self = super().__new__(cls, value)
        self.note, self.bound, self.against, self.sensitive = note, bound, against, sensitive
        return self

    def __reduce__(self) -> tuple[type["Residual"], tuple[float, str, float, str, bool]]:
        return Residual, (float(self), self.note, self.bound, self.against, self.sensitive)

    @property
    def ok(self) -> bool:
        """Whether the parts add up as well as the precision of the pass allows."""
        return not self > self.bound

    def __str__(self) -> str:
        if self != self:
            return self.note
        return f"{float(self):.1e}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Allowance:
    """What a residual is judged by.

    Attributes:
        rounding: the rounding error of the pass.
        steps: T.
        cancelling: how much larger the contributions of each parameter are than their sum.
        measure: measures how far rounding moves the gradient of each parameter.
        reason: puts the likely reason in words, from the parameters that are off and whether
            rounding decides them.
        sizes: finds `cancelling` where that takes a pass, so that it is not known beforehand.
    """

    rounding: float
    steps: int
    cancelling: Mapping[str, float]
    measure: Callable[[], Mapping[str, float]]
    reason: Callable[[Mapping[str, float], bool], str]
    sizes: Callable[[], Mapping[str, float]] | None = None

    def bound(self, name: str) -> float:
        """That of a parameter, as long as nothing is measured."""
        cancelling = max(1.0, self.cancelling.get(name, 1.0))
        return min(HALF, ROUNDINGS * self.rounding * (8 + math.sqrt(self.steps)) * cancelling)


def residual(
    parts: Mapping[str, Scaled],
    gradients: Mapping[str, Tensor],
    allowance: Allowance,
    against: str = "",
) -> Residual:
    """Compare the summed parts with a gradient, parameter by parameter."""
    differences: dict[str, float] = {}
    notes = []
    against = against or "autograd's gradient"
    for name, whole in parts.items():
        grad = gradients[name]
        why = _out_of_range(grad, whole, allowance.rounding)
        if why:
            whose = "autograd's" if against.startswith("autograd's") else "the given"
            notes.append(f"{whose} gradient of {name} {why}")
            continue
        differences[name] = _difference(whole, grad)
    bounds = {name: allowance.bound(name) for name in differences}
    off = [name for name in differences if differences[name] > bounds[name]]
    if off and allowance.sizes:
        allowance = replace(allowance, cancelling=allowance.sizes(), sizes=None)
        bounds = {name: allowance.bound(name) for name in differences}
        off = [name for name in off if differences[name] > bounds[name]]
    sensitive = False
    if off:
        moved = allowance.measure()
        allowed = {name: MARGIN * moved[name] for name in off}
        bounds |= {name: max(bounds[name], min(HALF, allowed[name])) for name in off}
        off = [name for name in off if differences[name] > bounds[name]]
        decided = [name for name in off if allowed[name] > HALF]
        alike = len(decided) == len(differences)
        sensitive = alike and any(math.isfinite(differences[name]) for name in decided)
        if decided and not sensitive:
            notes.append(f"rounding decides the gradient of {', '.join(decided)}")
            differences = {n: d for n, d in differences.items() if n not in decided}
            off = [name for name in off if name not in decided]
    if not differences:
        return Residual(math.nan, "; ".join(notes), against=against)
    largest = max(differences.values())
    excess = max(differences[name] / bounds[name] for name in differences)
    bound = largest / excess if 0 < excess < math.inf else min(bounds[n] for n in differences)
    if off:
        notes.insert(0, allowance.reason({name: differences[name] for name in off}, sensitive))
    return Residual(largest, "; ".join(notes), bound, against, sensitive)


def void_in_words(name: str, found: Residual) -> str:
    """What is wrong with the decomposition of a layer that is void."""
    return (
        f"{name!r}: the parts do not add up to {found.against}: the residual is "
        f"{float(found):.1e}, and the precision of the pass allows {found.bound:.1e}. What rests "
        f"on them is void. The likely reason: {found.note}"
    )


def of_mean(
    parts: Mapping[str, Scaled],
    gradients: Mapping[str, Tensor],
    bounds: Mapping[str, float],
    rounding: float,
    of_each: Sequence[Residual],
) -> Residual:
    """The residual of parts that were averaged over processes; void where that of a process is.

    Args:
        parts: the sum of the averaged parts of each parameter, as one row.
        gradients: the averaged gradients.
        bounds: by parameter, the norm of the difference that the residuals of all processes allow.
        rounding: the coarsest rounding error in any of them.
        of_each: the residual in each process, by rank.
    """
    for rank, local in enumerate(of_each):
        if not local.ok:
            note = f"in the process of rank {rank}: {local.note}"
            return Residual(local, note, local.bound, local.against, local.sensitive)
    notes = [f"rank {rank}: {local.note}" for rank, local in enumerate(of_each) if local.note]
    largest, bound = math.nan, HALF
    for name, whole in parts.items():
        grad = gradients[name]
        why = _out_of_range(grad, whole, rounding)
        if why:
            notes.append(f"the averaged gradient of {name} {why}")
            continue
        size = float(torch.linalg.vector_norm(grad.double()))
        allowed = min(HALF, bounds[name] / size) if size else HALF
        difference = _difference(whole, grad)
        if math.isnan(largest) or difference / allowed > largest / bound:
            largest, bound = difference, allowed
    return Residual(largest, "; ".join(notes), bound, of_each[0].against)


def _difference(whole: Scaled, grad: Tensor) -> float:
    """The relative difference; infinite where one of the two is zero and the other is not."""
    ours, theirs = _double(whole), grad.double()
    size = float(torch.linalg.vector_norm(theirs))
    difference = float(torch.linalg.vector_norm(ours - theirs))
    return difference / size if size else math.inf if difference else 0.0


def _double(whole: Scaled) -> Tensor:
    return Scaled(whole.values.double(), whole.exponent).plain().squeeze(0)


def _out_of_range(grad: Tensor, whole: Scaled, rounding: float) -> str:
    if not bool(grad.isfinite().all()):
        return "is infinite or NaN in its data type"
    peak, range_ = float(grad.abs().max()), torch.finfo(grad.dtype)
    log2 = float(whole.log2_norms())
    half = torch.finfo(torch.float16)
    smallest = range_.tiny * range_.eps
    if range_.bits >= 32:  # the compiled backend takes numbers below the normal range as 0
        smallest = range_.tiny
    if rounding >= half.eps:  # the pass may have run in float16, whatever its gradients are in
        smallest = max(smallest, half.tiny * half.eps)
    lost = UNDERFLOW + math.log2(smallest) + math.log2(grad.numel()) / 2
    if peak == 0 and -torch.inf < log2 <= lost:
        return f"is 0 in its data type, where the exact one has norm 2^{log2:.0f}"
    if 0 < peak < range_.tiny / range_.eps:
        return "is so small that its data type loses digits"
    return ""
