"""What vanishes: a derivation by hand over three steps, with its numbers."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from retrograde.cells import Elman
from retrograde.decomposition import Flow, decompose
from retrograde.recording import record_cell

W_X, W_O, B_1, B_2, S_0, Y_3 = 0.7, 1.3, 0.2, -0.1, 0.5, 0.8
INPUTS = (0.4, -1.1, 0.6)
"""Numbers for the letters of the derivation; W_S is the knob."""


@dataclass(frozen=True)
class ThreeSteps:
    """S_k = W_X X_k + W_S S_{k-1} + b_1, O = W_O S_3 + b_2, L = (Y - O)^2 / 2, all linear.

    Attributes:
        recurrent: W_S.
        through: dL/dS_3.
        terms: the three terms of dL/dW_S, by lag 0, 1, 2.
        flow: the same pass, taken apart.
    """

    recurrent: float
    through: float
    terms: tuple[float, ...]
    flow: Flow


@lru_cache(maxsize=8)
def three_steps(recurrent: float) -> ThreeSteps:
    """dL/dW_S = dL/dS_3 (S_2 + W_S S_1 + W_S^2 S_0), term by term.

    Example:
        >>> from retrograde.explore.examples import three_steps
        >>> found = three_steps(0.5)
        >>> len(found.terms), round(found.terms[1] / found.terms[2], 3)  # S_1 / (W_S S_0)
        (3, 2.92)
    """
    w_x, w_s, b_1 = (torch.tensor([[w]], dtype=torch.float64) for w in (W_X, recurrent, B_1))
    cell = Elman(w_x, w_s, b_1.squeeze(0), activation="identity")
    x = torch.tensor(INPUTS, dtype=torch.float64).view(3, 1, 1)
    pass_ = record_cell(
        cell,
        x,
        lambda h, _: 0.5 * (Y_3 - (W_O * h[-1] + B_2)).square().sum(),
        torch.tensor([[S_0]], dtype=torch.float64),
    )
    flow = decompose(pass_)
    terms = [float(flow.contribution("weight_hh", t=2, k=2 - lag)) for lag in range(3)]
    return ThreeSteps(recurrent, float(pass_.direct[-1]), tuple(terms), flow)


def three_steps_in_tex(found: ThreeSteps) -> str:
    """The sum with its numbers, to be typeset."""
    terms = " + ".join(f"({term:.3f})" for term in found.terms)
    return (
        r"$$\frac{\partial L_3}{\partial W_S} = \frac{\partial L_3}{\partial S_3}"
        r"\left(S_2 + W_S S_1 + W_S^2 S_0\right) = "
        rf"{terms} = {sum(found.terms):.3f}$$"
    )


def three_steps_in_words(found: ThreeSteps) -> str:
    """What vanishes, in Markdown."""
    factors = ", ".join(f"{found.recurrent**lag:.3g}" for lag in range(3))
    return (
        f"**Not the gradient: its far terms.** Lag by lag they carry the factors 1, W_S, W_S^2, "
        f"here {factors}. However small the last one, the sum stays at {sum(found.terms):.3f}, "
        "dominated by the near terms: what is lost is the dependence on the distant past. Above "
        "|W_S| = 1 the far terms dominate."
    )
