"""Text 004: what to clip, where, and which eigenvalue decides."""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from retrograde.clipping import PreActivationValue
from retrograde.decomposition import decompose
from retrograde.explore.examples import (
    EXPLODING,
    clipped_where,
    factor_per_step,
    long_pass,
    nilpotent,
)
from retrograde.nn import RNN
from retrograde.recording import record
from retrograde.studies.claims.claim import Claim, Figures, Statement
from retrograde.studies.claims.passes import STEPS, growth, mean, noise_pass
from retrograde.studies.claims.trained import ends_finite
from retrograde.tasks.clipping_results import INSIDE, LAG, LAYERS, Run, results

SHORT, LONG = 10, 80
TASKS = ("adding", "CO2")


def _runs(task: str, layer: str, way: str) -> list[Run]:
    return [run for run in results() if (run.task, run.layer, run.way) == (task, layer, way)]


def _diverged(layer: str, way: str) -> int:
    return sum(run.diverged for task in TASKS for run in _runs(task, layer, way))


def _errors(task: str, layer: str, way: str) -> list[float]:
    return [run.error for run in _runs(task, layer, way) if not run.diverged]


def _output_layer(_: range) -> Figures:
    return {
        "trained": sum(len(_runs(task, "RNN", "nothing")) for task in TASKS),
        "nothing": _diverged("RNN", "nothing"),
        "output": _diverged("RNN", "output layer"),
        "recurrent": _diverged("RNN", "recurrent layer"),
        "lstm_nothing": _diverged("LSTM", "nothing"),
    }


def _once_a_step(_: range) -> Figures:
    found: dict[str, float] = {"short": SHORT, "long": LONG, "large": 1.1, "small": 0.9}
    for name in ("large", "small"):
        short, long = (long_pass(found[name], steps) for steps in (SHORT, LONG))
        found[f"output_{name}"] = long[1] / short[1]
        found[f"recurrent_{name}"] = long[0] / short[0]
    return found


def grown(matrix: Tensor, nonlinearity: str, inputs: float, seed: int, steps: int = 40) -> float:
    """What a step multiplies an adjoint by in a plain network with this recurrent matrix.

    Args:
        matrix: W_hh.
        nonlinearity: "tanh", "relu", "sigmoid" or "identity".
        inputs: the standard deviation of what is added to each pre-activation.
        seed: of the input.
        steps: T.
    """
    size = len(matrix)
    rnn = RNN(size, size, nonlinearity=nonlinearity, bias=False, dtype=torch.float64)
    with torch.no_grad():
        rnn.get_parameter("weight_hh_l0").copy_(matrix)
        rnn.get_parameter("weight_ih_l0").copy_(torch.eye(size))
    generator = torch.Generator().manual_seed(seed)
    x = inputs * torch.randn(steps, 4, size, generator=generator, dtype=torch.float64)
    given = torch.randn(4, size, generator=generator, dtype=torch.float64)
    with record(rnn) as recording:
        (rnn(x)[0][-1] * given).sum().backward()
    return float(2 ** (growth(decompose(recording)) / (steps - 1)))


