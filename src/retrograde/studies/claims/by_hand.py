"""Text 003: back-propagation through an LSTM in numbers, and what it concludes from them."""

import numpy as np
import torch
from torch import nn

from retrograde.cells import Elman
from retrograde.decomposition import decompose
from retrograde.explore.examples import PRINTED, components, printed_numbers
from retrograde.recording import record_cell
from retrograde.spectra import spectrum
from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.exploding import LEFT
from retrograde.studies.claims.passes import STEPS, carousel, growth, half_life, mean, noise_pass

LAGS = STEPS - 1


def _printed(_: range) -> Figures:
    pairs = zip(components(), PRINTED, strict=True)
    return {"difference": max(abs(ours - theirs) for ours, theirs in pairs)}


def parts_of_lstm(seed: int) -> list[float]:
    """The parts of the article's LSTM, lag by lag, for a seed of its random numbers."""
    norms: list[float] = printed_numbers(seed).by_time("weight_ih_l0").norm[2].tolist()
    return norms[::-1]


def parts_of_rnn(seed: int) -> list[float]:
    """Those of a plain RNN with the same input, initial state and weights of the first gate."""
    random = np.random.RandomState(seed)
    shapes = ((1, 3, 3), (1, 1), (3, 4), (1, 4), (4,), (1, 3, 1))
    x, h0, w, r, b, given = (torch.from_numpy(random.randn(*shape)) for shape in shapes)
    made = record_cell(
        Elman(w.T[:1].contiguous(), r.T[:1].contiguous(), b[:1]),
        x.transpose(0, 1).contiguous(),
        lambda h, _: (h[-1] * given[:, -1]).sum(),
        h0,
    )
    norms: list[float] = decompose(made).by_time("weight_ih").norm[-1].tolist()
    return norms[::-1]


def _nearest(seeds: range) -> Figures:
    parts = [parts_of_lstm(seed) for seed in seeds]
    printed = parts_of_lstm(1)
    return {
        "draws": len(seeds),
        "lag_0": printed[0],
        "lag_1": printed[1],
        "lag_2": printed[2],
        "nearest": mean(part[0] == max(part) for part in parts),
        "in_order": mean(part == sorted(part, reverse=True) for part in parts),
    }


def _beside_rnn(seeds: range) -> Figures:
    def ratio(parts: list[float]) -> float:
        return parts[0] / parts[2]

    some = seeds[:4]
    draws = [ratio(parts_of_rnn(s)) > ratio(parts_of_lstm(s)) for s in seeds]
    return {
        "draws": len(seeds),
        "larger": mean(draws),
        "rnn": mean(half_life(noise_pass(nn.RNN, s)) for s in some),
        "lstm": mean(half_life(noise_pass(nn.LSTM, s)) for s in some),
        "orthogonal": mean(half_life(noise_pass(nn.RNN, s, orthogonal=1.0)) for s in some),
    }


def _overwritten(seeds: range) -> Figures:
    def left(quiet: bool = False, orthogonal: float | None = None) -> float:
        flows = [noise_pass(nn.RNN, s, orthogonal=orthogonal, quiet=quiet) for s in seeds]
        return mean(spectrum(flow.recorded).memory.state for flow in flows)

    return {
        "lags": LAGS,
        "default": left(),
        "orthogonal": left(orthogonal=1.0),
        "quiet": left(quiet=True, orthogonal=1.0),
    }


def _sigmoid_candidate(seeds: range) -> Figures:
    """c_k = f c_{k-1} + i g of an LSTM whose cell input g is a sigmoid, torch's default weights."""

    def falling(seed: int, forget: bool) -> float:
        lstm = noise_pass(nn.LSTM, seed).recorded
        w, r = lstm.weights["weight_ih_l0"], lstm.weights["weight_hh_l0"]
        b = lstm.weights["bias_ih_l0"] + lstm.weights["bias_hh_l0"]
        h = c = torch.zeros(lstm.x.shape[1], r.shape[1], dtype=r.dtype)
        fell = []
        for x in lstm.x:
            i, f, g, o = torch.sigmoid(x @ w.T + h @ r.T + b).chunk(4, 1)
            new = (f if forget else 1.0) * c + i * g
            fell.append((new < c).double().mean())
            h, c = o * new.tanh(), new
        return float(torch.stack(fell).mean())

    return {
        "with_forget": mean(falling(s, True) for s in seeds),
        "without": mean(falling(s, False) for s in seeds),
    }


