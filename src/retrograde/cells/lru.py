"""The linear recurrent unit: complex units that turn and decay at rates of their own.

Reference: Antonio Orvieto, Samuel L. Smith, Albert Gu, Anushan Fernando, Caglar Gulcehre, Razvan
Pascanu and Soham De, "Resurrecting Recurrent Neural Networks for Long Sequences", ICML (2023),
arXiv 2303.06349: section 3.4 and appendix A.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde._types import Input, Projected, State
from retrograde.cells.base import CellStep, affine
from retrograde.cells.edges import Diagonal, Use, weights
from retrograde.cells.gates import CONSTANT, Gate
from retrograde.cells.graph import Graph
from retrograde.cells.linear import AbstractLinear


@dataclass(frozen=True, eq=False)
class LRU(AbstractLinear):
    """The linear recurrent unit with N complex units, their real and imaginary parts side by side.

        lambda = exp(-exp(nu) + i exp(theta))              u = (B_re + i B_im) x_k
        z_k = lambda * z_{k-1} + exp(gamma) * u            h_k = Re((C_re + i C_im) z_k) + D * x_k

    The state is (h, re, im) with z = re + i im; no step reads h. One route leads on, the carousel,
    which multiplies z by lambda. Beyond lag 1 the adjoint shrinks by |lambda| = exp(-exp(nu)) a
    step, unit by unit, whatever the input.

    Args:
        nu_log: nu, shape [N].
        theta_log: theta, shape [N].
        gamma_log: gamma, shape [N]; log sqrt(1 - |lambda|^2) keeps the state at the size of u.
        B_re, B_im: shape [N, I].
        C_re, C_im: shape [H, N].
        D: shape [H] with H = I, or None.

    Raises:
        ArgumentError: for weights that do not fit together.

    Example:
        >>> import torch
        >>> from retrograde.cells import LRU
        >>> one, quarter = torch.ones(1, 1), torch.tensor([torch.pi / 2]).log()
        >>> cell = LRU(torch.full((1,), -9.0), quarter, torch.zeros(1), one, 0 * one, one, 0 * one)
        >>> state = cell.step(torch.ones(1), torch.zeros(3)).state
        >>> state, cell.step(torch.zeros(1), state).state.round(decimals=2)  # a quarter turn
        (tensor([1., 1., 0.]), tensor([-0.,  -0.,  1.]))
    """

    nu_log: Float[Tensor, "..."]
    theta_log: Float[Tensor, "..."]
    gamma_log: Float[Tensor, "..."]
    B_re: Float[Tensor, "..."]
    B_im: Float[Tensor, "..."]
    C_re: Float[Tensor, "..."]
    C_im: Float[Tensor, "..."]
    D: Float[Tensor, "..."] | None = None

    def shapes(self, inputs: int, hidden: int) -> dict[str, tuple[int, ...]]:
        return shapes(inputs, hidden, self.nu_log.shape[0])

    @property
    def input_size(self) -> int:
        return self.B_re.shape[1]

    @property
    def hidden_size(self) -> int:
        return self.C_re.shape[0]

    @property
    def slots(self) -> Mapping[str, slice]:
        h, n = self.hidden_size, self.nu_log.shape[0]
        return {"h": slice(0, h), "re": slice(h, h + n), "im": slice(h + n, h + 2 * n)}

    @property
    def gates(self) -> tuple[Gate, ...]:
        return ()

    @property
    def activations(self) -> tuple[Gate, ...]:
        return (Gate("kept", CONSTANT, "forget", keeps="re"),)

    @property
    def eigenvalues(self) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
        """Real and imaginary part of lambda."""
        size, angle = (-self.nu_log.exp()).exp(), self.theta_log.exp()
        return size * angle.cos(), size * angle.sin()

    def project(self, x: Input) -> Projected:
        return torch.cat((affine(x, self.B_re, None), affine(x, self.B_im, None)), -1)

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        re, im = (state[..., self.slots[name]] for name in ("re", "im"))
        (l_re, l_im), gamma = self.eigenvalues, self.gamma_log.exp()
        u_re, u_im = (gamma * u for u in projected.chunk(2, -1))
        turned_re, turned_im = l_re * re - l_im * im, l_re * im + l_im * re
        re, im = turned_re + u_re, turned_im + u_im
        h = affine(re, self.C_re, None) - affine(im, self.C_im, None)
        h = h if self.D is None else h + self.D * x
        inside = {"turned.re": turned_re, "turned.im": turned_im, "u.re": u_re, "u.im": u_im}
        kept = (-self.nu_log.exp()).exp().expand_as(re)
        return CellStep(x, state, torch.cat((h, re, im), -1), inside | {"kept": kept})

    def linearise(self, step: CellStep) -> Graph:
        """The deltas, with w = lambda z_{k-1} and dz those of both parts, from h and from later.

        dnu = -exp(nu) (dre w_re + dim w_im)       dtheta = exp(theta) (dim w_re - dre w_im)
        dgamma = dre u_re + dim u_im               dre_{k-1} = l_re dre + l_im dim
        """
        w_re, w_im, u_re, u_im, _ = step.activations.values()
        re, im = (step.state[..., self.slots[name]] for name in ("re", "im"))
        (l_re, l_im), gamma = self.eigenvalues, self.gamma_log.exp()
        nu, theta = self.nu_log.exp(), self.theta_log.exp()
        every = slice(0, len(nu))
        by = {
            "nu_log": (-nu * w_re, -nu * w_im),
            "theta_log": (-theta * w_im, theta * w_re),
            "gamma_log": (u_re, u_im),
        }
        through = [
            edge
            for name, (of_re, of_im) in by.items()
            for edge in (
                Diagonal("", name, use=Use(name, every)),
                Diagonal(name, "re", of_re),
                Diagonal(name, "im", of_im),
            )
        ]
        feed = (
            []
            if self.D is None
            else [Diagonal("x", "h+", self.D, "", Use("D", slice(0, len(self.D)), step.x, True))]
        )
        return self.graph(
            *weights("B_re", self.B_re, "x", ("u.re",), step.x),
            *weights("B_im", self.B_im, "x", ("u.im",), step.x),
            Diagonal("u.re", "re", gamma),
            Diagonal("u.im", "im", gamma),
            *through,
            Diagonal("re-", "re", l_re, "carousel"),
            Diagonal("im-", "re", -l_im, "carousel"),
            Diagonal("im-", "im", l_re, "carousel"),
            Diagonal("re-", "im", l_im, "carousel"),
            Diagonal("re", "re+"),
            Diagonal("im", "im+"),
            Diagonal("im", "-im", gamma.new_tensor([-1.0]).expand_as(gamma)),
            *weights("C_re", self.C_re, "re", ("h+",), re, ("readout",)),
            *weights("C_im", self.C_im, "-im", ("h+",), -im, ("readout",)),
            *feed,
        )


def shapes(inputs: int, hidden: int, units: int) -> dict[str, tuple[int, ...]]:
    """The weights of a layer of so many complex units."""
    vectors = dict.fromkeys(("nu_log", "theta_log", "gamma_log"), (units,))
    matrices = {"B": (units, inputs), "C": (hidden, units)}
    parts = {f"{name}_{part}": s for name, s in matrices.items() for part in ("re", "im")}
    return {**vectors, **parts, "D": (inputs,)}
