r"""What the past says of the loss: the gradient by lag, less what another sample's past gives.

For the lags l of a bin that starts at a, and a loss step t, let

    p = x_{<= t-a}              the past: what the state s_{t-a} was made of
    z = x_{t-a+1} .. x_t        what was read since, and y the target

The part of these lags is a function of all three, g_l(p, z, y). It has a mean that has nothing to
do with the past: where y follows from x_t by a curve, dL/ds_t and the gates that x_t opens vary
together, and the product has the same sign in every batch, at every lag. So a second sample lends
its past p':

    D_l = g_l(p, z, y) - g_l(p', z, y)

The states s_{t-a+1} .. s_t and the loss are computed anew from s'_{t-a}, and the adjoint goes back
through them into the other sample's own past. Where (z, y) is independent of p, both terms have
the same distribution, and

    E D_l = 0       for every network, every loss, and every dependence of y on z.

What is left is a dependence: E D_l = 0 fails only if the past says something of what comes after.
That may be of y, which is what is asked, or of z: series have inputs that depend on earlier ones.
Samples are therefore paired whose next inputs x_{t-a+1} are alike, so that p' could have come
before z: p and z then are nearly independent given x_{t-a+1}, as in a Markov chain (a conditional
permutation; Berrett, Wang, Barber and Samworth 2020). They are alike where the mean of the past
that they tell is, by canonical correlations; a sample without such a partner keeps its own past,
and D = 0. A memory of the inputs that is longer than that counts as signal.

What a linear readout of the present state explains of dL/ds_t is taken out of both terms: it only
adds noise.

References:
    Thomas B. Berrett, Yi Wang, Rina Foygel Barber and Richard J. Samworth, "The conditional
    permutation test for independence while controlling for confounders", Journal of the Royal
    Statistical Society B 82 (2020), arXiv 1807.05405.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, log2

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.decomposition import Flow
from retrograde.decomposition.by_lag import Lags
from retrograde.engine import Entries, Scaled, Unrolled, backpropagate, unroll
from retrograde.engine.lags import parts_by_lag
from retrograde.engine.scaling import times_power_of_two
from retrograde.horizons.seen import rows_of
from retrograde.horizons.unexplained import loss_steps

TOGETHER = 2**22
"""Windows are run together while their states are no more numbers than this, 16 MiB in float32."""


CLOSE = 0.1
"""Two samples lend each other a past if the means of the past that their next inputs tell differ by
no more than this share of its spread. Others would tell of the inputs instead of the targets."""

BY_CHANCE = 6
"""Squared canonical correlations of independent inputs stay below so many times I / (T B); of many
inputs the largest is 4 I / (T B)."""

SURE = 1e-6
"""Correlations that are nearer to 1 count as this near: rounding would tell samples apart."""

DEPENDENT = 1e-9
"""Directions of the inputs with so small a share of the variance follow from the others."""

ROUNDING = 256
"""A part counts as 0 up to so many rounding errors: of pairs that read the same and are asked the
same, as symbols are, the two terms of D cancel."""

FEWEST_PAIRED = 0.25
"""Where fewer of the samples find such a partner nothing is told."""

Ask = Callable[[Float[Tensor, "T1 B S"]], Float[Tensor, "T B S"]]
"""What is left of dL/ds_t when the loss is computed from other states."""


@torch.no_grad()
def parts_of_the_past(
    flow: Flow, left: Float[Tensor, "T B S"], ask: Ask, lags: Sequence[range]
) -> list[dict[str, Scaled]]:
    """D of one batch, for each bin: a row for each parameter.

    Args:
        flow: the recorded pass of the layer, of at least two samples.
        left: what is left of dL/ds_t when an explanation by the state is taken out.
        ask: gives the same for the states that another past leads to.
        lags: the bins.
    """
    unrolled = flow.unrolled
    own = rows_of(Lags(tuple(lags)).parts(unrolled, Entries.of(left)))
    found = []
    for bin_, mine in zip(lags, own, strict=True):
        windows = windows_of(flow, bin_.start)
        if not windows:
            found.append(mine)  # nothing: no loss step is so late
            continue
        states = unrolled.states.clone()
        for each in windows:
            states[each.ends + 1] = each.last
        entering, exponent = _entering(unrolled, windows, ask(states))
        theirs = _summed(unrolled, entering, exponent, len(bin_))
        both = {name: row.plus(theirs[name]) for name, row in mine.items()}
        rounding = log2(ROUNDING * torch.finfo(left.dtype).eps)
        found.append(both if _log2_size(both) > _log2_size(mine) + rounding else _zeros(mine))
    return found


def _log2_size(rows: Mapping[str, Scaled]) -> float:
    """log2 of the norm of all rows together."""
    squares = 2 * torch.cat([row.log2_norms() for row in rows.values()])
    return float(torch.logsumexp(squares * log(2), 0)) / log(2) / 2


def _zeros(rows: Mapping[str, Scaled]) -> dict[str, Scaled]:
    return {name: Scaled.of(torch.zeros_like(row.values)) for name, row in rows.items()}


@dataclass(frozen=True, eq=False)
class Windows:
    """Steps t-a .. t for some t: the first is the partner's own, the others follow upon its state.

    Attributes:
        ends: the t.
        partner: whose past it is, of each sample.
        unrolled: the windows, as so many samples of one pass.
    """

    ends: Int[Tensor, "N"]
    partner: Int[Tensor, "N B"]
    unrolled: Unrolled

    @property
    def last(self) -> Float[Tensor, "N B S"]:
        """The states s_t."""
        return self.unrolled.states[-1].view(*self.partner.shape, -1)

    def back(self, delta: Float[Tensor, "N B S"]) -> Scaled:
        """The adjoints of the partners' states s_{t-a}, by partner, from those of s_t."""
        direct = torch.zeros_like(self.unrolled.states[1:])
        direct[-1] = delta.flatten(0, 1)
        back = Scaled.of(torch.zeros_like(direct[:1]))
        for step in backpropagate(self.unrolled, Entries.of(direct)):
            back = step.delta
        of_sample = back.values[0].view_as(delta)
        of_partner = torch.zeros_like(delta).scatter_(1, _wide(self.partner, delta), of_sample)
        return Scaled(of_partner, back.exponent.expand(len(delta)))