def orthogonal(seed: int, size: int = 32) -> Tensor:
    """A random orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    found: Tensor = torch.linalg.qr(drawn)[0]
    return found


def _mean_growth(seeds: range, scale: float, nonlinearity: str, inputs: float) -> float:
    return mean(grown(scale * orthogonal(s), nonlinearity, inputs, s) for s in seeds)


def _influence(seeds: range) -> Figures:
    return {
        "gain": 1.1,
        "linear": _mean_growth(seeds, 1.1, "identity", 1.0),
        "tanh": _mean_growth(seeds, 1.1, "tanh", 1.0),
    }


def _eigenvalue_one(seeds: range) -> Figures:
    two, one = nilpotent([2, 1])
    return {
        "large": 1.5,
        "small": 0.9,
        "noise": 2.0,
        "none": 0.0,
        "linear_large": _mean_growth(seeds, 1.5, "identity", 1.0),
        "linear_small": _mean_growth(seeds, 0.9, "identity", 1.0),
        "negative": _mean_growth(seeds, -1.5, "identity", 1.0),
        "quiet": _mean_growth(seeds, 1.5, "tanh", 0.0),
        "fed": _mean_growth(seeds, 1.5, "tanh", 2.0),
        "nilpotent": two / one,
    }


def _eigenvalue_four(seeds: range) -> Figures:
    return {
        "unit": 5.0,
        "unit_grown": factor_per_step(5.0, "sigmoid"),
        "weights": 5.0,
        "larger": 8.0,
        "largest": 20.0,
        "five": _mean_growth(seeds, 5.0, "sigmoid", 1.0),
        "eight": _mean_growth(seeds, 8.0, "sigmoid", 1.0),
        "twenty": _mean_growth(seeds, 20.0, "sigmoid", 1.0),
    }


def _quarter(seeds: range) -> Figures:
    return {
        "weight": 1.0,
        "best": factor_per_step(1.0, "sigmoid"),
        "network": _mean_growth(seeds, 1.0, "sigmoid", 1.0),
    }


def _tanh_and_relu(seeds: range) -> Figures:
    return {
        "tanh": factor_per_step(1.0, "tanh"),
        "tanh_fed": _mean_growth(seeds, 1.0, "tanh", 1.0),
        "relu": _mean_growth(seeds, 1.0, "relu", 1.0),
        "sigmoid": _mean_growth(seeds, 1.0, "sigmoid", 1.0),
    }


def _initialisation(seeds: range) -> Figures:
    def reach(kind: Callable[..., nn.Module], **options: float) -> float:
        return mean(noise_pass(kind, s, **options).reach for s in seeds)

    return {
        "lags": STEPS - 1,
        "bias": 3.0,
        "lstm": reach(nn.LSTM),
        "lstm_bias": reach(nn.LSTM, forget_bias=3.0),
        "rnn": reach(nn.RNN),
        "rnn_orthogonal": reach(nn.RNN, orthogonal=1.0),
    }


def _better(_: range) -> Figures:
    errors = {
        f"{task}_{layer}".lower(): mean(_errors(task, layer, "nothing"))
        for task, layer in product(TASKS, LAYERS)
    }
    return {"steps": LAG, **errors}


def _lstms(seeds: range) -> Figures:
    rate, norm = 1.0, 1.0
    return {
        "adam": sum(len(_runs(task, "LSTM", "nothing")) for task in TASKS),
        "adam_diverged": _diverged("LSTM", "nothing"),
        "rate": rate,
        "norm": norm,
        "networks": len(seeds),
        "free": sum(not ends_finite(rate, math.inf, s) for s in seeds),
        "clipped": sum(not ends_finite(rate, norm, s) for s in seeds),
    }


def _where(_: range) -> Figures:
    found = clipped_where(EXPLODING, 0.01)
    rnn = RNN(1, 1, nonlinearity="identity", bias=False)
    for name, value in (("weight_ih_l0", 1.0), ("weight_hh_l0", 0.0)):
        nn.init.constant_(rnn.get_parameter(name), value)
    with record(rnn) as recording:
        (rnn(torch.ones(3, 1, 1))[0].flatten() @ torch.tensor([10, -9.5, -0.4])).backward()
    small = decompose(recording).clipped(PreActivationValue(1.0))
    kinds = list(product(TASKS, LAYERS))
    worse = [min(_errors(*kind, INSIDE)) > max(_errors(*kind, "everything")) for kind in kinds]
    return {
        "at_the_end": found.at_the_end.cosine(),
        "inside": found.inside.cosine(),
        "three": small.cosine("weight_ih_l0"),
        "kinds": len(kinds),
        "worse": sum(worse),
    }


def _elements(seeds: range) -> Figures:
    still, middle = [], []
    for seed in seeds:
        short, long = (
            noise_pass(nn.LSTM, seed, forget_bias=3.0, scale=4.0, steps=steps).recorded
            for steps in (STEPS // 4, STEPS)
        )
        name = "weight_hh_l0"
        factors = (long.gradients[name] / short.gradients[name]).abs()
        still.append(float((factors <= 1).double().mean()))
        middle.append(float(factors.log2().median()))
    return {
        "short": STEPS // 4,
        "long": STEPS,
        "median": mean(middle),
        "still": mean(still),
    }


def _on_the_way(_: range) -> Figures:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        cell = nn.LSTMCell(2, 8, dtype=torch.float64)
        x, given = (torch.randn(20, 4, size, dtype=torch.float64) for size in (2, 8))

    def gradient(clipped: bool) -> Tensor:
        h = c = torch.zeros(4, 8, dtype=torch.float64)
        for x_k in x:
            h, c = cell(x_k, (h, c))
            if clipped:
                h.register_hook(lambda adjoint: adjoint.clamp(-1e-3, 1e-3))
        (found,) = torch.autograd.grad((h * given[-1]).sum(), cell.weight_hh)
        return found.flatten()

    free, held = gradient(clipped=False), gradient(clipped=True)
    return {"cosine": float(torch.cosine_similarity(free, held, 0))}


PAGE = "should-the-output-layer-be-clipped.md"
MEMORY = "which-initialisation-remembers.md"

CLAIMS = (
    Claim(
        "output-layer-need-not-be-clipped",
        "004",
        "Хотя ничто не мешает вам также обрезать их, нет причин делать это",
        "Nothing keeps you from clipping the gradients of the output layer too, but there is no "
        "reason to.",
        _output_layer,
        (
            Statement(
                "of {trained:.0f} plain RNNs as many diverge with the output layer clipped as with "
                "nothing clipped (measured: {output:.0f} and {nothing:.0f})",
                lambda f: f["output"] >= f["nothing"],
            ),
            Statement(
                "none diverges with the recurrent layer alone clipped ({recurrent:.0f})",
                lambda f: f["recurrent"] == 0,
            ),
        ),
        "In the training that diverged it was the output layer that ran away, with an error that "
        "grew from update to update; clipping either layer was enough. Of as many LSTMs "
        "{lstm_nothing:.0f} diverged.",
        seeds=1,
        page=PAGE,
    ),
    Claim(
        "output-layer-once-a-step",
        "004",
        "это будет происходить только по «постоянному» фактору, не зависящему от развертывания "
        "во времени",
        "The output layer is applied once; it may make training harder by a constant factor, which "
        "does not depend on the unrolling in time.",
        _once_a_step,
        (
            Statement(
                "recurrent matrix {large:.1f} times an orthogonal one: from {short:.0f} to "
                "{long:.0f} steps the output layer's gradient changes by {output_large:.2f}, the "
                "recurrent layer's by {recurrent_large:.0f}",
                lambda f: 0.5 < f["output_large"] < 2 < f["recurrent_large"],
            ),
            Statement(
                "{small:.1f} times: by {output_small:.2f} and {recurrent_small:.0e}",
                lambda f: 0.5 < f["output_small"] < 2 and f["recurrent_small"] < 0.5,
            ),
        ),
        "",
        seeds=1,
        page=PAGE,
    ),
    Claim(
        "influence-grows-exponentially",
        "004",
        "если матрица W раздувает скрытое состояние, влияние этого старого скрытого состояния со "
        "временем возрастает экспоненциально",
        "Leaving out the nonlinearity: if W inflates the hidden state, the influence of an old "
        "state grows exponentially with time, and so does the gradient on its way back.",
        _influence,
        (
            Statement(
                "linear, W {gain:.1f} times an orthogonal matrix: {linear:.3f} per step",
                lambda f: abs(f["linear"] / f["gain"] - 1) < 1e-6,
            ),
        ),
        "With tanh and noise as input, which the text leaves out here, the same matrix gives "
        "{tanh:.2f}.",
        page=PAGE,
    ),
    Claim(
        "eigenvalue-one",
        "004",
        "решающее значение, которое определяет … является наибольшим собственным значением W. "
        "Если он больше единицы (или меньше -1 …), тогда вы получите взрывные градиенты. И "
        "наоборот, если он меньше единицы …",
        "What decides is the largest eigenvalue of W: above one, or below minus one, gradients "
        "explode; below one they vanish.",
        _eigenvalue_one,
        (
            Statement(
                "linear, all eigenvalues of modulus {large:.1f}: {linear_large:.2f} per step; "
                "with the opposite sign {negative:.2f}; with {small:.1f}: {linear_small:.2f}",
                lambda f: f["linear_large"] > 1 < f["negative"] and f["linear_small"] < 1,
            ),
            Statement(
                "tanh, {large:.1f}, no input: it grows (measured: {quiet:.2f} per step)",
                lambda f: f["quiet"] > 1,
            ),
            Statement(
                "tanh, {large:.1f}, inputs of standard deviation {noise:.0f}: it grows "
                "(measured: {fed:.2f})",
                lambda f: f["fed"] > 1,
            ),
            Statement(
                "tanh, all eigenvalues {none:.0f}: it vanishes (measured, a nilpotent matrix: "
                "{nilpotent:.2f})",
                lambda f: f["nilpotent"] < 1,
            ),
        ),
        "Right for linear networks, in the long run. With an activation the Jacobian is another "
        "matrix at every step, and products of different matrices do not go by eigenvalues. What "
        "holds: a largest singular value below one makes gradients vanish (Pascanu, Mikolov and "
        "Bengio).",
        page=PAGE,
    ),
    Claim(
        "eigenvalue-four",
        "004",
        "имейте собственное значение больше 4, и у вас будут приключения",
        "With a sigmoid an eigenvalue above 4 makes gradients explode.",
        _eigenvalue_four,
        (
            Statement(
                "one unit held where its slope is largest, w = {unit:.0f}: {unit_grown:.2f} per "
                "step",
                lambda f: f["unit_grown"] > 1,
            ),
            Statement(
                "networks with noise as input, eigenvalues of modulus {weights:.0f}: they grow "
                "(measured: {five:.2f})",
                lambda f: f["five"] > 1,
            ),
            Statement(
                "of modulus {larger:.0f}: they grow (measured: {eight:.2f})",
                lambda f: f["eight"] > 1,
            ),
            Statement(
                "of modulus {largest:.0f}: they grow ({twenty:.2f})", lambda f: f["twenty"] > 1
            ),
        ),
        "Four is where it can begin, not where it does: a sigmoid divides by four at its middle "
        "and by more everywhere else, and large weights drive it away from there.",
        page=PAGE,
    ),
    Claim(
        "sigmoid-divides-by-four",
        "004",
        "при обратном распространении градиенты уменьшаются как минимум в 4 раза",
        "With a sigmoid gradients shrink by a factor of at least 4 on their way back.",
        _quarter,
        (
            Statement(
                "a unit with weight {weight:.0f} at its steepest: {best:.2f} per step",
                lambda f: f["best"] <= 0.25,
            ),
            Statement(
                "networks with an orthogonal matrix and noise as input: {network:.2f}",
                lambda f: f["network"] <= 0.25,
            ),
        ),
        "",
        page=PAGE,
    ),
    Claim(
        "tanh-damps-little-relu-not",
        "004",
        "При tanh наблюдается небольшое демпфирование около нуля, и ReLU просто распространяет "
        "градиент",
        "With tanh there is little damping around zero, and ReLU just hands the gradient on.",
        _tanh_and_relu,
        (
            Statement(
                "tanh at zero: {tanh:.2f} per step",
                lambda f: f["tanh"] > 0.9,
            ),
            Statement(
                "ReLU networks with an orthogonal matrix and noise as input hand it on (measured: "
                "{relu:.2f} per step)",
                lambda f: f["relu"] > 0.9,
            ),
        ),
        "ReLU hands it on where it is open, and half of the units are shut: the square of the "
        "norm is halved. Of the same matrices tanh makes {tanh_fed:.2f} per step, a sigmoid "
        "{sigmoid:.2f}.",
        page=PAGE,
    ),
    Claim(
        "initialise-with-care",
        "004",
        "Очень важно тщательно инициализировать",
        "It is very important to initialise with care.",
        _initialisation,
        (
            Statement(
                "an LSTM's gradient reaches {lstm:.0f} of {lags:.0f} lags with torch's default, "
                "{lstm_bias:.0f} with a forget bias of {bias:.0f}",
                lambda f: f["lstm_bias"] > 2 * f["lstm"],
            ),
            Statement(
                "that of a plain RNN {rnn:.0f}, and {rnn_orthogonal:.0f} with an orthogonal matrix",
                lambda f: f["rnn_orthogonal"] > 2 * f["rnn"],
            ),
        ),
        "",
        page=MEMORY,
    ),
    Claim(
        "lstm-learns-better",
        "004",
        "LSTMs имеют лучшие обучающие свойства, чем ванильные РНН",
        "LSTMs have better training properties than vanilla RNNs.",
        _better,
        (
            Statement(
                "the adding problem over {steps:.0f} steps, mean squared error: "
                "{adding_lstm:.4f} and {adding_rnn:.4f}",
                lambda f: f["adding_lstm"] < f["adding_rnn"],
            ),
            Statement(
                "forecasts of CO2, ppm: {co2_lstm:.3f} and {co2_rnn:.3f}",
                lambda f: f["co2_lstm"] < f["co2_rnn"],
            ),
        ),
        "Means over the seeds that did not diverge, nothing clipped; orthogonal weights and SGD "
        "for the one, an open forget gate and Adam for the other.",
        seeds=1,
        page=PAGE,
    ),
    Claim(
        "lstms-need-clipping-too",
        "004",
        "Хотя по моему опыту, градиентное отсечение обычно также необходимо с ними",
        "In my experience gradient clipping is usually necessary with them, too.",
        _lstms,
        (
            Statement(
                "of {adam:.0f} LSTMs trained with Adam and nothing clipped some diverge (measured: "
                "{adam_diverged:.0f})",
                lambda f: f["adam_diverged"] > 0,
            ),
            Statement(
                "of {networks:.0f} under plain gradient descent, rate {rate:.1f}, {free:.0f} end "
                "in numbers that are not finite, and {clipped:.0f} of those clipped to a norm of "
                "{norm:.0f}",
                lambda f: f["free"] > f["clipped"],
            ),
        ),
        "It depends on the optimiser. Adam divides by the size of the gradient itself; plain "
        "descent takes a step as large as the gradient, and one is enough. (Finite is not yet "
        "trained: the rate is large.)",
        page=PAGE,
    ),
    Claim(
        "clip-before-the-update",
        "004",
        "Прямо перед обновлением весов … поэтому лучше не искажать его в середине backprop",
        "Clip just before the update of the weights: the gradient should be as exact as "
        "possible, so do not distort it in the middle of back-propagation.",
        _where,
        (
            Statement(
                "clipped to the same norm, the gradient keeps its direction at the end (cosine "
                "{at_the_end:.3f}), not inside ({inside:.3f})",
                lambda f: f["at_the_end"] > 0.999 > f["inside"],
            ),
            Statement(
                "inside it may even turn round: three parts that cancel, each held within a limit, "
                "have a cosine of {three:.0f} to their sum",
                lambda f: f["three"] < 0,
            ),
            Statement(
                "networks end worse for it, beyond what seeds do (measured: in {worse:.0f} of "
                "{kinds:.0f} kinds of training)",
                lambda f: f["worse"] > 0,
            ),
        ),
        "Right about the direction. In what the networks learnt no difference could be seen.",
        seeds=1,
        page=PAGE,
    ),
    Claim(
        "only-some-elements-explode",
        "004",
        "может случиться так, что взорвутся только некоторые элементы градиента, в то время как "
        "другие все еще будут вести себя хорошо",
        "It may be that only some elements of the gradient explode, while others still behave "
        "well.",
        _elements,
        (
            Statement(
                "in an LSTM that explodes, from {short:.0f} to {long:.0f} steps, the median "
                "element of the recurrent gradient grows by 2^{median:.1f}, and {still:.0%} of "
                "them do not grow",
                lambda f: f["median"] > 1 and f["still"] > 0.01,
            ),
        ),
        "",
    ),
    Claim(
        "no-choice",
        "004",
        "С большинством наборов инструментов у вас все равно нет выбора, потому что обратное "
        "распространение происходит атомарно",
        "With most toolkits there is no choice anyway, as back-propagation happens in one piece.",
        _on_the_way,
        (
            Statement(
                "in PyTorch a hook on each h_k leaves the gradient as it is (measured: cosine "
                "{cosine:.2f})",
                lambda f: f["cosine"] > 0.999,
            ),
        ),
        "Written of the toolkits of its time in general. In PyTorch every tensor takes a hook, and "
        "`retrograde.nn.clip_inside` does it for whole layers.",
        seeds=1,
        page=PAGE,
    ),
)
