"""Text 000: the carousel keeps the gradient, and an LSTM explodes along other paths."""

import math
from collections.abc import Callable

import torch
from torch import nn

from retrograde.cells import LSTM as Cell
from retrograde.decomposition import decompose
from retrograde.decomposition.lags import REACH
from retrograde.explore.examples import over_steps
from retrograde.nn import LSTM
from retrograde.recording import record_cell
from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.passes import STEPS, carousel, growth, mean, noise_pass, only

LAGS = STEPS - 1
LEFT = math.log2(REACH)
"""log2 of the hundredth from which on a gradient counts as vanished."""

LARGE = 4.0
"""Times torch's default recurrent weights: there an LSTM with a forget bias of 3 explodes."""


def _paths(seeds: range) -> Figures:
    truncated = [noise_pass(LSTM, s, generation="lstm-1997", truncated=True) for s in seeds]
    whole = [noise_pass(LSTM, s, generation="lstm-1997") for s in seeds]
    return {
        "lags": LAGS,
        "truncated": mean(growth(flow, 1) for flow in truncated),
        "of_1997": mean(growth(carousel(flow), 1) for flow in whole),
        "whole_of_1997": mean(growth(flow, 1) for flow in whole),
        "default": mean(growth(carousel(noise_pass(nn.LSTM, s)), 1) for s in seeds),
        "bias": 3.0,
        "with_bias": mean(
            growth(carousel(noise_pass(nn.LSTM, s, forget_bias=3.0)), 1) for s in seeds
        ),
    }


def _near_one(seeds: range) -> Figures:
    flows = [carousel(noise_pass(nn.LSTM, s, forget_bias=3.0)) for s in seeds]
    over = mean(growth(flow, 1) for flow in flows)
    open_wide = [carousel(noise_pass(nn.LSTM, s, forget_bias=7.0)) for s in seeds]
    return {
        "lags": LAGS,
        "bias": 3.0,
        "step": 2 ** (over / (LAGS - 1)),
        "over": 2**over,
        "wide": 7.0,
        "over_wide": 2 ** mean(growth(flow, 1) for flow in open_wide),
    }


def _vanishing(seeds: range) -> Figures:
    def reach(bias: float | None) -> float:
        return mean(noise_pass(nn.LSTM, s, forget_bias=bias).reach for s in seeds)

    return {
        "lags": LAGS,
        "default": reach(None),
        "bias": 1.0,
        "bias_1": reach(1.0),
        "open": 3.0,
        "bias_3": reach(3.0),
    }


def _beside_rnn(seeds: range) -> Figures:
    def reach(kind: Callable[..., nn.Module], bias: float | None = None) -> float:
        return mean(noise_pass(kind, s, forget_bias=bias).reach for s in seeds)

    return {
        "lags": LAGS,
        "rnn": reach(nn.RNN),
        "bias": 3.0,
        "default": reach(nn.LSTM),
        "with_bias": reach(nn.LSTM, 3.0),
    }


def _explosion(seeds: range) -> Figures:
    def grown(scale: float) -> float:
        flows = (noise_pass(nn.LSTM, s, forget_bias=3.0, scale=scale) for s in seeds)
        return mean(map(growth, flows))

    return {"lags": LAGS, "bias": 3.0, "small": grown(0.5), "large": grown(LARGE), "scale": LARGE}


def _output_gate(seeds: range) -> Figures:
    flows = [noise_pass(nn.LSTM, s, forget_bias=3.0, scale=LARGE) for s in seeds]
    route = "recurrent.output"
    return {
        "lags": LAGS,
        "scale": LARGE,
        "whole": mean(map(growth, flows)),
        "alone": mean(growth(only(flow, route)) for flow in flows) / LAGS,
        "without": mean(growth(flow.without(route)) for flow in flows),
        "weight": 8.0,
        "by_hand": _one_unit_through_o(8.0),
    }


