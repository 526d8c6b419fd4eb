"""Bounds from the recurrent matrices alone, beside what the recurrence does here.

Reference: Razvan Pascanu, Tomas Mikolov and Yoshua Bengio, "On the difficulty of training recurrent
neural networks", ICML (2013), with gamma the largest slope of the activation function: a largest
singular value below 1/gamma is sufficient for gradients to vanish, and so one above it is necessary
for them to explode. For the spectral radius this holds in a linear network only, although it is
often stated for all ("greater than one explodes, with sigmoid greater than four").
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from retrograde.cells import AbstractCell, Elman, ProjectedLSTM
from retrograde.cells.base import AbstractLayer, is_cell
from retrograde.cells.leaves import Leaf, leaves
from retrograde.cells.linear import AbstractLinear
from retrograde.spectra.exponents import exponents
from retrograde.spectra.jacobians import Chain

Growth = Literal["vanishes", "explodes", "keeps"]

KEEPS = 1e-5
"""A leading exponent within this many nats per step of 0 is that of a recurrence that keeps norms,
and a matrix within this fraction of its threshold stands on it: a factor of e takes 100,000 steps.
Rounding moves the singular values of a float32 matrix by less, on each processor in its own way."""


@dataclass(frozen=True)
class Bound:
    """One rule about one recurrent matrix, what it says of gradients, and what they do.

    Attributes:
        route: the route that crosses the matrix.
        rule: what of it is looked at, "largest singular value" or "spectral radius".
        value: of this matrix.
        threshold: 1/gamma: 1 behind a tanh, 4 behind a sigmoid.
        says: what follows from the rule; None if nothing does. The singular value says "vanishes"
            below its threshold and nothing at or above it; the radius is taken to decide both ways.
        measured: what the leading exponent of the layer says.
        exponent: that exponent, in nats per step: `Exponents.leading`.
        largest_step: the most that one step multiplies a gradient by: the largest ||J_k||_2 over
            all steps and samples.
        proven: the rule is a theorem here: the singular value in a plain recurrent network, the
            radius in a linear one, after many steps. In a gated cell a matrix is one of several,
            and its own threshold proves nothing.

    Example:
        >>> import torch, retrograde
        >>> rnn = torch.nn.RNN(1, 2)
        >>> _ = torch.nn.init.constant_(rnn.weight_hh_l0, 0.4)
        >>> found = retrograde.spectrum(rnn, torch.ones(40, 1, 1)).bounds
        >>> [(bound.rule, bound.says, bound.holds) for bound in found]  # both are 0.8
        [('largest singular value', 'vanishes', True), ('spectral radius', 'vanishes', True)]
    """

    route: str
    rule: Literal["largest singular value", "spectral radius"]
    value: float
    threshold: float
    says: Growth | None
    measured: Growth
    exponent: float
    largest_step: float
    proven: bool

    @property
    def holds(self) -> bool | None:
        """Whether the recurrence does what the rule says; None if it says nothing."""
        return None if self.says is None else self.says == self.measured


def recurrent_matrices(cell: AbstractCell) -> dict[str, Float[Tensor, "H H"]]:
    """The square matrix of every recurrent route through h, by route, in float64.

    An LSTM with a projection M has R_g M in its place. A cell made from a function of the user's
    own has none: which of its weights are recurrent it does not tell.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU
        >>> from retrograde.spectra import recurrent_matrices
        >>> list(recurrent_matrices(GRU(torch.zeros(6, 3), torch.zeros(6, 2))))
        ['recurrent.reset', 'recurrent.update', 'recurrent.candidate']
    """
    is_cell(cell)
    return {route: matrix for leaf in leaves(cell) for route, matrix in _matrices(leaf).items()}


def eigenvalues(cell: AbstractCell) -> dict[str, Complex[Tensor, "H"]]:
    """The eigenvalues of every recurrent matrix by route, the largest modulus first."""
    found = {}
    for route, matrix in recurrent_matrices(cell).items():
        values = torch.linalg.eigvals(matrix)
        found[route] = values[values.abs().argsort(descending=True)]
    return found


@dataclass(frozen=True)
class Radius:
    """The spectral radius of one recurrent matrix, and the exponent of its layer.

    Attributes:
        route: the route that crosses the matrix.
        value: the radius.
        threshold: 1/gamma: 1 behind a tanh, 4 behind a sigmoid.
        exponent: the leading Lyapunov exponent of the layer, in nats per step: `Exponents.leading`.

    Example:
        >>> from retrograde.spectra import Radius
        >>> radius = Radius("recurrent", value=1.2, threshold=1.0, exponent=-0.1)
        >>> radius.value > radius.threshold, radius.exponent < 0  # it may explode, and vanishes
        (True, True)
    """

    route: str
    value: float
    threshold: float
    exponent: float

    @property
    def says(self) -> float:
        """What it is taken to say of the exponent: ln(radius / threshold)."""
        return math.log(self.value / self.threshold) if self.value else -math.inf


@dataclass(frozen=True)
class _Layer:
    """One layer: its own chain, its leading exponent, its matrices with their 1/gamma."""

    leaf: Leaf
    chain: Chain
    leading: float
    matrices: tuple[tuple[str, Tensor, float], ...]


def _layers(chain: Chain, transient: int) -> Iterator[_Layer]:
    for leaf in leaves(chain.cell):
        matrices = _matrices(leaf)
        if matrices:
            own = Chain(chain.unrolled, leaf.part)
            slopes = (gate.activation for gate in leaf.cell.gates)
            named = tuple(
                (route, matrix, 1 / activation.largest_slope)
                for (route, matrix), activation in zip(matrices.items(), slopes, strict=True)
                if activation is not None
            )
            yield _Layer(leaf, own, exponents(own, 1, transient).leading, named)


def _radius(matrix: Tensor) -> float:
    return float(torch.linalg.eigvals(matrix).abs().max())


@torch.no_grad()
def radii(chain: Chain, transient: int) -> tuple[Radius, ...]:
    """The radius of every recurrent matrix, beside what its own layer does."""
    return tuple(
        Radius(route, _radius(matrix), limit, layer.leading)
        for layer in _layers(chain, transient)
        for route, matrix, limit in layer.matrices
    )


@torch.no_grad()
def bounds(chain: Chain, transient: int) -> tuple[Bound, ...]:
    """Every rule about every recurrent matrix, beside what its own layer does."""
    found: list[Bound] = []
    for layer in _layers(chain, transient):
        does = (_growth(layer.leading), layer.leading, float(layer.chain.step_norms().max()))
        cell = layer.leaf.cell
        plain = isinstance(cell, Elman)
        linear = isinstance(cell, Elman) and cell.activation == "identity"
        for route, matrix, limit in layer.matrices:
            singular, radius = float(torch.linalg.matrix_norm(matrix, ord=2)), _radius(matrix)
            below = _growth(singular / limit - 1) == "vanishes"
            says: Growth | None = "vanishes" if below else None
            taken = _growth(radius / limit - 1)
            found += [
                Bound(route, "largest singular value", singular, limit, says, *does, plain),
                Bound(route, "spectral radius", radius, limit, taken, *does, linear),
            ]
    return tuple(found)


def without_bounds(cell: AbstractCell) -> tuple[str, ...]:
    """Why there are no bounds, for each layer or route that has none."""
    reasons = []
    for leaf in leaves(cell):
        if not isinstance(leaf.cell, AbstractLayer):
            name = "the cell" if leaf.position is None else str(leaf.position)
            why = (
                "it has no recurrent weights"
                if isinstance(leaf.cell, AbstractLinear)
                else "it does not say which of its weights are recurrent"
            )
            reasons.append(f"{name}: {why}, and no rule about recurrent matrices applies")
            continue
        reasons += [
            f"{route}: the activation behind it is not given (retrograde.cells.Gate), so the "
            "threshold of its matrix is unknown"
            for route, gate in zip(_matrices(leaf), leaf.cell.gates, strict=True)
            if gate.activation is None
        ]
    return tuple(reasons)


def _matrices(leaf: Leaf) -> dict[str, Tensor]:
    cell = leaf.cell
    if not isinstance(cell, AbstractLayer):
        return {}
    weight = cell.weight_hh.double()
    if isinstance(cell, ProjectedLSTM):
        weight = weight @ cell.weight_hr.double()
    blocks = weight.chunk(len(cell.gates))
    routes = cell.recurrent_routes[: len(blocks)]
    return {route + leaf.route_suffix: w for route, w in zip(routes, blocks, strict=True)}


def _growth(rate: float) -> Growth:
    """A rate above 0 explodes, below 0 vanishes."""
    if abs(rate) <= KEEPS:
        return "keeps"
    return "explodes" if rate > 0 else "vanishes"
