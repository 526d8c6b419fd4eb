"""Questions that people asked, as examples with their answers, each computed when it is shown.

They are those of the pages that this package grew from: a derivation by hand over three steps, an
article that prints the numbers of an LSTM, a question why LSTMs explode, and one about clipping.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from retrograde import charts
from retrograde._words import power_of_two
from retrograde.cells import Elman
from retrograde.cells.gates import ACTIVATIONS
from retrograde.clipping import GlobalNorm, PreActivationValue
from retrograde.decomposition import Flow, decompose
from retrograde.decomposition.adjoints import AdjointNorms
from retrograde.decomposition.clipped import ClippedFlow
from retrograde.decomposition.lags import REACH
from retrograde.decomposition.rows import joined
from retrograde.engine import fold
from retrograde.explore.lesson import Setting, flow_of
from retrograde.nn import initialise
from retrograde.recording import Recording, record, record_cell
from retrograde.spectra import spectrum
from retrograde.tasks.clipping_study import WAYS, results

# ---- three steps by hand -------------------------------------------------------------------------

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
        f"**Not the gradient: its far terms.** Lag by lag they carry the factors 1, W_S, W_S^2: "
        f"here {factors}. However small the last one, the sum stays at {sum(found.terms):.3f}, led "
        "by the near terms: what is lost is the dependence on the far past. Beyond |W_S| = 1 "
        "the far terms lead."
    )


# ---- the numbers that an article prints ----------------------------------------------------------

PRINTED = (0.010906688399113558, 0.02478099846737857, 0.13901933055672275)
"""Norms of the parts of dL_3/dW_x by use step 0, 1, 2, as 「RNNにおける誤差逆伝播法と勾配消失問題
(パート2)」 prints them."""


@lru_cache(maxsize=1)
def printed_numbers() -> Flow:
    """The article's LSTM (one sample, three inputs, three steps, one hidden unit, seed 1)."""
    random = np.random.RandomState(1)
    x, h0, w_x, w_h, b = (random.randn(*s) for s in ((1, 3, 3), (1, 1), (3, 4), (1, 4), (4,)))
    given = torch.from_numpy(random.randn(1, 3, 1))
    to_torch = [0, 1, 3, 2]  # its gates i, f, o, g as torch's i, f, g, o
    lstm = nn.LSTM(3, 1, batch_first=True, dtype=torch.float64)
    weights = {"weight_ih_l0": w_x.T, "weight_hh_l0": w_h.T, "bias_ih_l0": b, "bias_hh_l0": 0 * b}
    lstm.load_state_dict({n: torch.from_numpy(w[to_torch].copy()) for n, w in weights.items()})
    h = torch.from_numpy(h0).unsqueeze(0)
    with record(lstm) as recording:
        output, _ = lstm(torch.from_numpy(x), (h, torch.zeros_like(h)))
        (output * given).sum().backward()
    return decompose(recording)


def components() -> list[float]:
    """The three norms that the article prints, computed."""
    norms: list[float] = printed_numbers().by_time("weight_ih_l0").norm[2].tolist()
    return norms


def components_in_markdown() -> str:
    """The printed and the computed norms, as a table."""
    rows = [
        f"| {k} | {2 - k} | {printed:.15f} | {ours:.15f} | {abs(printed - ours):.0e} |"
        for k, (printed, ours) in enumerate(zip(PRINTED, components(), strict=True))
    ]
    head = "| use step | lag | printed | computed by Retrograde | difference |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def components_in_words() -> str:
    """Whether the article's numbers are right, in Markdown."""
    ours = components()
    worst = max(abs(a - b) for a, b in zip(PRINTED, ours, strict=True))
    return (
        f"**They are**, to {worst:.0e}. The loss of the last step gets "
        f"{ours[2] / ours[0]:.3g} times as much from its own step as from two steps before: "
        "already over three steps the near terms lead. (The norms of the parts of dL_3/dW_x in an "
        "LSTM of one unit, seed 1, as 「RNNにおける誤差逆伝播法と勾配消失問題(パート2)」 has them.)"
    )


# ---- why an LSTM explodes ------------------------------------------------------------------------


def over_steps(factor: float, steps: int = 200) -> float:
    """What is left of an adjoint after so many steps of h_k = w h_{k-1} + x_k, with w = `factor`.

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
"""Factors per step that look alike."""


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
        "Each gate adds a path through its recurrent weights, over which matrices like R_o are "
        f"multiplied with themselves, as in a plain RNN. {by_one}With all of them the adjoint "
        f"**{verdict}**: a factor of {found[ALL]:.3f} per step. A little makes much: {powers}."
    )


# ---- clipping ------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def long_pass(gain: float, steps: int) -> tuple[float, float, Recording]:
    """Norms of the gradients of recurrent and output layer, and the pass that they come from.

    A plain RNN whose recurrent matrix is `gain` times an orthogonal one, an input so small that
    tanh is linear, and the loss at the last step.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        recurrent = nn.RNN(2, 16, bias=False, dtype=torch.float64)
        readout = nn.Linear(16, 1, dtype=torch.float64)
        initialise(recurrent, "orthogonal", gain=gain)
    x = torch.zeros(steps, 1, 2, dtype=torch.float64)
    x[0] = 1e-4
    with record(recurrent) as recording:
        (readout(recurrent(x)[0][-1]) - 1).square().mean().backward()
    return _gradient_norm(recurrent), _gradient_norm(readout), recording


