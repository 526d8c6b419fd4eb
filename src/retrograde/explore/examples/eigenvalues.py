"""Which eigenvalue explodes: one unit of each activation, and a matrix that has none but 0."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from retrograde import charts
from retrograde.cells import Elman
from retrograde.cells.gates import ACTIVATIONS
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.lags import REACH
from retrograde.recording import record_cell
from retrograde.spectra import spectrum

ACTIVATION_NAMES = ("identity", "tanh", "sigmoid")

ONE_UNIT = 20
"""Steps of the network of one unit."""


def factor_per_step(weight: float, activation: str) -> float:
    """The most that a step can multiply an adjoint by: |w| times the steepest slope.

    Measured on h_k = phi(w h_{k-1} + b_k), b_k such that every pre-activation is 0, where the
    slopes of these functions are steepest: 1 for tanh, 1/4 for a sigmoid.
    """
    return math.exp2(_one_unit(weight, activation).adjoints.rate)


@lru_cache(maxsize=32)
def _one_unit(weight: float, activation: str) -> Flow:
    one = torch.ones(1, 1, dtype=torch.float64)
    middle = ACTIVATIONS[activation].function(torch.zeros_like(one))
    cell = Elman(one, weight * one, activation=activation)
    x = (-weight * middle).expand(ONE_UNIT, 1, 1).contiguous()
    return decompose(record_cell(cell, x, lambda h, _: h[-1].sum(), middle))


def nilpotent(lengths: Sequence[int]) -> list[float]:
    """|J^n| for a tanh network whose recurrent matrix has no eigenvalue but 0.

        W = [[8, 8], [-8, -8]]     W^2 = 0     h* = (0, 1/2)     J = diag(1 - h*^2) W,  J^2 = 2 J

    The biases keep the state at h*. Its spectral radius of 0 promises that gradients vanish at
    once, and they double with every step.

    Example:
        >>> from retrograde.explore.examples import nilpotent
        >>> [round(norm, 2) for norm in nilpotent([1, 2, 10])]
        [14.14, 28.28, 7240.77]
    """
    weight = torch.tensor([[8.0, 8.0], [-8.0, -8.0]], dtype=torch.float64)
    state = torch.tensor([0.0, 0.5], dtype=torch.float64)
    bias = torch.atanh(state) - weight @ state
    cell = Elman(torch.zeros(2, 1, dtype=torch.float64), weight, bias)
    x = torch.zeros(max(lengths) + 1, 1, 1, dtype=torch.float64)
    made = record_cell(cell, x, lambda h, _: h[-1].sum(), state.unsqueeze(0))
    found: list[float] = spectrum(made).singular_values(lengths).plain[:, 0, 0].tolist()
    return found


PRODUCTS = (1, 2, 5, 10)
"""Numbers of Jacobians in a row."""


def factors_chart(weight: float) -> Any:
    """What is left of the state, or of an adjoint, over lag: one unit, and the nilpotent matrix."""
    lags = range(1, ONE_UNIT)
    curves = {
        name: _one_unit(weight, name).adjoints.log2_growth_by_lag.tolist()
        for name in ACTIVATION_NAMES
    }
    curves["tanh, eigenvalues 0"] = [0.0, *map(math.log2, nilpotent(lags))]
    return charts.memory(curves, REACH, "the state")


def factors_in_markdown(weight: float) -> str:
    """What a step multiplies by for each activation function, and the nilpotent matrix."""
    rows = [
        f"| {name} | {ACTIVATIONS[name].largest_slope:g} | {factor_per_step(weight, name):.3g} "
        f"| {1 / ACTIVATIONS[name].largest_slope:g} |"
        for name in ACTIVATION_NAMES
    ]
    head = "| activation function | steepest slope | factor per step | explodes beyond w = |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def factors_in_words(weight: float) -> str:
    """Which eigenvalue explodes, in Markdown."""
    factor = factor_per_step(weight, "sigmoid")
    verdict = "keeps it" if factor == 1 else "lets it grow" if factor > 1 else "shrinks it"
    norms = ", ".join(f"{norm:.4g}" for norm in nilpotent(PRODUCTS))
    return (
        "**One above 1; with a sigmoid, above 4.** Its slope is at most 1/4, so that "
        f"w = {weight:g} multiplies an adjoint by at most {factor:.3g} per step, which {verdict}. "
        "That is the rule for one unit. For a matrix eigenvalues do not decide: "
        "all those of [[8, 8], [-8, -8]] are 0, and yet in a tanh network the norms of products of "
        f"{', '.join(map(str, PRODUCTS))} Jacobians are {norms}. What guarantees that "
        "gradients vanish is a largest *singular value* below 1, or 4 (Pascanu et al., 2013)."
    )
