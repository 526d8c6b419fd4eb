"""Text 001: the gradient does not vanish, its distant part does."""

import torch
from torch import nn

from retrograde.cells import Elman
from retrograde.decomposition import Flow, decompose
from retrograde.explore.examples import long_pass, three_steps
from retrograde.explore.examples.by_hand import B_1, INPUTS, S_0, W_X
from retrograde.recording import record_cell
from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.passes import STEPS, growth, mean, noise_pass

SHORT, LONG = 10, 80
"""Lengths of the sequences that are compared."""


def _three_terms(_: range) -> Figures:
    weight = 0.5
    found = three_steps(weight)
    states = [S_0]
    for x in INPUTS[:2]:
        states.append(W_X * x + weight * states[-1] + B_1)
    by_hand = [found.through * weight**lag * states[2 - lag] for lag in range(3)]
    pairs = zip(found.terms, by_hand, strict=True)
    return {
        "difference": max(abs(ours - theirs) for ours, theirs in pairs),
        "residual": float(found.flow.residual),
    }


def _sum_over_steps(seeds: range) -> Figures:
    flows = [noise_pass(nn.RNN, s) for s in seeds]
    return {"steps": STEPS, "residual": max(float(flow.residual) for flow in flows)}


def _output_weights(_: range) -> Figures:
    short, long = long_pass(1.1, SHORT), long_pass(1.1, LONG)
    return {
        "short": SHORT,
        "long": LONG,
        "recurrent": long[0] / short[0],
        "output": long[1] / short[1],
        "gain": 1.1,
    }


def linear(weight: float, steps: int, fed: int | None = None) -> Flow:
    """S_k = X_k / 2 + W_s S_{k-1}, the loss at the last step, X_k = 1.

    Args:
        weight: W_s.
        steps: T.
        fed: how many steps have an input; the others have X_k = 0. All if None.
    """
    one = torch.ones(1, 1, dtype=torch.float64)
    x = torch.ones(steps, 1, 1, dtype=torch.float64)
    if fed is not None:
        x[fed:] = 0
    cell = Elman(one / 2, weight * one, activation="identity")
    return decompose(record_cell(cell, x, lambda h, _: h[-1].sum()))


def _whole(weight: float, steps: int, fed: int | None = None) -> float:
    return abs(float(linear(weight, steps, fed).recorded.gradients["weight_ih"]))


def _distant(weight: float, steps: int) -> float:
    return float(linear(weight, steps).by_time("weight_ih").norm[0, 0])


def _with_length(_: range) -> Figures:
    return {
        "short": SHORT,
        "long": LONG,
        "small": 0.8,
        "large": 1.2,
        "whole_small": _whole(0.8, LONG) / _whole(0.8, SHORT),
        "whole_large": _whole(1.2, LONG) / _whole(1.2, SHORT),
    }


def _whole_gradient(seeds: range) -> Figures:
    def norm(seed: int, steps: int) -> float:
        flow = noise_pass(nn.RNN, seed, steps=steps)
        return float(flow.recorded.gradients["weight_hh_l0"].norm())

    return {
        "short": SHORT,
        "long": LONG,
        "weight": 0.8,
        "linear": _whole(0.8, LONG) / _whole(0.8, SHORT),
        "tanh": mean(norm(s, LONG) for s in seeds) / mean(norm(s, SHORT) for s in seeds),
        "silent": _whole(0.8, LONG, fed=1) / _whole(0.8, SHORT, fed=1),
    }


def _distant_part(seeds: range) -> Figures:
    return {
        "long": LONG,
        "weight": 0.8,
        "linear": _distant(0.8, LONG),
        "whole": _whole(0.8, LONG),
        "lags": STEPS - 1,
        "tanh": mean(growth(noise_pass(nn.RNN, s)) for s in seeds),
    }


NEAR = 8
"""The largest lag that counts as near."""


def _near(seeds: range) -> Figures:
    def share(flow: Flow, parameter: str | None = None) -> float:
        return float(flow.by_lag(parameter, bins=(0, NEAR + 1)).share[0])

    return {
        "near": NEAR,
        "steps": STEPS,
        "default": mean(share(noise_pass(nn.RNN, s)) for s in seeds),
        "small": 0.8,
        "small_share": share(linear(0.8, LONG), "weight_ih"),
        "large": 1.2,
        "large_share": share(linear(1.2, LONG), "weight_ih"),
    }