def _gradient_norm(layer: nn.Module) -> float:
    given = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    return float(nn.utils.get_total_norm(given))


LENGTHS = (10, 20, 40, 80)
"""Ever longer sequences."""


def lengths_in_markdown(gain: float) -> str:
    """The norms for ever longer sequences, as a table."""
    rows = [
        f"| {steps} | {recurrent:.3g} | {output:.3g} |"
        for steps in LENGTHS
        for recurrent, output, _ in [long_pass(gain, steps)]
    ]
    head = "| length T | gradient of the recurrent layer | of the output layer |"
    return "\n".join([head, "|---|---|---|", *rows])


def lengths_chart(gain: float) -> Any:
    """The adjoint on its way back through the longest of them."""
    adjoints = decompose(long_pass(gain, LENGTHS[-1])[2]).adjoints
    return charts.adjoint_curve(adjoints.log2_growth_by_lag.tolist(), adjoints.half_life)


def lengths_in_words(gain: float) -> str:
    """Whether the output layer is to be clipped, in Markdown."""
    first, out, _ = long_pass(gain, LENGTHS[0])
    last, out_last, _ = long_pass(gain, LENGTHS[-1])
    runs = results()
    diverged = {way: sum(run.diverged for run in runs if run.way == way) for way in WAYS}
    counted = ", ".join(f"{way} {count}" for way, count in diverged.items())
    return (
        f"**Time is no reason to.** From T = {LENGTHS[0]} to {LENGTHS[-1]} the gradient of the "
        f"recurrent layer changes by a factor of {last / first:.3g}, that of the output layer by "
        f"{out_last / out:.3g}: it is applied once for each loss, and knows no length. It may be "
        f"large for other reasons. Of {len(runs)} trainings, those that diverged, by what was "
        f"clipped: {counted}."
    )


@dataclass(frozen=True, eq=False)
class Clipped:
    """The same gradient clipped to the same norm in two places.

    Attributes:
        kept: what is left of its norm, in both.
        at_the_end: before the update, by its norm (Pascanu et al., 2013).
        inside: on its way back, each element of every pre-activation's adjoint (Graves, 2013).
    """

    kept: float
    at_the_end: ClippedFlow[Flow]
    inside: ClippedFlow[Flow]


def clipped_where(setting: Setting, limit: float) -> Clipped:
    """Adjoints held within [-limit, limit] inside, and the norm that this gives as that of the end.

    Example:
        >>> from retrograde.explore.examples import clipped_where
        >>> from retrograde.explore.lesson import Setting
        >>> found = clipped_where(Setting(recurrent_scale=4.0, steps=30), 0.1)
        >>> round(found.at_the_end.cosine(), 6), found.inside.cosine() < 1
        (1.0, True)
    """
    flow = flow_of(setting)
    inside = flow.clipped(PreActivationValue(limit))
    whole = joined(list(flow.gradient.values())).log2_norms()
    kept = inside.kept()
    return Clipped(kept, flow.clipped(GlobalNorm(kept * 2.0 ** float(whole))), inside)


EXPLODING = Setting(recurrent_scale=6.0, forget_bias=3.0, steps=50)
"""An LSTM whose gradient asks to be clipped."""


def clipped_in_words(found: Clipped) -> str:
    """What the two places do to the direction, in Markdown."""
    return (
        f"**Just before the update**, if the direction matters. Both ways leave {found.kept:.3g} "
        f"of the norm. By the norm at the end the cosine to the true gradient is "
        f"{found.at_the_end.cosine():.3f}: the step is shorter and leads the same way. Inside it "
        f"is **{found.inside.cosine():.3f}**: large lags and routes are cut more than others."
    )


ACTIVATION_NAMES = ("identity", "tanh", "sigmoid")

ONE_UNIT = 20
"""Steps of the network of one unit."""


def factor_per_step(weight: float, activation: str) -> float:
    """What a step multiplies an adjoint by, at the most: |w| times the steepest slope.

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
    verdict = "keeps it" if factor == 1 else ("grows" if factor > 1 else "shrinks it")
    norms = ", ".join(f"{norm:.4g}" for norm in nilpotent(PRODUCTS))
    return (
        "**One beyond 1; with a sigmoid, beyond 4.** Its slope is at most 1/4, so that "
        f"w = {weight:g} multiplies an adjoint by at most {factor:.3g} per step, which {verdict}. "
        "That is the rule for one unit. For a matrix the eigenvalues do not decide: "
        "[[8, 8], [-8, -8]] has none but 0, and in a tanh network the norms of "
        f"{', '.join(map(str, PRODUCTS))} Jacobians in a row are {norms}. What guarantees that "
        "gradients vanish is a largest *singular value* below 1, or 4 (Pascanu et al., 2013)."
    )
