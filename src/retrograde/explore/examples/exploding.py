"""Why an LSTM explodes: what a step multiplies the adjoint by, gate by gate."""

import math
from collections.abc import Mapping
from functools import lru_cache

import torch

from retrograde._words import power_of_two
from retrograde.cells import Elman
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.adjoints import AdjointNorms
from retrograde.engine import fold
from retrograde.explore.lesson import Setting, flow_of
from retrograde.recording import record_cell


def over_steps(factor: float, steps: int = 200) -> float:
    """What is left of an adjoint after `steps` steps of h_k = w h_{k-1} + x_k, with w = `factor`.

    Example:
        >>> from retrograde.explore.examples import over_steps
        >>> [round(over_steps(w), 3) for w in (0.99, 1.0, 1.01)]
        [0.134, 1.0, 7.316]
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    cell = Elman(one, factor * one, activation="identity")
    flow = decompose(
        record_cell(cell, one.expand(steps + 1, 1, 1).contiguous(), lambda h, _: h[-1].sum())
    )
    return float(torch.exp2(flow.adjoints.log2[-1, 0]))


ROUTES = {
    "recurrent.input": "R_i of the input gate",
    "recurrent.forget": "R_f of the forget gate",
    "recurrent.cell": "R_g of the cell input",
    "recurrent.output": "R_o of the output gate",
}
"""The recurrent weights that each route crosses."""

CAROUSEL, ALL = "carousel alone", "all of them"


@lru_cache(maxsize=8)
def growth_by_gate(setting: Setting) -> Mapping[str, float]:
    """Factors per step of the adjoint with the carousel, and each gate's recurrent weights alone.

    All other routes are cut, as in `Flow.without`; the last one is the pass as it is.
    """
    flow = flow_of(setting)
    left = {CAROUSEL: set[str](), **{ROUTES[route]: {route} for route in ROUTES}, ALL: set(ROUTES)}
    return {
        name: _factor(flow.without(*set(ROUTES).difference(kept))) for name, kept in left.items()
    }


def _factor(flow: Flow) -> float:
    """What a step multiplies the adjoint by: no more than its norms are asked of the pass."""
    norms = AdjointNorms(flow.entries, flow.steps)
    fold(flow.unrolled, flow.entries, [norms])
    return math.exp2(norms.result().rate)


POWERS = (0.99, 1.0, 1.01)
"""Factors per step that look much the same."""


def growth_in_markdown(setting: Setting) -> str:
    """What a step multiplies the adjoint by, route by route, as a table; and over all steps."""
    lags = setting.steps - 1
    rows = [
        f"| {name if name in (CAROUSEL, ALL) else 'carousel and ' + name} | {factor:.3f} "
        f"| {power_of_two(lags * math.log2(factor))} |"
        for name, factor in growth_by_gate(setting).items()
    ]
    head = f"| routes left | factor per step | over {lags} steps |"
    return "\n".join([head, "|---|---|---|", *rows])


def growth_in_words(setting: Setting) -> str:
    """Why an LSTM explodes, in Markdown."""
    found = growth_by_gate(setting)
    alone = [name for name in ROUTES.values() if found[name] > 1]
    by_one = f"Enough on its own: {', '.join(alone)}. " if alone else ""
    verdict = "explodes" if found[ALL] > 1 else "does not explode here"
    powers = ", ".join(f"{w:g}^200 = {over_steps(w):.3g}" for w in POWERS)
    return (
        f"**Through the gates.** The carousel multiplies by f ≤ 1, here {found[CAROUSEL]:.3f}. "
        "Each gate adds a path through its recurrent weights, along which a matrix such as R_o is "
        f"multiplied by itself, as in a plain RNN. {by_one}With all of them the adjoint "
        f"**{verdict}**: a factor of {found[ALL]:.3f} per step. Small differences compound: "
        f"{powers}."
    )