def _two_ways(seeds: range) -> Figures:
    flows = [noise_pass(nn.LSTM, s, forget_bias=3.0) for s in seeds]
    alone = [carousel(flow) for flow in flows]
    return {
        "lags": LAGS,
        "bias": 3.0,
        "hidden": mean(growth(flow.without("carousel"), 1) for flow in flows),
        "off": max(abs(growth(one, 1) - _product_of_gates(one)) for one in alone),
        "both": mean(growth(flow, 1) for flow in flows),
        "cell": mean(growth(one, 1) for one in alone),
    }


def _product_of_gates(flow: object) -> float:
    """log2 of how an adjoint of c shrinks if each step multiplies it by the forget gate alone.

    The one at lag 1 is what the loss gives to h, times the gate; from there on gates multiply.
    """
    unrolled, recorded = flow.unrolled, flow.recorded  # type: ignore[attr-defined]
    gates = []
    for k in range(len(unrolled)):
        step = unrolled.cell.step(unrolled.x[k], unrolled.states[k]).layers[0].activations
        gates.append(step["forget"])
        last = step
    given = recorded.output_adjoint[-1]
    c = unrolled.states[-1][:, given.shape[1] :]
    delta = given * last["output"] * (1 - torch.tanh(c) ** 2)
    at_1 = delta * gates[-1]
    at_end = at_1 * torch.stack(gates[1:-1]).prod(0)
    return float(torch.log2(at_end.norm() / at_1.norm()))


def _rates(seeds: range) -> Figures:
    off = [
        abs(growth(one, 1) - _product_of_gates(one)) / (LAGS - 1)
        for one in (carousel(noise_pass(nn.LSTM, s, forget_bias=1.0)) for s in seeds)
    ]
    found: dict[str, float] = {"bias": 1.0, "open": 3.0, "off": max(off)}
    for name, bias in (("default", None), ("bias_1", 1.0), ("bias_3", 3.0)):
        flows = [noise_pass(nn.LSTM, s, forget_bias=bias) for s in seeds]
        found[name] = mean(growth(flow, 1) for flow in flows) / (LAGS - 1)
        found[f"{name}_gate"] = mean(growth(carousel(flow), 1) for flow in flows) / (LAGS - 1)
    return found


def _slower(seeds: range) -> Figures:
    def of_lstm(bias: float | None) -> float:
        return mean(half_life(noise_pass(nn.LSTM, s, forget_bias=bias)) for s in seeds)

    return {
        "lags": LAGS,
        "reach": mean(noise_pass(nn.LSTM, s).reach for s in seeds),
        "rnn": mean(half_life(noise_pass(nn.RNN, s)) for s in seeds),
        "default": of_lstm(None),
        "bias": 1.0,
        "bias_1": of_lstm(1.0),
    }


VERY_LONG = 500


def _very_long(seeds: range) -> Figures:
    def grown(bias: float | None) -> list[tuple[float, float]]:
        size = {"steps": VERY_LONG, "hidden": 16}
        flows = [noise_pass(nn.LSTM, s, forget_bias=bias, **size) for s in seeds]
        return [(growth(flow, 1), growth(carousel(flow), 1)) for flow in flows]

    bias_1, bias_3 = grown(1.0), grown(3.0)
    return {
        "lags": VERY_LONG - 1,
        "bias": 1.0,
        "open": 3.0,
        "bias_1": mean(whole for whole, _ in bias_1),
        "bias_3": mean(alone for _, alone in bias_3),
        "bias_3_whole": mean(whole for whole, _ in bias_3),
    }


ARTICLE = "checking-an-article.md"
MEMORY = "which-initialisation-remembers.md"

