"""Initialisations by name, each with its paper, for this package's modules and torch's alike.

torch adds two biases, b_ih and b_hh. Here a bias that a paper asks for stands in b_ih, and b_hh of
that gate is 0: setting both to 1 would make it 2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrograde import _checks
from retrograde.cells.gates import ACTIVATIONS, GRU_GATES, LSTM_GATES, Gate, Role, with_role
from retrograde.cells.generations import generation
from retrograde.cells.keras import gates_of_keras, kind_of, weights_of_keras
from retrograde.cells.position import Position
from retrograde.errors import ArgumentError
from retrograde.nn.modules import GRU, LSTM, RNN

Module = nn.LSTM | nn.GRU | nn.RNN | nn.LSTMCell | nn.GRUCell | nn.RNNCell | LSTM | GRU | RNN


@torch.no_grad()
def initialise(
    module: nn.Module,
    name: str,
    *,
    value: float = 1.0,
    horizon: int | None = None,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> None:
    """Set weights of a recurrent module, in place; what an initialisation is silent about stays.

    | name | sets |
    |---|---|
    | "torch" | every weight and bias to U(-1/sqrt(H), 1/sqrt(H)), torch's default |
    | "forget-bias" | the forget gate's bias to `value` |
    | "chrono" | b_f = log(u), u from U[1, horizon - 1], and b_i = -b_f |
    | "uniform-gate" | b_f = -log(1/u - 1), u from U[1/H, 1 - 1/H]: f is uniform |
    | "orthogonal" | each gate's recurrent block to `gain` times a random orthogonal matrix |
    | "identity" | W_hh to the identity, W_ih to N(0, 0.001^2), b to 0, of a relu RNN |

    A GRU's update gate keeps the state as a forget gate does, and gets the forget gate's bias.

    Args:
        module: an LSTM, GRU or RNN of this package or of torch.nn, or one of its cells; or an LSTM,
            GRU or SimpleRNN of Keras on its torch backend, whose bias (or the first row of it)
            stands for b_ih.
        name: a name from the table above, `retrograde.nn.initialisations`.
        value: the bias of "forget-bias".
        horizon: the number of steps that "chrono" spreads the units' time constants up to.
        gain: the singular values of "orthogonal".
        generator: the source of random numbers, torch's own if None.

    Raises:
        ArgumentError: for an unknown name (the message lists them), a module that is no recurrent
            layer or lacks the gate in question, or a horizon that is missing or below 3.

    References: forget bias: Gers et al. (2000), and Jozefowicz et al. (2015) for 1; chrono: Tallec
    and Ollivier (2018), arXiv 1804.11188; uniform gate: Gu et al. (2020), arXiv 1910.09890;
    orthogonal: Saxe et al. (2013), arXiv 1312.6120; identity: Le et al. (2015), arXiv 1504.00941.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> retrograde.nn.initialise(lstm, "forget-bias", value=1.0)
        >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0)[3:6]
        tensor([1., 1., 1.], grad_fn=<SliceBackward0>)
    """
    _checks.one_of("name", name, initialisations)
    if not isinstance(module, Module) and not kind_of(getattr(module, "cell", None)):
        raise ArgumentError(
            f"initialise takes one recurrent layer (an LSTM, GRU or RNN of torch.nn or "
            f"retrograde.nn); got {_checks.shown(module)}. Pass the layer inside your model"
        )
    value, gain = _checks.number("value", value), _checks.number("gain", gain)
    horizon = _checks.optional_whole("horizon", horizon, least=3)
    if generator is not None:
        _checks.instance("generator", generator, torch.Generator, "a torch.Generator")
    initialisations[name](_Target(module, name), _Options(value, horizon, gain, generator))


@dataclass(frozen=True)
class _Options:
    value: float
    horizon: int | None
    gain: float
    generator: torch.Generator | None

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=self.generator)


@dataclass(frozen=True)
class _Target:
    """The weights of a module, gate by gate; gates are asked for by their role."""

    module: Any
    name: str

    @property
    def keras(self) -> str:
        """Which layer of Keras it is; empty if it is none."""
        return "" if isinstance(self.module, Module) else kind_of(self.module.cell)

    @property
    def gates(self) -> tuple[Gate, ...]:
        if self.keras:
            return gates_of_keras(self.module.cell)
        if isinstance(self.module, LSTM):
            return generation(self.module.generation).blocks
        if isinstance(self.module, nn.LSTM | nn.LSTMCell):
            return LSTM_GATES
        if isinstance(self.module, nn.GRU | nn.GRUCell | GRU):
            return GRU_GATES
        return (Gate("hidden", ACTIVATIONS[self.module.nonlinearity], "candidate"),)

    @property
    def hidden(self) -> int:
        """The number of units."""
        return int(self.module.units if self.keras else self.module.hidden_size)

    @property
    def weights(self) -> dict[str, Tensor]:
        """Weights and biases by their names in torch, of which those of Keras' are views."""
        if self.keras:
            return weights_of_keras(self.module.cell)
        return dict(self.module.named_parameters(recurse=False))

    @property
    def relu(self) -> bool:
        """Whether it is a plain RNN with relu."""
        if self.keras == "SimpleRNN":
            return getattr(self.module.cell.activation, "__name__", "") == "relu"
        plain = isinstance(self.module, nn.RNN | nn.RNNCell | RNN)
        return plain and self.module.nonlinearity == "relu"

    def every(self, kind: str) -> Iterator[dict[Gate, Tensor]]:
        """The blocks of every weight of that kind (layer by layer), by gate."""
        for name, weight in self.weights.items():
            if name == kind or Position.of(name.removeprefix(kind)) is not None:
                yield dict(zip(self.gates, weight.chunk(len(self.gates)), strict=True))

    def set_bias(self, role: Role, draw: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Set b_ih of the gate of a role and clear its b_hh; what was set, layer by layer."""
        found = with_role(self.gates, role)
        if not found:
            raise ArgumentError(
                f"initialisation {self.name!r} sets the bias of a gate that {self.module!r} lacks"
            )
        if not any(name.startswith("bias") for name in self.weights):
            no = "use_bias" if self.keras else "bias"
            raise ArgumentError(
                f"initialisation {self.name!r} sets a bias, and {self.module!r} has {no}=False"
            )
        (gate,) = found
        for gates in self.every("bias_hh"):
            gates[gate].zero_()
        return [gates[gate].copy_(draw(gates[gate])) for gates in self.every("bias_ih")]


def _torch(target: _Target, options: _Options) -> None:
    bound = target.hidden**-0.5
    for weight in target.weights.values():
        weight.copy_(options.uniform(weight, -bound, bound))


def _forget_bias(target: _Target, options: _Options) -> None:
    target.set_bias("forget", lambda bias: torch.full_like(bias, options.value))


def _chrono(target: _Target, options: _Options) -> None:
    horizon = options.horizon
    if horizon is None:
        raise ArgumentError("chrono needs horizon=, the longest lag in steps, of at least 3")
    drawn = target.set_bias(
        "forget", lambda bias: torch.log(options.uniform(bias, 1.0, horizon - 1.0))
    )
    if with_role(target.gates, "input"):
        mirrored = iter(drawn)
        target.set_bias("input", lambda _: -next(mirrored))


def _uniform_gate(target: _Target, options: _Options) -> None:
    edge = 1 / target.hidden
    if edge > 0.5:
        raise ArgumentError("uniform-gate draws from U[1/H, 1 - 1/H]: it needs H of at least 2")
    target.set_bias("forget", lambda bias: torch.logit(options.uniform(bias, edge, 1 - edge)))


def _orthogonal(target: _Target, options: _Options) -> None:
    for gates in target.every("weight_hh"):
        for block in gates.values():
            full = block.float() if block.dtype in (torch.float16, torch.bfloat16) else block
            block.copy_(nn.init.orthogonal_(full, options.gain, generator=options.generator))


def _identity(target: _Target, options: _Options) -> None:
    if not target.relu:
        raise ArgumentError(f"initialisation 'identity' is for a relu RNN; got {target.module!r}")
    for name, weight in target.weights.items():
        if name.startswith("weight_hh"):
            nn.init.eye_(weight)
        elif name.startswith("weight_ih"):
            weight.normal_(0, 0.001, generator=options.generator)
        else:
            weight.zero_()


initialisations: Mapping[str, Callable[[_Target, _Options], None]] = {
    "torch": _torch,
    "forget-bias": _forget_bias,
    "chrono": _chrono,
    "uniform-gate": _uniform_gate,
    "orthogonal": _orthogonal,
    "identity": _identity,
}
"""What `initialise` knows, by name."""
