"""Text 002: problem by problem, how the LSTM came about."""

import torch
from torch import Tensor, nn

from retrograde.decomposition import Flow, decompose
from retrograde.nn import LSTM, initialise
from retrograde.recording import record
from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.clipping import grown
from retrograde.studies.claims.exploding import LEFT
from retrograde.studies.claims.passes import (
    HIDDEN,
    INPUTS,
    SAMPLES,
    STEPS,
    growth,
    mean,
    noise_pass,
)

LAGS = STEPS - 1


def _plain(seeds: range) -> Figures:
    return {
        "lags": LAGS,
        "default": mean(growth(noise_pass(nn.RNN, s)) for s in seeds),
        "scale": 4.0,
        "large": mean(growth(noise_pass(nn.RNN, s, scale=4.0)) for s in seeds),
    }


def _identity(seeds: range) -> Figures:
    one = torch.eye(HIDDEN, dtype=torch.float64)
    return {
        "linear": mean(grown(one, "identity", 1.0, s) for s in seeds),
        "tanh": mean(grown(one, "tanh", 1.0, s) for s in seeds),
    }


def _state_pass(generation: str, seed: int, output_bias: float) -> Flow:
    """A loss on c itself, so that a closed output gate hides c from the gates but not from it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        lstm = LSTM(INPUTS, HIDDEN, generation=generation, dtype=torch.float64)
        initialise(lstm, "forget-bias", value=3.0)
        with torch.no_grad():
            for name, value in (("bias_ih_l0", output_bias), ("bias_hh_l0", 0.0)):
                lstm.get_parameter(name).chunk(4)[3].fill_(value)  # gates i, f, g, o
        x = torch.randn(STEPS, SAMPLES, INPUTS, dtype=torch.float64)
    with record(lstm) as recording:
        lstm(x)[1][1].sum().backward()
    return decompose(recording)


def _lost(flow: Flow, *routes: str) -> float:
    """|G - G without these routes| / |G|."""
    whole, cut = flow.gradient, flow.without(*routes).gradient

    def norm(gradients: list[Tensor]) -> float:
        return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())

    lost = norm([whole[name].plain() - cut[name].plain() for name in whole])
    return lost / norm([gradient.plain() for gradient in whole.values()])


SHUT = -8.0
"""A bias of the output gate that shuts it."""

PEEPHOLES = ("peephole.input", "peephole.forget", "peephole.output")


def _closed(seeds: range) -> Figures:
    def through_h(bias: float) -> float:
        return mean(_lost(_state_pass("lstm-2000", s, bias), "readout") for s in seeds)

    return {"open": through_h(0.0), "shut": SHUT, "closed": through_h(SHUT)}


def _peepholes(seeds: range) -> Figures:
    flows = [_state_pass("lstm-2002", s, SHUT) for s in seeds]
    return {
        "shut": SHUT,
        "h": mean(_lost(flow, "readout") for flow in flows),
        "peepholes": mean(_lost(flow, *PEEPHOLES) for flow in flows),
    }


STORY = "what-each-generation-fixed.md"

CLAIMS = (
    Claim(
        "rnn-vanishes-or-explodes",
        "002",
        "誤差が消失・発散してしまう … 時間を深く遡ると勾配が消失してしまう",
        "In an RNN the error vanishes or diverges; deep in time the gradient vanishes.",
        _plain,
        (
            Statement(
                "torch's default weights: the adjoint changes by 2^{default:.0f} over {lags:.0f} "
                "steps",
                lambda f: f["default"] < LEFT,
            ),
            Statement(
                "{scale:.0f} times these weights: by 2^{large:.0f}",
                lambda f: f["large"] > 0,
            ),
        ),
        "",
        page=STORY,
    ),
    Claim(
        "linear-and-identity",
        "002",
        "活性化関数を線形関数にし、重み行列を単位行列にすると良い",
        "Against vanishing: make the activation function linear, and the weight matrix the "
        "identity.",
        _identity,
        (
            Statement(
                "linear, W = I: the adjoint changes by a factor of {linear:.3f} per step",
                lambda f: abs(f["linear"] - 1) < 1e-9,
            ),
        ),
        "Both are needed: with tanh and noise as input W = I leaves {tanh:.2f} per step.",
        page=STORY,
    ),
    Claim(
        "closed-output-gate",
        "002",
        "出力ゲートが閉じている場合はどのゲートもCECにアクセスできず、CECの状態を見ることができな"
        "い",
        "When the output gate is closed no gate has access to the CEC, none can see its state.",
        _closed,
        (
            Statement(
                "with an output bias of {shut:.0f} cutting c from h changes {closed:.2%} of the "
                "gradient",
                lambda f: f["closed"] < 0.01,
            ),
        ),
        "With the gate half open it changes {open:.0%}. (The loss reads c itself here, and the "
        "forget gate stands open.)",
        page=STORY,
    ),
    Claim(
        "peepholes-see-it",
        "002",
        "覗き穴結合を導入し、CECと各ゲートを繋いだ",
        "Peepholes connect the CEC with each gate, and mend that.",
        _peepholes,
        (
            Statement(
                "with an output bias of {shut:.0f}, where cutting c from h changes {h:.2%} of the "
                "gradient, cutting the peepholes changes {peepholes:.0%}",
                lambda f: f["peepholes"] > 10 * f["h"],
            ),
        ),
        "",
        page=STORY,
    ),
)
