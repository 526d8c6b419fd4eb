"""Gates and activation functions as values, from which the analysis learns what a cell does.

A cell says of each of its gates how it is activated and what it does to the state. Diagnosis,
bounds and horizons ask for the role, never for the name, which is the author's to choose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.errors import ArgumentError

Role = Literal["input", "forget", "candidate", "output", "reset", "state"]
"""What a gate does:

    input      multiplies what is written to the state
    forget     multiplies the state of the step before: at 1 nothing is lost (a GRU's update gate)
    candidate  is what is written: an LSTM's cell input g, a GRU's n, all of h in a plain RNN
    output     multiplies the state where it is read
    reset      multiplies the state where the candidate reads it
    state      is no gate but the activated state: an LSTM's h(c), which the output gate multiplies
"""


@dataclass(frozen=True)
class Activation:
    """A function applied to each pre-activation, y = phi(a), with its derivative in terms of y.

    Attributes:
        name: its name in `ACTIVATIONS`.
        function: phi, of a tensor of any shape.
        derivative: phi'(a) as a function of y = phi(a).
        largest_slope: gamma, the largest value of phi'.
        saturates: phi' goes to 0 on both sides of its maximum, as that of a sigmoid does and that
            of relu does not.

    Raises:
        ArgumentError: for functions that cannot be called, or a slope that is not positive.

    Example:
        >>> import torch
        >>> from retrograde.cells.gates import ACTIVATIONS
        >>> sigmoid = ACTIVATIONS["sigmoid"]
        >>> y = sigmoid.function(torch.zeros(1))
        >>> sigmoid.derivative(y), sigmoid.relative_slope(y)
        (tensor([0.2500]), tensor([1.]))
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    largest_slope: float
    saturates: bool = True

    def __post_init__(self) -> None:
        _checks.instance("name", self.name, str, "a text")
        _checks.function("function", self.function, "a -> y")
        _checks.function("derivative", self.derivative, "y -> phi'(a)")
        _checks.fields(self, largest_slope=_checks.positive, saturates=_checks.flag)

    def times_slope(
        self, factor: Float[Tensor, "*L H"], value: Float[Tensor, "*L H"]
    ) -> Float[Tensor, "*L H"]:
        """factor * phi'(a) in terms of y; torch has that of some functions as one operation."""
        at_once = _TIMES.get(self.derivative)
        return factor * self.derivative(value) if at_once is None else at_once(factor, value)

    def relative_slope(self, value: Float[Tensor, "*L H"]) -> Float[Tensor, "*L H"]:
        """phi'(a) / gamma in terms of y; 1 everywhere for a function that does not saturate."""
        if not self.saturates:
            return torch.ones_like(value)
        return self.derivative(value) / self.largest_slope


@dataclass(frozen=True)
class Gate:
    """One block of a cell's pre-activations, or another value of its step, and what it does.

    Attributes:
        name: the author's name for it; that of its tensor in `CellStep.activations`.
        activation: its activation function; None where that is not known.
        role: what it does to the state (see `Role`); None where the cell does not say. Rules of the
            diagnosis that depend on a role then do not apply.
        keeps: the part of the state that a forget gate multiplies, "c" in an LSTM, "h" in a GRU.

    Raises:
        ArgumentError: for an unknown role, a forget gate without `keeps`, or `keeps` without one.

    Example:
        >>> from retrograde.cells import GRU, Gate
        >>> from retrograde.cells.gates import ACTIVATIONS
        >>> Gate("leak", ACTIVATIONS["sigmoid"], "forget", keeps="h").role
        'forget'
        >>> import torch
        >>> [(g.name, g.role) for g in GRU(torch.zeros(6, 3), torch.zeros(6, 2)).gates]
        [('reset', 'reset'), ('update', 'forget'), ('candidate', 'candidate')]
    """

    name: str
    activation: Activation | None
    role: Role | None = None
    keeps: str = ""

    def __post_init__(self) -> None:
        _checks.instance("name", self.name, str, "a text")
        if self.activation is not None:
            _checks.instance("activation", self.activation, Activation, "an Activation or None")
        if self.role is not None:
            _checks.one_of("role", self.role, get_args(Role))
        _checks.instance("keeps", self.keeps, str, "the name of a part of the state")
        if (self.role == "forget") != bool(self.keeps):
            raise ArgumentError(
                f"gate {self.name!r}: keeps= names the part of the state that a forget gate "
                f"multiplies; got keeps={self.keeps!r} for the role {self.role!r}"
            )

    def suffixed(self, suffix: str, of_state: str) -> "Gate":
        """The same gate in a stack, where names carry the suffix of their layer."""
        keeps = self.keeps and self.keeps + of_state
        return replace(self, name=self.name + suffix, keeps=keeps)


def _identity(a: Tensor) -> Tensor:
    return a


def _wide_sigmoid(a: Tensor) -> Tensor:
    return 4 * torch.sigmoid(a) - 2


def _centred_sigmoid(a: Tensor) -> Tensor:
    return 2 * torch.sigmoid(a) - 1


def _sigmoid_slope(y: Tensor) -> Tensor:
    return y * (1 - y)


def _tanh_slope(y: Tensor) -> Tensor:
    return 1 - y * y


def _positive(a: Tensor) -> Tensor:
    return torch.where(a < 0, a.sigmoid(), a + 0.5)


def _positive_slope(y: Tensor) -> Tensor:
    return torch.where(y < 0.5, _sigmoid_slope(y), 1.0)


def _softplus_slope(y: Tensor) -> Tensor:
    return torch.where(y > 20, 1, -torch.expm1(-y))  # from there on torch's softplus is a line


def _relu_slope(y: Tensor) -> Tensor:
    return (y > 0).to(y.dtype)


def _wide_sigmoid_slope(y: Tensor) -> Tensor:
    return 1 - y * y / 4


def _centred_sigmoid_slope(y: Tensor) -> Tensor:
    return (1 - y * y) / 2


_TIMES: Mapping[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    _sigmoid_slope: torch.ops.aten.sigmoid_backward.default,
    _tanh_slope: torch.ops.aten.tanh_backward.default,
}
"""(factor, y) -> factor * phi'(a), by phi'."""

ACTIVATIONS: Mapping[str, Activation] = {
    one.name: one
    for one in (
        Activation("tanh", torch.tanh, _tanh_slope, 1.0),
        Activation("relu", torch.relu, _relu_slope, 1.0, saturates=False),
        Activation("sigmoid", torch.sigmoid, _sigmoid_slope, 1 / 4),
        Activation("identity", _identity, torch.ones_like, 1.0, saturates=False),
        Activation("4*sigmoid-2", _wide_sigmoid, _wide_sigmoid_slope, 1.0),
        Activation("2*sigmoid-1", _centred_sigmoid, _centred_sigmoid_slope, 1 / 2),
        Activation("softplus", torch.nn.functional.softplus, _softplus_slope, 1.0, saturates=False),
        Activation("relu+sigmoid", _positive, _positive_slope, 1.0, saturates=False),
    )
}
"""Activation functions by name. "4*sigmoid-2" and "2*sigmoid-1" are those of Hochreiter and
Schmidhuber (1997), appendix equations 4 and 5: they take the cell input to [-2, 2] and the cell
state to [-1, 1]. "relu+sigmoid" is g of Feng et al. (2024), a + 1/2 from 0 on and sigma(a) below:
positive everywhere, with a slope that jumps from 1/4 to 1 at 0."""

CONSTANT = Activation("constant", torch.ones_like, torch.zeros_like, 1.0, saturates=False)
"""The 1 in the place of a gate that a cell lacks; no weights lead to it."""

SIGMOID = ACTIVATIONS["sigmoid"]
TANH = ACTIVATIONS["tanh"]

LSTM_GATES = (
    Gate("input", SIGMOID, "input"),
    Gate("forget", SIGMOID, "forget", keeps="c"),
    Gate("cell", TANH, "candidate"),
    Gate("output", SIGMOID, "output"),
)
"""The gates of torch.nn.LSTM in the order of its weight rows: i, f, g, o."""

GRU_GATES = (
    Gate("reset", SIGMOID, "reset"),
    Gate("update", SIGMOID, "forget", keeps="h"),
    Gate("candidate", TANH, "candidate"),
)
"""The gates of torch.nn.GRU in the order of its weight rows: r, z, n; z keeps the state."""


def with_role(gates: Sequence[Gate], role: Role) -> tuple[Gate, ...]:
    """The gates of a role, in order."""
    return tuple(gate for gate in gates if gate.role == role)