@torch.no_grad()
def windows_of(flow: Flow, start: int) -> list[Windows]:
    """The windows of the bin that starts at a lag, as many together as their states allow.

    Args:
        flow: the recorded pass of the layer.
        start: a.
    """
    unrolled = flow.unrolled
    ends = torch.nonzero(loss_steps(flow)[start:]).squeeze(1) + start
    partner = _partners(unrolled.x[..., : flow.recorded.x.shape[2]], ends, start)
    most = max(1, TOGETHER // ((start + 1) * unrolled.states[0].numel()))
    found = []
    for some, other in zip(torch.split(ends, most), torch.split(partner, most), strict=True):
        if not len(some):
            continue
        first = some - start
        x = torch.stack([unrolled.x[first + step] for step in range(start + 1)])
        x[0] = x[0].gather(1, _wide(other, x[0]))
        before = unrolled.states[first]
        before = before.gather(1, _wide(other, before))
        run = unroll(unrolled.cell, x.flatten(1, 2), before.flatten(0, 1))
        found.append(Windows(some, other, run))
    return found


def _entering(
    unrolled: Unrolled, windows: Sequence[Windows], left: Float[Tensor, "T B S"]
) -> tuple[Float[Tensor, "T B S"], int]:
    """What the windows give to the states before them, and the exponent that it is in units of."""
    entering, exponent = torch.zeros_like(left), 0
    rows = [(each, each.back(left[each.ends])) for each in windows]
    known = [int(row.log2_scale().max()) for _, row in rows if bool(row.values.any())]
    if known:
        exponent = max(known)
    for each, row in rows:
        at = each.ends - (len(each.unrolled) - 1)
        entering[at] = times_power_of_two(row.values, (row.exponent - exponent).clamp(max=0))
    return entering, exponent


def _summed(
    unrolled: Unrolled, entering: Float[Tensor, "T B S"], exponent: int, lags: int
) -> Mapping[str, Scaled]:
    """The part of the first lags, with the sign turned."""
    total: dict[str, Scaled] = {}
    for part in parts_by_lag(unrolled, -entering, lags):
        total = {name: total[name].plus(row) if total else row for name, row in part.items()}
    return {name: Scaled(row.values, row.exponent + exponent) for name, row in total.items()}


@dataclass(frozen=True, eq=False)
class NextInput:
    """What each input says of the input before it: its canonical components.

    Attributes:
        value: of each step and sample, [T, B, K]. From one sample to another the mean of the past
            moves by the difference of these, in units of the spread that the next input leaves it.
    """

    value: Float[Tensor, "T B K"]

    @staticmethod
    def of(x: Float[Tensor, "T B I"]) -> "NextInput":
        """Of the inputs of a layer; canonical correlations that chance gives are left out."""
        flat = (x - x.mean((0, 1))).double()
        size, basis = torch.linalg.eigh(torch.einsum("tbi,tbj->ij", flat, flat))
        some = size > size[-1].clamp(min=torch.finfo(torch.float64).tiny) * DEPENDENT
        white = flat @ (basis[:, some] / size[some].sqrt())
        u, s, _ = torch.linalg.svd(torch.einsum("tbi,tbj->ij", white[1:], white[:-1]))
        rows, kept = x.shape[0] * x.shape[1], int(some.sum())
        s = s.clamp(max=1 - SURE)
        told = s.square() > BY_CHANCE * kept / rows
        weight = s[told] / (1 - s[told].square()).sqrt() * rows**0.5
        return NextInput(white @ u[:, told] * weight)

    def neighbours(self, at: Int[Tensor, "N"]) -> Int[Tensor, "N B"]:
        """Pairs of samples beside each other, where they are close; others have themselves."""
        value = self.value[at]
        numbers = torch.arange(value.shape[1], device=at.device)
        if value.shape[2] == 0:
            return numbers.roll(len(numbers) // 2).expand(len(at), -1)
        ranked = value[..., 0].argsort(1)
        beside = (numbers ^ 1).clamp(max=value.shape[1] - 1)
        inorder = value.gather(1, _wide(ranked, value))
        close = torch.linalg.vector_norm(inorder - inorder[:, beside], dim=2) <= CLOSE
        other = torch.where(close, ranked[:, beside], ranked)
        return torch.empty_like(ranked).scatter_(1, ranked, other)


def paired(flow: Flow) -> float:
    """The share of the samples that find another one to lend them a past, over all steps."""
    x = flow.recorded.x
    partner = NextInput.of(x).neighbours(torch.arange(1, len(x), device=x.device))
    own = torch.arange(x.shape[1], device=x.device)
    return float((partner != own).double().mean()) if len(partner) else 1.0


def _partners(x: Float[Tensor, "T B I"], ends: Int[Tensor, "N"], start: int) -> Tensor:
    """Whose past each sample gets, [N, B]: neighbours by their next input, in pairs.

    Where no input follows, or it says nothing of the past, half a batch away.
    """
    count = x.shape[1]
    if start == 0:
        return torch.arange(count, device=ends.device).roll(count // 2).expand(len(ends), count)
    return NextInput.of(x).neighbours(ends - start + 1)


def _wide(partner: Int[Tensor, "N B"], like: Float[Tensor, "N B D"]) -> Int[Tensor, "N B D"]:
    return partner.unsqueeze(-1).expand(-1, -1, like.shape[-1])