CLAIMS = (
    Claim(
        "three-terms",
        "001",
        "frac{delta L_3}{delta W_s} = … + … + …",
        "The gradient of W_s at the third step is a sum of three terms, one for each use.",
        _three_terms,
        (
            Statement(
                "the three terms, found by the package, differ from the derivation's by at most "
                "{difference:.0e}",
                lambda f: f["difference"] < 1e-12,
            ),
            Statement(
                "their sum differs from autograd's gradient by {residual:.0e} of it",
                lambda f: f["residual"] < 1e-12,
            ),
        ),
        "",
        seeds=1,
        page="checking-an-article.md",
    ),
    Claim(
        "sum-over-steps",
        "001",
        "对于任意时刻t对 W_x, W_s 求偏导的公式为 … sum_{k=0}^t … ( prod_{j=k+1}^t "
        "frac{delta S_j}{delta S_{j-1}} )",
        "In general the gradient is a sum over all earlier steps k, each with a product of t - k "
        "Jacobians.",
        _sum_over_steps,
        (
            Statement(
                "in tanh networks over {steps:.0f} steps these terms sum to autograd's gradient, "
                "up to {residual:.0e} of it",
                lambda f: f["residual"] < 1e-12,
            ),
        ),
        "The sum begins at k = 0, a step at which nothing is read. It does no harm, since S_0 is "
        "given and has no derivative.",
        page="how-it-works.md",
    ),
    Claim(
        "output-weights-do-not-care",
        "001",
        "随着神经网络层数的加深对 W_0 而言并没有什么影响",
        "The depth in time makes no difference to W_o, the weights of the output.",
        _output_weights,
        (
            Statement(
                "from {short:.0f} to {long:.0f} steps the gradient of the output layer changes "
                "by a factor of {output:.2f}",
                lambda f: 0.5 < f["output"] < 2,
            ),
        ),
        "That of the recurrent layer, {gain:.1f} times an orthogonal matrix, changes by "
        "{recurrent:.0f}.",
        seeds=1,
        page="should-the-output-layer-be-clipped.md",
    ),
    Claim(
        "vanishes-and-explodes-with-length",
        "001",
        "而对 W_x, W_s 会随着时间序列的拉长而产生梯度消失和梯度爆炸问题",
        "For W_x and W_s the gradient vanishes and explodes as the sequence gets longer.",
        _with_length,
        (
            Statement(
                "with W_s = {large:.1f} the gradient of W_x explodes from {short:.0f} to "
                "{long:.0f} steps: by a factor of {whole_large:.1e}",
                lambda f: f["whole_large"] > 100,
            ),
            Statement(
                "with W_s = {small:.1f} it vanishes (measured: a factor of {whole_small:.2f})",
                lambda f: f["whole_small"] < 0.01,
            ),
        ),
        "It explodes, as the far terms are the large ones then. It does not vanish, as the text "
        "itself says two lines later: see the next claim.",
        seeds=1,
        page="checking-an-article.md",
    ),
    Claim(
        "the-whole-does-not-vanish",
        "001",
        "RNN 中总的梯度是不会消失的 … 由于近距离的梯度不会消失,所有梯度之和便不会消失",
        "The whole gradient of an RNN does not vanish: since the near part does not, the sum of "
        "all does not.",
        _whole_gradient,
        (
            Statement(
                "linear, W_s = {weight:.1f}, an input at every step: from {short:.0f} to "
                "{long:.0f} steps the gradient of W_x changes by a factor of {linear:.2f}",
                lambda f: f["linear"] > 0.1,
            ),
            Statement(
                "tanh, torch's default weights, noise as input: that of the recurrent weights "
                "changes by a factor of {tanh:.2f}",
                lambda f: f["tanh"] > 0.1,
            ),
            Statement(
                "also if only the first step has an input (measured, linear: {silent:.0e})",
                lambda f: f["silent"] > 0.1,
            ),
        ),
        "It needs near terms. A term of W_x is a product with X_k: where the last inputs are "
        "zero, as in a task with one cue and silence after it, there are none, and the whole "
        "gradient goes. (Saturated units, a loss that is met, and terms that cancel are further "
        "exceptions.)",
        page="checking-an-article.md",
    ),
    Claim(
        "the-distant-part-vanishes",
        "001",
        "即便梯度越传越弱,那也只是远距离的梯度消失",
        "Even where the gradient gets weaker on its way, it is only the distant part that "
        "vanishes.",
        _distant_part,
        (
            Statement(
                "linear, W_s = {weight:.1f}: of a gradient of {whole:.2f} the first of "
                "{long:.0f} steps has {linear:.0e}",
                lambda f: f["linear"] < 0.01 * f["whole"],
            ),
            Statement(
                "tanh, torch's default weights: at lag {lags:.0f} the adjoint is 2^{tanh:.0f} of "
                "that at lag 0",
                lambda f: 2 ** f["tanh"] < 0.01,
            ),
        ),
        "",
        page="checking-an-article.md",
    ),
    Claim(
        "near-terms-dominate",
        "001",
        "梯度被近距离梯度主导",
        "What is called vanishing means: the gradient is dominated by its near part.",
        _near,
        (
            Statement(
                "tanh, torch's default weights: lags up to {near:.0f} are {default:.1%} of the "
                "gradient over {steps:.0f} steps",
                lambda f: f["default"] > 0.9,
            ),
            Statement(
                "linear, W_s = {small:.1f}: they are {small_share:.0%} of that of W_x",
                lambda f: f["small_share"] > 0.5,
            ),
        ),
        "Where the gradient grows instead the far part dominates: with W_s = {large:.1f} the same "
        "lags are {large_share:.4%}.",
        page="checking-an-article.md",
    ),
)
