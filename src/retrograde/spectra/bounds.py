"""What is said of recurrent matrices in general, beside what the recurrence does here.

Reference: Razvan Pascanu, Tomas Mikolov and Yoshua Bengio, "On the difficulty of training recurrent
neural networks", ICML (2013), with gamma the largest slope of the squashing function: a largest
singular value below 1/gamma is sufficient for gradients to vanish, and so one above it is necessary
for them to explode. Of the spectral radius that holds in a linear network alone; folklore has it of
all ("greater than one explodes, with sigmoid greater than four").
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from retrograde.cells import LSTM, AbstractCell, Elman, ProjectedLSTM
from retrograde.cells.base import AbstractLayer
from retrograde.cells.gru import AbstractGRU
from retrograde.cells.leaves import Leaf, leaves
from retrograde.cells.squashing import STEEPEST
from retrograde.spectra.exponents import exponents
from retrograde.spectra.jacobians import Chain

Growth = Literal["vanishes", "explodes", "keeps"]

KEEPS = 1e-9
"""A leading exponent within so many nats per step of 0 is that of a recurrence that keeps norms."""


@dataclass(frozen=True)
class Bound:
    """One rule about one recurrent matrix, what it says of gradients, and what they do.

    Attributes:
        route: the route that crosses the matrix.
        rule: what of it is looked at, "largest singular value" or "spectral radius".
        value: of this matrix.
        threshold: 1/gamma: 1 behind a tanh, 4 behind a sigmoid.
        says: what follows from the rule; None if nothing does. The singular value says "vanishes"
            below its threshold and nothing above; the radius is taken to decide both ways.
        measured: what the leading exponent of the layer says.
        exponent: that exponent, in nats per step, mean over the batch.
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
    return {route: matrix for leaf in leaves(cell) for route, matrix in _matrices(leaf).items()}


def eigenvalues(cell: AbstractCell) -> dict[str, Complex[Tensor, "H"]]:
    """The eigenvalues of every recurrent matrix by route, the largest modulus first."""
    found = {}
    for route, matrix in recurrent_matrices(cell).items():
        values = torch.linalg.eigvals(matrix)
        found[route] = values[values.abs().argsort(descending=True)]
    return found


@torch.no_grad()
def bounds(chain: Chain, transient: int) -> tuple[Bound, ...]:
    """Every rule about every recurrent matrix, beside what its own layer does."""
    found: list[Bound] = []
    for leaf in leaves(chain.cell):
        matrices = _matrices(leaf)
        if not matrices:
            continue
        own = Chain(chain.unrolled, leaf.part)
        leading = exponents(own, 1, transient).leading
        measured = (leading, float(own.step_norms().max()))
        steepest = _steepest(leaf.cell)
        plain = isinstance(leaf.cell, Elman)
        linear = isinstance(leaf.cell, Elman) and leaf.cell.activation == "identity"
        for (route, matrix), gamma in zip(matrices.items(), steepest, strict=True):
            singular = float(torch.linalg.matrix_norm(matrix, ord=2))
            radius = float(torch.linalg.eigvals(matrix).abs().max())
            says: Growth | None = "vanishes" if singular < 1 / gamma else None
            found += [
                Bound(
                    *(route, "largest singular value", singular, 1 / gamma, says),
                    *(_growth(leading), *measured, plain),
                ),
                Bound(
                    *(route, "spectral radius", radius, 1 / gamma, _growth(radius * gamma - 1)),
                    *(_growth(leading), *measured, linear),
                ),
            ]
    return tuple(found)


def _matrices(leaf: Leaf) -> dict[str, Tensor]:
    cell = leaf.cell
    if not isinstance(cell, AbstractLayer):
        return {}
    weight = cell.weight_hh.double()
    if isinstance(cell, ProjectedLSTM):
        weight = weight @ cell.weight_hr.double()
    blocks = weight.chunk(max(1, len(cell.gates)))
    routes = cell.recurrent_routes[: len(blocks)]
    return {route + leaf.route_suffix: w for route, w in zip(routes, blocks, strict=True)}


def _steepest(cell: AbstractCell) -> list[float]:
    """gamma of each gate in order, or of the one squashing function."""
    if isinstance(cell, Elman):
        return [STEEPEST[cell.activation]]
    inner = {"candidate": STEEPEST["tanh"], "cell": STEEPEST["tanh"]}
    if isinstance(cell, LSTM):
        inner["cell"] = STEEPEST[cell.kind.cell_squashing]
    assert isinstance(cell, LSTM | ProjectedLSTM | AbstractGRU)
    return [inner.get(gate, STEEPEST["sigmoid"]) for gate in cell.gates]


def _growth(rate: float) -> Growth:
    """A rate above 0 explodes, below 0 vanishes."""
    if abs(rate) <= KEEPS:
        return "keeps"
    return "explodes" if rate > 0 else "vanishes"
