"""Which initialisation the weights of a layer look like, each judged by a stated test.

A law is accepted if every value lies within its bounds and the empirical distribution stays within
sqrt(-log(ALPHA / 2) / 2n) of it: by the Dvoretzky-Kiefer-Wolfowitz inequality a true law is refused
with probability ALPHA at most. Few values refuse little, so each reason says how many there were;
and weights that were trained for a short time still look like their initialisation. Chrono has no
negative bias of the gate that keeps the state, the uniform gate must have both signs: of 8 units,
one draw in 128 has not.

References: Pascal Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality",
Annals of Probability 18(3) (1990); the initialisations: `retrograde.nn.initialise`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.spectra.weights.kinds import Kind

ALPHA = 1e-4
FEWEST = 7
"""Fewer values are not judged by their distribution."""
MOST = 1_000_000
"""Of more values, evenly spaced ones are looked at."""
ORTHOGONAL = 1e-4
"""Largest relative difference of R^T R from a multiple of I, in float32 and float64."""


@dataclass(frozen=True)
class Likeness:
    """What some of a layer's weights look like.

    Attributes:
        part: which weights.
        initialisation: a name that `retrograde.nn.initialise` takes, "zero" for zeros, or
            "glorot-uniform", which is Keras' default; None if they look like none of these.
        value: of "forget-bias" the bias; of "chrono" an estimate of its horizon in steps; of
            "orthogonal" and "identity" the factor; None for others.
        reason: the test and its outcome.

    Example:
        >>> import torch, retrograde
        >>> from retrograde.spectra import inspect_weights
        >>> rnn = torch.nn.RNN(2, 16)
        >>> retrograde.nn.initialise(rnn, "orthogonal")
        >>> likeness = inspect_weights(rnn).layers[0].likenesses[1]
        >>> likeness.part, likeness.initialisation
        ('recurrent weights', 'orthogonal')
    """

    part: str
    initialisation: str | None
    value: float | None
    reason: str


@dataclass(frozen=True)
class _Values:
    """Numbers in float64, with the rounding error of the precision they were kept in."""

    tensor: Tensor
    eps: float

    @staticmethod
    def of(*tensors: Tensor) -> "_Values":
        eps = max(torch.finfo(tensor.dtype).eps for tensor in tensors)
        return _Values(torch.cat([tensor.double().flatten() for tensor in tensors]), eps)

    @property
    def constant(self) -> float | None:
        """The one value of all, if there are several and they agree."""
        first, last = self.tensor.min(), self.tensor.max()
        same = len(self.tensor) > 1 and last - first <= 4 * self.eps * last.abs()
        return float(self.tensor[0]) if same else None

    def follow(self, law: Callable[[Tensor], Tensor]) -> bool:
        """Whether they may be independent draws from a law, given by its distribution function."""
        n = len(self.tensor)
        if n < FEWEST:
            return False
        some = self.tensor[:: -(-n // MOST)].sort().values
        n = len(some)
        above = torch.arange(1, n + 1, dtype=torch.float64) / n
        expected = law(some)
        distance = torch.maximum(above - expected, expected - above + 1 / n).max()
        return bool(distance <= math.sqrt(-math.log(ALPHA / 2) / (2 * n)))

    def uniform(self, low: float, high: float) -> bool:
        """Whether they may be draws from U[low, high]."""
        slack = self.eps * max(abs(low), abs(high))
        within = bool((self.tensor >= low - slack).all() and (self.tensor <= high + slack).all())
        return within and self.follow(lambda x: ((x - low) / (high - low)).clamp(0, 1))


def likenesses(
    weights: Mapping[str, Float[Tensor, "..."]],
    kind: Kind,
    hidden: int,
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Likeness, ...]:
    """What every part of a layer's weights looks like: matrices, then biases.

    Args:
        weights: by name without suffix, finite and floating-point.
        kind: of the layer; its gates are the blocks of rows.
        hidden: H, the number of units.
        names: what weights are called in reasons, where that is not their name.
    """
    found = [
        _matrix(part, weights[name], hidden)
        for name, part in (
            ("weight_ih", "input weights"),
            ("weight_hr", "projection"),
            ("weight_ch", "peepholes"),
            ("weight_gg", "weights between gates"),
        )
        if name in weights
    ]
    recurrent = _recurrent(weights["weight_hh"], len(kind.gates), hidden)
    return (*found[:1], recurrent, *found[1:], *_biases(weights, kind, hidden, names))


def _matrix(part: str, weight: Tensor, hidden: int) -> Likeness:
    """A matrix of weights that only defaults and the identity RNN say something about."""
    values = _Values.of(weight)
    if values.constant == 0:
        return Likeness(part, "zero", None, "every value is 0")
    if values.uniform(-(hidden**-0.5), hidden**-0.5):
        return _torchs(part, values, hidden)
    glorot = math.sqrt(6 / sum(weight.shape)) if weight.ndim == 2 else 0.0
    if glorot and values.uniform(-glorot, glorot):
        reason = f"{len(values.tensor)} values are uniform on +-{glorot:.3g}, sqrt(6 / (in + out))"
        return Likeness(part, "glorot-uniform", None, reason)
    if values.follow(lambda x: torch.special.ndtr(x / 0.001)):
        reason = f"{len(values.tensor)} values are distributed as N(0, 0.001^2)"
        return Likeness(part, "identity", None, reason)
    return _none(part, values, hidden)


def _recurrent(weight: Tensor, gates: int, hidden: int) -> Likeness:
    part, values = "recurrent weights", _Values.of(weight)
    if values.constant == 0:
        return Likeness(part, "zero", None, "every value is 0")
    blocks = [block.double() for block in weight.chunk(gates)]
    each = "each gate's R" if gates > 1 else "R"
    close = max(ORTHOGONAL, 4 * values.eps)
    factors = {_multiple_of_identity(block, close) for block in blocks}
    if len(factors) == 1 and (factor := factors.pop()) is not None:
        return Likeness(part, "identity", factor, f"{each} is {factor:.4g} I")
    gains = [_gain(block, close) for block in blocks]
    if all(gain is not None for gain in gains):
        gain = gains[0] if _agree(gains, close) else None
        words = "a multiple of I" if gain is None else f"{gain**2:.4g} I"
        return Likeness(part, "orthogonal", gain, f"R^T R is {words} for {each}, to {close:.0e}")
    whole = _gain(weight.double(), close)
    if whole is not None:
        reason = f"R^T R is {whole**2:.4g} I for all gates together, not for each"
        return Likeness(part, "orthogonal", whole, reason)
    if values.uniform(-(hidden**-0.5), hidden**-0.5):
        return _torchs(part, values, hidden)
    return _none(part, values, hidden, "; not orthogonal")


def _biases(
    weights: Mapping[str, Tensor], kind: Kind, hidden: int, names: Mapping[str, str]
) -> tuple[Likeness, ...]:
    """The bias of the gate that keeps the state, and all the others together."""
    biases = {name: weights[name] for name in ("bias_ih", "bias_hh") if name in weights}
    if not biases:
        return ()
    gates = {
        gate: [bias[number * hidden : (number + 1) * hidden] for bias in biases.values()]
        for number, gate in enumerate(kind.gates)
    }
    if kind.keeping is None or kind.coupled:
        return (_other_biases("biases", gates.values(), hidden),)
    keeping = kind.keeping
    mirror = gates.get(kind.written or "")
    called = tuple(names.get(name, name) for name in biases)
    likeness = _keeping_bias(keeping, gates.pop(keeping), mirror, called, hidden)
    if likeness.initialisation == "chrono" and kind.written is not None:
        del gates[kind.written]
    return (likeness, _other_biases("other biases", gates.values(), hidden))


def _keeping_bias(
    gate: str,
    biases: list[Tensor],
    mirror: list[Tensor] | None,
    names: tuple[str, ...],
    hidden: int,
) -> Likeness:
    part, values = f"bias of the {gate} gate", _Values.of(*biases)
    constants = [_Values.of(bias).constant for bias in biases]
    bound = hidden**-0.5
    drawn = [
        constant is None and _Values.of(bias).uniform(-bound, bound)
        for bias, constant in zip(biases, constants, strict=True)
    ]
    if all(constant == 0 for constant in constants):
        return Likeness(part, "zero", None, "every value is 0")
    told = [c is not None or d for c, d in zip(constants, drawn, strict=True)]
    if all(told) and not all(drawn) and any(constants):
        words = [
            f"{name} is torch's default" if constant is None else f"{name} is {constant:.4g}"
            for name, constant in zip(names, constants, strict=True)
        ]
        value = sum(constant for constant in constants if constant is not None)
        more = f"; torch adds them up to {value:.4g}" if sum(map(bool, constants)) > 1 else ""
        return Likeness(part, "forget-bias", value, f"{' and '.join(words)} in every unit{more}")
    if values.uniform(-bound, bound) and not any(constant == 0 for constant in constants):
        return _torchs(part, values, hidden)
    summed = _Values(torch.stack([bias.double() for bias in biases]).sum(0), values.eps)
    alone = len(biases) == 1 or any(constant == 0 for constant in constants)
    if alone and hidden > FEWEST:
        return _drawn_by_time(part, summed, mirror, hidden) or _none(part, values, hidden)
    return _none(part, values, hidden)


def _drawn_by_time(
    part: str, bias: _Values, mirror: list[Tensor] | None, hidden: int
) -> Likeness | None:
    """Chrono or uniform gate: laws of the horizon 1/(1 - f) = 1 + e^b."""
    b = bias.tensor
    u = b.exp().sort().values
    longest = float(u[-1])
    if bool((b >= 0).all()) and longest < math.inf:
        # Below the largest of draws from U[1, a] the others are draws from U[1, largest].
        below = _Values(u[:-1], bias.eps * max(1.0, float(b.max())))
        mirrored = mirror is None or _is_mirrored(mirror, b, bias.eps)
        if mirrored and below.uniform(1.0, longest):
            horizon = 2 + (longest - 1) * (hidden + 1) / hidden  # unbiased
            beside = "" if mirror is None else ", b_i = -b_f"
            reason = f"e^b is uniform on [1, {longest:.3g}] over {hidden} units{beside}"
            return Likeness(part, "chrono", horizon, reason)
    elif _Values(b.sigmoid(), bias.eps).uniform(1 / hidden, 1 - 1 / hidden):
        reason = f"sigma(b) is uniform on [1/H, 1 - 1/H] over {hidden} units"
        return Likeness(part, "uniform-gate", None, reason)
    return None


def _is_mirrored(mirror: list[Tensor], b: Tensor, eps: float) -> bool:
    opposite = -torch.stack([each.double() for each in mirror]).sum(0)
    return bool(((opposite - b).abs() <= 4 * eps * b.abs()).all())


def _other_biases(part: str, gates: Iterable[list[Tensor]], hidden: int) -> Likeness:
    values = _Values.of(*(bias for biases in gates for bias in biases))
    if values.constant == 0:
        return Likeness(part, "zero", None, "every value is 0")
    if values.uniform(-(hidden**-0.5), hidden**-0.5):
        return _torchs(part, values, hidden)
    return _none(part, values, hidden)


def _multiple_of_identity(block: Tensor, close: float) -> float | None:
    """v, if the block is v I and has more than one row."""
    if block.shape[0] != block.shape[1] or len(block) < 2:
        return None
    mean = float(block.diagonal().mean())
    apart = block - mean * torch.eye(len(block), dtype=block.dtype)
    return mean if mean and float(apart.abs().max()) <= close * abs(mean) else None


def _gain(block: Tensor, close: float) -> float | None:
    """g, if the rows or columns, whichever are fewer and at least two, are orthogonal of length g.

    All singular values are g then.
    """
    tall = block if block.shape[0] >= block.shape[1] else block.T
    lengths = tall.square().sum(0)
    mean = float(lengths.mean())
    if len(lengths) < 2 or not mean or float((lengths - mean).abs().max()) > close * mean:
        return None
    apart = tall.T @ tall - mean * torch.eye(len(lengths), dtype=block.dtype)
    return math.sqrt(mean) if float(apart.abs().max()) <= close * mean else None


def _agree(gains: list[float | None], close: float) -> bool:
    known = [gain for gain in gains if gain is not None]
    return max(known) - min(known) <= close * max(known)


def _torchs(part: str, values: _Values, hidden: int) -> Likeness:
    bound = hidden**-0.5
    reason = f"{len(values.tensor)} values are uniform on +-{bound:.3g}"
    return Likeness(part, "torch", None, reason)


def _none(part: str, values: _Values, hidden: int, more: str = "") -> Likeness:
    count, bound, largest = len(values.tensor), hidden**-0.5, float(values.tensor.abs().max())
    if count < FEWEST:
        return Likeness(part, None, None, f"{count} values are too few to tell")
    outside = f"{largest:.3g} is outside" if largest > bound else "not uniform in"
    return Likeness(part, None, None, f"{outside} torch's +-{bound:.3g}{more}")
