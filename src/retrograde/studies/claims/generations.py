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
from retrograde.studies.claims.trained import (
    SHUT,
    TWO,
    fires,
    following,
    reber_conflict,
    storing,
    tells_apart,
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


PEEPHOLES = ("peephole.input", "peephole.forget", "peephole.output")


def _closed(seeds: range) -> Figures:
    def through_h(bias: float) -> float:
        return mean(_lost(_state_pass("lstm-2000", s, bias), "readout") for s in seeds)

    return {"open": through_h(0.0), "shut": SHUT, "closed": through_h(SHUT)}


WAIT = 8
"""Steps from the pulse to its answer."""


def _peepholes(seeds: range) -> Figures:
    flows = [_state_pass("lstm-2002", s, SHUT) for s in seeds]
    return {
        "steps": WAIT,
        "networks": len(seeds),
        "without": sum(fires("lstm-2000", s, WAIT) for s in seeds),
        "with_them": sum(fires("lstm-2002", s, WAIT) for s in seeds),
        "shut": SHUT,
        "h": mean(_lost(flow, "readout") for flow in flows),
        "peepholes": mean(_lost(flow, *PEEPHOLES) for flow in flows),
    }


def _input_conflict(seeds: range) -> Figures:
    bare, gated = ([storing(name, s) for s in seeds] for name in ("cec", "lstm-1997"))
    found: dict[str, float] = {}
    for name, several in (("bare", bare), ("gated", gated)):
        found[f"{name}_cosine"] = mean(sides.cosine for sides, _, _ in several)
        found[f"{name}_error"] = mean(error for _, error, _ in several)
    for name, generation in (("bare", "cec"), ("gated", "lstm-1997")):
        found[f"{name}_learnt"] = sum(tells_apart(generation, s) for s in seeds)
    found |= {"networks": len(seeds), "length": TWO.length}
    return found


def _output_conflict(seeds: range) -> Figures:
    found: dict[str, float] = {}
    for name, generation in (("bare", "cec"), ("gated", "lstm-1997")):
        sides = [reber_conflict(generation, s) for s in seeds]
        found[f"{name}_signs"] = mean(side.signs for side in sides)
        found[f"{name}_cosine"] = mean(side.cosine for side in sides)
    return found


def _gates(seeds: range) -> Figures:
    several = [storing("lstm-1997", s)[2] for s in seeds]
    return {name: mean(gates[name] for gates in several) for name in several[0]}


def _abrupt(seeds: range) -> Figures:
    found: dict[str, float] = {}
    for target in ("sum", "level"):
        several = [following("lstm-1997", target, s) for s in seeds]
        found[f"{target}_first"] = mean(one.first for one in several)
        found[f"{target}_late"] = mean(one.late for one in several)
        found[f"{target}_constant"] = mean(one.constant for one in several)
        found[f"{target}_c_early"] = mean(one.c_early for one in several)
        found[f"{target}_c_late"] = mean(one.c_late for one in several)
    return found


def _forgetting(seeds: range) -> Figures:
    several = [following("lstm-2000", "sum", s) for s in seeds]
    return {
        "first": mean(one.first for one in several),
        "late": mean(one.late for one in several),
        "at_change": mean(one.forget for one in several),
        "elsewhere": mean(one.forget_else for one in several),
        "c_early": mean(one.c_early for one in several),
        "c_late": mean(one.c_late for one in several),
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
        "input-weight-conflict",
        "002",
        "ニューロンが共通の重みで繋がっていると、互いに重みを打ち消し合ってしまい、長期依存性の学"
        "習ができない … これを「入力重み衝突」",
        "Units with shared weights cancel each other, between signals that matter and those that "
        "do not, and long dependencies cannot be learnt: the input weight conflict, which the "
        "input gate resolves.",
        _input_conflict,
        (
            Statement(
                "one of several values is to be stored: without gates the two sides of the "
                "gradient of the input weights, from the step to store and from all others, "
                "oppose each other (cosine {bare_cosine:.2f}), with gates they do not "
                "({gated_cosine:.2f})",
                lambda f: f["bare_cosine"] < -0.5 < f["gated_cosine"],
            ),
            Statement(
                "and it is not learnt without gates: an error of {bare_error:.2f}, with gates "
                "{gated_error:.2f}",
                lambda f: f["bare_error"] > 2 * f["gated_error"],
            ),
            Statement(
                "nor are two classes learnt that the first of {length:.0f} elements tells apart, "
                "noise on the same input after it (experiment 3a of 1997, shortened; measured: "
                "{bare_learnt:.0f} of {networks:.0f} networks learn it without gates, "
                "{gated_learnt:.0f} with them)",
                lambda f: f["bare_learnt"] < f["networks"] / 2,
            ),
        ),
        "A clean case shows it. On the published task gates are not needed, as the cell may take "
        "in noise as long as the first element outweighs it.",
        page=STORY,
    ),
    Claim(
        "output-weight-conflict",
        "002",
        "これを … 「出力重み衝突」と呼びます … 出力ゲート→CEC内の情報を次の層にどれだけ影響させる"
        "かを調整する",
        "The same for output weights, which must read a cell at one step and not disturb at "
        "others: the output weight conflict, which the output gate resolves.",
        _output_conflict,
        (
            Statement(
                "strings of the embedded Reber grammar (experiment 1 of 1997), readout of T and "
                "P: the step at which the symbol is due and all others pull {bare_signs:.0%} of "
                "the weights in opposite directions without gates, {gated_signs:.0%} with gates",
                lambda f: f["bare_signs"] > f["gated_signs"] + 0.1,
            ),
            Statement(
                "they agree more with gates: a cosine of {gated_cosine:.2f} between the two, "
                "{bare_cosine:.2f} without",
                lambda f: f["gated_cosine"] > f["bare_cosine"] + 0.3,
            ),
        ),
        "",
        page=STORY,
    ),
    Claim(
        "gates-at-the-right-time",
        "002",
        "過去の情報が必要になったタイミングでのみゲートを挙げて信号を伝搬させる … 過去の情報を必"
        "要なタイミングでのみ取得、置換できる",
        "The gates are raised only when the past is needed: what is stored is read and replaced "
        "only at the right time.",
        _gates,
        (
            Statement(
                "trained to store one of several values and to put it out at a query, the input "
                "gate stands at {input:.2f} at the step to store, at {input_else:.2f} elsewhere",
                lambda f: f["input"] > 1.2 * f["input_else"],
            ),
            Statement(
                "the output gate at {output:.2f} at the query, at {output_else:.2f} elsewhere",
                lambda f: f["output"] > 1.2 * f["output_else"],
            ),
            Statement(
                "elsewhere both are closed (measured: {input_else:.2f} and {output_else:.2f})",
                lambda f: max(f["input_else"], f["output_else"]) < 0.1,
            ),
        ),
        "They open wider when it matters, and do not shut in between.",
        page=STORY,
    ),
    Claim(
        "without-a-forget-gate",
        "002",
        "時系列データが急激に変化した場合、CECの値がなかなか変化しないのでうまく学習できない",
        "When a series changes abruptly, the value of the CEC is slow to change, so that it cannot "
        "learn well.",
        _abrupt,
        (
            Statement(
                "the sum since the last change: an LSTM of 1997 errs by {sum_first:.2f} before "
                "the first change and by {sum_late:.2f} from the tenth segment on (a constant: "
                "{sum_constant:.2f})",
                lambda f: f["sum_late"] > 2 * f["sum_first"],
            ),
            Statement(
                "the level since the last change: alike (measured: {level_first:.2f}, then "
                "{level_late:.2f}; a constant: {level_constant:.2f})",
                lambda f: f["level_late"] > 2 * f["level_first"],
            ),
        ),
        "A sum it cannot start again. A level it can follow; that it adds the difference to its "
        "old value, which it sees in h, was not checked. The cell state runs away in both: |c| "
        "goes from {sum_c_early:.0f} to {sum_c_late:.0f} and from {level_c_early:.0f} to "
        "{level_c_late:.0f}.",
        page=STORY,
    ),
    Claim(
        "forget-gate",
        "002",
        "過去の情報を覚えておく必要がなくなったタイミングでその情報をCECに忘れさせるための仕組み"
        "である「忘却ゲート」",
        "The forget gate lets the CEC forget what need no longer be remembered.",
        _forgetting,
        (
            Statement(
                "the sum since the last change: an LSTM of 2000 errs by {first:.2f} before the "
                "first change and by {late:.2f} from the tenth segment on",
                lambda f: f["late"] < 1.5 * f["first"],
            ),
            Statement(
                "its forget gate stands at {at_change:.2f} at a change, at {elsewhere:.2f} "
                "elsewhere",
                lambda f: f["at_change"] < f["elsewhere"],
            ),
        ),
        "|c| stays where it is, at {c_early:.1f} and {c_late:.1f}. The price: at torch's default "
        "biases the gate takes the reach away.",
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
            Statement(
                "more networks with a gate that starts shut learn to answer a pulse {steps:.0f} "
                "steps later: {with_them:.0f} of {networks:.0f}, and {without:.0f} without "
                "peepholes",
                lambda f: f["with_them"] > f["without"],
            ),
        ),
        "They are no necessity: some networks learn it without.",
        seeds=10,
        page=STORY,
    ),
)