CLAIMS = (
    Claim(
        "overwritten",
        "003",
        "隠れ状態は各ステップで更新されるため、古い情報は上書きされ、ネットワークは過去に見たもの"
        "を忘れてしまいます",
        "A vanilla RNN updates its hidden state at every step, so that old information is "
        "overwritten and forgotten.",
        _overwritten,
        (
            Statement(
                "with torch's default weights a hundredth of a perturbation of the state is left "
                "after {default:.0f} of {lags:.0f} steps, and no more later",
                lambda f: f["default"] < f["lags"],
            ),
            Statement(
                "with an orthogonal recurrent matrix after {orthogonal:.0f} of {lags:.0f}",
                lambda f: f["orthogonal"] < f["lags"],
            ),
            Statement(
                "also without any input (measured, orthogonal: {quiet:.0f} of {lags:.0f})",
                lambda f: f["quiet"] < f["lags"],
            ),
        ),
        "An update need not overwrite. An orthogonal matrix keeps all that was seen as long as no "
        "input drives tanh to where its slope is small; what ends it is the next input.",
        page=MEMORY,
    ),
    Claim(
        "sigmoid-cannot-shrink",
        "003",
        "シグモイド活性化関数がある場合、メモリセルの要素は決して減少しない",
        "tanh in g lets the cell state grow or shrink: with a sigmoid its elements would never "
        "shrink.",
        _sigmoid_candidate,
        (
            Statement(
                "with a sigmoid, and no forget gate, they never shrink (measured: in {without:.0%} "
                "of all steps)",
                lambda f: f["without"] == 0,
            ),
            Statement(
                "with a sigmoid in the article's own LSTM neither (measured: in "
                "{with_forget:.0%} of all steps)",
                lambda f: f["with_forget"] == 0,
            ),
        ),
        "That was so in 1997. The forget gate multiplies c by less than one, and shrinks it "
        "whatever g is. What a sigmoid would forbid is a change of sign.",
    ),
    Claim(
        "printed-numbers",
        "003",
        "成分 0 - 0.010906688399113558成分 1 - 0.02478099846737857成分 2 - 0.13901933055672275",
        "The parts of dL_3/dW_x have these norms.",
        _printed,
        (
            Statement(
                "the largest difference from those of torch.nn.LSTM is {difference:.0e}",
                lambda f: f["difference"] < 1e-12,
            ),
        ),
        "The printed matrices are right, too. The code that is to give them does not run as it is "
        "printed, which the page goes through line by line.",
        seeds=1,
        page=ARTICLE,
    ),
    Claim(
        "nearest-is-largest",
        "003",
        "L3に最も近いX3が最も大きな更新を持つことがわかりますが、X1とX2はWx1の更新に寄与する量が"
        "少ないです",
        "X_3, nearest to L_3, has the largest update; X_1 and X_2 contribute less.",
        _nearest,
        (
            Statement(
                "in the printed example: {lag_0:.3f}, {lag_1:.3f} and {lag_2:.3f} by lag",
                lambda f: f["lag_0"] > max(f["lag_1"], f["lag_2"]),
            ),
            Statement(
                "whatever the seed (measured: in {nearest:.0%} of {draws:.0f})",
                lambda f: f["nearest"] == 1,
            ),
        ),
        "Three steps, one unit and normal weights leave much to chance; in {in_order:.0%} of "
        "the draws all three parts fall with lag.",
        seeds=100,
        quick=6,
        page=ARTICLE,
    ),
    Claim(
        "rnn-falls-faster",
        "003",
        "ただし、RNNの場合、この差はより大きくなります",
        "In an RNN the difference between near and far is larger still.",
        _beside_rnn,
        (
            Statement(
                "the article's network as a plain RNN with the same numbers: in most draws "
                "({larger:.0%} of {draws:.0f})",
                lambda f: f["larger"] > 0.5,
            ),
            Statement(
                "torch's default weights, long sequences: the adjoint halves in {rnn:.1f} steps, "
                "in an LSTM in {lstm:.1f}",
                lambda f: f["rnn"] < f["lstm"],
            ),
            Statement(
                "whatever the weights (measured: {orthogonal:.1f} steps in orthogonal ones, "
                "{lstm:.1f} in an LSTM)",
                lambda f: f["orthogonal"] < f["lstm"],
            ),
        ),
        "At torch's default both fall fast. A plain RNN with orthogonal weights falls slower than "
        "an LSTM with torch's.",
        seeds=100,
        quick=6,
        page=MEMORY,
    ),
    Claim(
        "two-ways",
        "003",
        "隠れ状態を通過する勾配は、RNNと同様に勾配消失の影響を受けます … セルを通過する勾配にはWh"
        "の項ではなく、シグモイドの項が含まれます",
        "The gradient through the hidden state vanishes as in an RNN; that through the cell has a "
        "sigmoid, the forget gate, in the place of W_h.",
        _two_ways,
        (
            Statement(
                "with a forget bias of {bias:.0f} and no carousel the adjoint changes by "
                "2^{hidden:.0f} over {lags:.0f} steps",
                lambda f: f["hidden"] < LEFT,
            ),
            Statement(
                "the carousel alone multiplies by the gates: log2 of both products differs by "
                "{off:.0e}",
                lambda f: f["off"] < 1e-9,
            ),
        ),
        "The two ways do not add up side by side: the whole adjoint changes by 2^{both:.1f}, the "
        "carousel alone by 2^{cell:.1f}. Most paths use both.",
        page="why-an-lstm-still-explodes.md",
    ),
    Claim(
        "rate-of-the-forget-gate",
        "003",
        "勾配はWxの速度ではなく、忘却ゲートの速度で減衰します",
        "The gradient decays at the rate of the forget gate, not at that of the weights.",
        _rates,
        (
            Statement(
                "along the carousel alone: log2 per step differs from that of the gates by "
                "{off:.0e}",
                lambda f: f["off"] < 1e-9,
            ),
            Statement(
                "torch's default: the adjoint changes by 2^{default:.2f} per step, the gates alone "
                "would by 2^{default_gate:.2f}",
                lambda f: f["default"] / f["default_gate"] > 0.9,
            ),
            Statement(
                "forget bias {bias:.0f}: by 2^{bias_1:.2f}, the gates alone by 2^{bias_1_gate:.2f}",
                lambda f: f["bias_1"] / f["bias_1_gate"] > 0.9,
            ),
            Statement(
                "forget bias {open:.0f}: by 2^{bias_3:.3f}, the gates alone by 2^{bias_3_gate:.3f}",
                lambda f: f["bias_3"] / f["bias_3_gate"] > 0.9,
            ),
        ),
        "It is the rate of one path. The paths through the recurrent weights make up for a part "
        "of the loss, and with an open gate for all of it, so that the whole decays more slowly "
        "or grows. (A rate counts as that of the gates if it is within a tenth of it.)",
        page=MEMORY,
    ),
    Claim(
        "vanishes-but-slower",
        "003",
        "LSTMは実際には勾配の消失に苦しんでいるが、セル状態のおかげでバニラRNNよりもはるかに低い"
        "速度でそれが起こる",
        "LSTMs do suffer from vanishing gradients, but at a much lower rate than a vanilla RNN.",
        _slower,
        (
            Statement(
                "with torch's default weights it vanishes: it reaches {reach:.0f} of {lags:.0f} "
                "lags",
                lambda f: f["reach"] < f["lags"],
            ),
            Statement(
                "at less than half the rate of a plain RNN (measured: it halves in {default:.1f} "
                "steps instead of {rnn:.1f})",
                lambda f: f["default"] > 2 * f["rnn"],
            ),
            Statement(
                "with a forget bias of {bias:.0f} it is less than half ({bias_1:.1f} and "
                "{rnn:.1f} steps)",
                lambda f: f["bias_1"] > 2 * f["rnn"],
            ),
        ),
        "Much slower is a matter of the forget bias again.",
        page=MEMORY,
    ),
    Claim(
        "very-long-sequences",
        "003",
        "完全に解消されない場合や非常に長いシーケンスの場合でも、問題はまだ存在します",
        "It is not fully solved, and with very long sequences the problem is still there.",
        _very_long,
        (
            Statement(
                "forget bias {bias:.0f}: the adjoint changes by 2^{bias_1:.0f} over {lags:.0f} "
                "steps",
                lambda f: f["bias_1"] < LEFT,
            ),
            Statement(
                "forget bias {open:.0f}: the carousel alone leaves 2^{bias_3:.0f}",
                lambda f: f["bias_3"] < LEFT,
            ),
        ),
        "With that bias the whole adjoint changes by 2^{bias_3_whole:.0f}: the paths through the "
        "recurrent weights make up for a part of it.",
    ),
)