def _one_unit_through_o(weight: float) -> float:
    """log2 of the growth per step of h_k = o(w h_{k-1} + b) tanh(c), o = 1/2 and tanh(c) near 1.

    Input and forget gate stand open, so that c grows and tanh(c) tends to 1; the bias of the output
    gate takes back what w h adds to it.
    """
    steps, one = 50, torch.ones(1, 1, dtype=torch.float64)
    weight_hh = torch.tensor([[0.0], [0.0], [0.0], [weight]], dtype=torch.float64)
    bias = torch.tensor([30.0, 30.0, 1.0, -weight / 2], dtype=torch.float64)
    cell = Cell(torch.zeros(4, 1, dtype=torch.float64), weight_hh, bias)
    h_and_c = torch.cat((one / 2, 30 * one), 1)
    x = torch.zeros(steps, 1, 1, dtype=torch.float64)
    flow = decompose(record_cell(cell, x, lambda h, _: h[-1].sum(), h_and_c))
    return growth(only(flow, "recurrent.output")) / (steps - 1)


def _other_gates(seeds: range) -> Figures:
    flows = [noise_pass(nn.LSTM, s, forget_bias=3.0, scale=LARGE) for s in seeds]

    def rate(*kept: str) -> float:
        return mean(growth(only(flow, *kept)) for flow in flows) / LAGS

    def cut(route: str) -> float:
        return mean(growth(flow.without(route)) for flow in flows)

    return {
        "lags": LAGS,
        "scale": LARGE,
        "whole": mean(map(growth, flows)),
        "r_i": rate("recurrent.input"),
        "r_f": rate("recurrent.forget"),
        "r_z": rate("recurrent.cell"),
        "r_z_and_carousel": rate("recurrent.cell", "carousel"),
        "without_r_i": cut("recurrent.input"),
        "without_r_f": cut("recurrent.forget"),
        "without_r_z": cut("recurrent.cell"),
    }


def _powers(_: range) -> Figures:
    return {
        "small": 0.99,
        "large": 1.01,
        "below": over_steps(0.99),
        "printed_below": 0.134,
        "unit": 1.0,
        "one": over_steps(1.0),
        "above": over_steps(1.01),
        "printed_above": 13.0,
        "steps": 200,
    }


SIZES = (8, 64)


def _sizes(seeds: range) -> Figures:
    found: dict[str, float] = {
        "lags": LAGS,
        "bias": 3.0,
        "small": SIZES[0],
        "large": SIZES[1],
        "spread": 0.3,
    }
    for rule, spread in (("torch", None), ("fixed", 0.3)):
        for name, size in zip(("small", "large"), SIZES, strict=True):
            flows = [
                noise_pass(nn.LSTM, s, hidden=size, forget_bias=3.0, spread=spread) for s in seeds
            ]
            grown = [growth(flow) for flow in flows]
            found[f"{rule}_{name}"] = mean(grown)
            found[f"{rule}_{name}_share"] = mean(each > 0 for each in grown)
    return found


PAGE = "why-an-lstm-still-explodes.md"

CLAIMS = (
    Claim(
        "one-path-keeps",
        "000",
        "勾配が消えないパスが少なくとも1つある",
        "There is at least one path along which the gradient does not vanish.",
        _paths,
        (
            Statement(
                "without a forget gate (1997, backward pass truncated as it was then) the "
                "adjoint at lag {lags:.0f} is that at lag 1 (measured: 2^{truncated:.2f} of it)",
                lambda f: abs(f["truncated"]) < 1e-9,
            ),
            Statement(
                "with torch's default weights the carousel alone leaves a hundredth of it "
                "(measured: 2^{default:.0f})",
                lambda f: f["default"] > LEFT,
            ),
            Statement(
                "with a forget bias of {bias:.0f} it does (measured: 2^{with_bias:.1f})",
                lambda f: f["with_bias"] > LEFT,
            ),
        ),
        "It was so in 1997, when the carousel had a weight of one. Since there is a forget gate, "
        "the path is as good as that gate is open: at torch's default it stands near one half. "
        "And the whole gradient of the same network of 1997 is another matter, since the paths "
        "through recurrent weights add to it: it changes by 2^{whole_of_1997:.1f} over the same "
        "lags, while its carousel alone keeps 2^{of_1997:.2f}.",
        page="what-each-generation-fixed.md",
    ),
    Claim(
        "lossless-near-one",
        "000",
        "ft+1、1に近いあるδCT+1が蓄積にδCT可逆",
        "When the forget gate is near 1, the adjoint of the next cell state is passed on to this "
        "one without loss.",
        _near_one,
        (
            Statement(
                "with a forget bias of {bias:.0f} a step of the carousel keeps {step:.1%}",
                lambda f: f["step"] > 0.9,
            ),
            Statement("and {lags:.0f} steps keep {over:.1%}", lambda f: f["over"] > 0.5),
            Statement(
                "with a forget bias of {wide:.0f} they keep {over_wide:.0%}",
                lambda f: f["over_wide"] > 0.5,
            ),
        ),
        "Near one is not one. What is lost per step is small, but it compounds: how near a gate "
        "must be depends on the lag. (The text is translated by machine, and has lossless as "
        "reversible.)",
        page="which-initialisation-remembers.md",
    ),
    Claim(
        "lstm-does-not-vanish",
        "000",
        "LSTMは勾配の消失の問題に悩まされることはありません",
        "LSTMs do not suffer from the vanishing gradient problem.",
        _vanishing,
        (
            Statement(
                "with torch's default weights the gradient reaches all {lags:.0f} lags "
                "(measured: {default:.0f})",
                lambda f: f["default"] >= f["lags"],
            ),
            Statement(
                "with a forget bias of {bias:.0f} it does (measured: {bias_1:.0f} of {lags:.0f})",
                lambda f: f["bias_1"] >= f["lags"],
            ),
            Statement(
                "with a forget bias of {open:.0f} it does (measured: {bias_3:.0f} of {lags:.0f})",
                lambda f: f["bias_3"] >= f["lags"],
            ),
        ),
        "Whether it vanishes is decided by the bias of the forget gate, not by the architecture. A "
        "fresh `torch.nn.LSTM` forgets within some ten steps.",
        page="which-initialisation-remembers.md",
    ),
    Claim(
        "harder-to-vanish",
        "000",
        "全体の勾配は消失しにくい",
        "The gradient through c is kept, and therefore the whole gradient is less likely to "
        "vanish.",
        _beside_rnn,
        (
            Statement(
                "of the same noise an LSTM's gradient reaches further than that of a plain RNN, "
                "both with torch's default weights: {default:.1f} steps and {rnn:.1f}",
                lambda f: f["default"] > f["rnn"],
            ),
            Statement(
                "with a forget bias of {bias:.0f} it reaches {with_bias:.1f} of {lags:.0f}, "
                "instead of {rnn:.1f}",
                lambda f: f["with_bias"] > f["rnn"],
            ),
        ),
        "True as it stands, a comparison; but at torch's default it is a matter of a few steps.",
    ),
    Claim(
        "lstm-can-explode",
        "000",
        "勾配が爆発する可能性があります",
        "LSTMs can have exploding gradients.",
        _explosion,
        (
            Statement(
                "with {scale:.0f} times torch's recurrent weights and a forget bias of "
                "{bias:.0f} the adjoint grows by 2^{large:.1f} over {lags:.0f} steps",
                lambda f: f["large"] > 0,
            ),
        ),
        "It needs no exotic weights. At half of torch's recurrent weights the same pass shrinks, "
        "by 2^{small:.1f}; in between it turns.",
        page=PAGE,
    ),
    Claim(
        "powers-of-r-o",
        "000",
        "δytRoTδot+1δyt+1RoTδot+2 … バニラRNNのように2回乗算され、勾配爆発を引き起こす可能性",
        "Along the path from y through the output gate of the next step the gradient is multiplied "
        "by R_o again and again, as in a vanilla RNN, which can make it explode.",
        _output_gate,
        (
            Statement(
                "one unit can be built whose adjoint grows by 2^{by_hand:.2f} per step along this "
                "path alone (R_o = {weight:.0f}, the gate at one half, tanh(c) near one)",
                lambda f: f["by_hand"] > 0,
            ),
            Statement(
                "in an LSTM that explodes ({scale:.0f} times torch's recurrent weights, "
                "2^{whole:.1f} over {lags:.0f} steps) this path alone grows (measured: "
                "2^{alone:.1f} per step)",
                lambda f: f["alone"] > 0,
            ),
            Statement(
                "cutting it there ends the explosion (measured: 2^{without:.1f})",
                lambda f: f["without"] <= 0,
            ),
        ),
        "The path exists, and can explode. In networks as they are drawn it does not: each factor "
        "carries the slope of a sigmoid, at most a quarter, and what it multiplies.",
        page=PAGE,
    ),
    Claim(
        "powers-of-the-other-gates",
        "000",
        "同様に、入力および忘却ゲートを通るパスも、行列自己乗算により勾配爆発を引き起こす可能性",
        "Likewise the paths through input gate, forget gate and cell input (R_i, R_f, R_z) can "
        "make it explode, by multiplying a matrix by itself.",
        _other_gates,
        (
            Statement(
                "at {scale:.0f} times torch's recurrent weights R_i alone grows (measured: "
                "2^{r_i:.1f} per step)",
                lambda f: f["r_i"] > 0,
            ),
            Statement("R_f alone grows (measured: 2^{r_f:.1f})", lambda f: f["r_f"] > 0),
            Statement("R_z alone grows (measured: 2^{r_z:.1f})", lambda f: f["r_z"] > 0),
            Statement(
                "R_z and the carousel together grow, by 2^{r_z_and_carousel:.2f} per step",
                lambda f: f["r_z_and_carousel"] > 0,
            ),
            Statement(
                "without R_z the whole no longer grows: 2^{without_r_z:.1f} instead of "
                "2^{whole:.1f} over {lags:.0f} steps",
                lambda f: f["without_r_z"] < 0 < f["whole"],
            ),
        ),
        "The matrices are to blame, one of them above all, but not as powers of themselves: a step "
        "through R_z moves gradient from h into c, where the carousel keeps it until the next "
        "crossing. Without R_i the whole is left with 2^{without_r_i:.1f}, without R_f with "
        "2^{without_r_f:.1f}.",
        page=PAGE,
    ),
    Claim(
        "powers",
        "000",
        "0.992000.134 1200=1 1.0120013",
        "0.99^200 is about 0.134, 1^200 = 1, 1.01^200 is about 13.",
        _powers,
        (
            Statement(
                "{small}^{steps:.0f} = {below:.3f}, printed as {printed_below:.3f}",
                lambda f: abs(f["below"] - f["printed_below"]) < 0.0005,
            ),
            Statement("{unit:.0f}^{steps:.0f} = {one:.0f}", lambda f: f["one"] == 1),
            Statement(
                "{large}^{steps:.0f} = {above:.2f}, printed as {printed_above:.0f}",
                lambda f: abs(f["above"] - f["printed_above"]) < 0.5,
            ),
        ),
        "The formulas have lost their typesetting, but the last one cannot be read otherwise. The "
        "point is made all the same: a factor near one is not harmless.",
        seeds=1,
    ),
    Claim(
        "larger-nets",
        "000",
        "ネットが大きいほど、この問題に遭遇する可能性が高くなります",
        "The larger the net, the more likely you run into this problem.",
        _sizes,
        (
            Statement(
                "with torch's default weights, which shrink as units are added, "
                "{torch_small_share:.0%} of the networks of {small:.0f} units grow over "
                "{lags:.0f} steps, and {torch_large_share:.0%} of those of {large:.0f}",
                lambda f: f["torch_large_share"] > f["torch_small_share"],
            ),
            Statement(
                "with recurrent weights from one distribution, U(-{spread:.1f}, {spread:.1f}), "
                "{fixed_small_share:.0%} and {fixed_large_share:.0%}",
                lambda f: f["fixed_large_share"] > f["fixed_small_share"],
            ),
        ),
        "Forget bias {bias:.0f}, white noise. The mean adjoint changes by 2^{torch_small:.1f} and "
        "2^{torch_large:.1f} in the first case, by 2^{fixed_small:.1f} and 2^{fixed_large:.1f} in "
        "the second.",
        seeds=20,
        page=PAGE,
    ),
)
