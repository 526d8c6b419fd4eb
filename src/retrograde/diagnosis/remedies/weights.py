"""Other weights in the layer, or in what reads it: how they are drawn, scaled and shifted."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.cells.keras import kind_of, weights_of_keras
from retrograde.diagnosis.activity import keeping_for
from retrograde.diagnosis.remedies.remedy import (
    Applied,
    Target,
    Unfit,
    expression,
    remedy,
)
from retrograde.errors import ArgumentError
from retrograde.nn import initialise


def _initialise(target: Target, name: str, title: str, **options: Any) -> Applied:
    try:
        initialise(target.layer, name, **options)
    except ArgumentError as error:
        raise Unfit from error
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return Applied(title, f'retrograde.nn.initialise({target.here}, "{name}"{given})')


def bias_for(lag: int) -> float:
    """The forget bias b at which sigma(b)^lag is 1 %, but 1 at least, with two digits."""
    f = keeping_for(lag)
    return round(max(1.0, math.log(f / (1 - f))), 2)


@remedy(
    "forget-bias",
    "The forget gate's bias (a GRU's update gate) is set so high that 1 % of the state is "
    "left after the lag that matters, and to 1 at least; torch draws it around 0, where half "
    "is lost at a step.",
    "The gate's bias is too low",
    "Set the gate's bias",
    "Give the units a longer time constant",
)
def forget_bias(target: Target) -> Applied:
    value = bias_for(target.lag)
    title = f"forget bias {value:g} (keeps 1 % over {target.lag} steps)"
    return _initialise(target, "forget-bias", title, value=value)


@remedy(
    "chrono",
    "The biases of forget (update) and input gates are drawn so that time constants spread "
    "evenly up to the lag that matters: some units keep for long, others forget at once "
    "(Tallec and Ollivier, 2018).",
    "Set the gate's bias",
    "Give the units a longer time constant",
    "Initialise for that horizon",
)
def chrono(target: Target) -> Applied:
    horizon = max(3, target.lag)
    title = f"chrono initialisation for {horizon} steps"
    return _initialise(target, "chrono", title, horizon=horizon)


@remedy(
    "orthogonal",
    "Each gate's recurrent weights become a random orthogonal matrix, which changes no "
    "length: what still shrinks or grows is due to slopes and gates.",
    "Make the recurrent weights smaller, or orthogonal",
    "Start the recurrent weights from an orthogonal matrix",
)
def orthogonal(target: Target) -> Applied:
    return _initialise(target, "orthogonal", "orthogonal recurrent weights")


@remedy(
    "identity",
    "The recurrent weights of a relu RNN become the identity, its biases 0 and its input "
    "weights small: an active unit hands its state and its gradient on as they are (Le, "
    "Jaitly and Hinton, 2015).",
)
def identity(target: Target) -> Applied:
    return _initialise(target, "identity", "identity recurrent weights (relu RNN)")


@remedy(
    "fresh",
    "All weights of the layer are drawn anew as torch draws them, from U(-1/sqrt(H), "
    "1/sqrt(H)): it tells whether the fault lies in the weights or in the input.",
    "The recurrent weights or the biases are large",
    "Start from smaller weights",
    "Draw fresh weights",
    "Draw them as torch does",
)
def fresh(target: Target) -> Applied:
    return _initialise(target, "torch", "fresh weights, torch's default")


@remedy(
    "spectral-radius",
    "Each gate's recurrent weights are divided by their spectral radius: below 1 a linear "
    "recurrence vanishes, above 1 it can explode (Pascanu, Mikolov and Bengio, 2013).",
)
def spectral_radius(target: Target) -> Applied:
    return _scaled(target, "spectral radius", "torch.linalg.eigvals(gate).abs().max()")


@remedy(
    "spectral-norm",
    "Each gate's recurrent weights are divided by their largest singular value, so that they "
    "stretch nothing: a plain RNN explodes only where that value is above 1 (Pascanu, Mikolov "
    "and Bengio, 2013).",
)
def spectral_norm(target: Target) -> Applied:
    return _scaled(target, "largest singular value", "torch.linalg.matrix_norm(gate, 2)")


def _scaled(target: Target, what: str, size: str) -> Applied:
    sizes: dict[str, Callable[[Tensor], Tensor]] = {
        "spectral radius": lambda gate: torch.linalg.eigvals(gate).abs().max(),
        "largest singular value": lambda gate: torch.linalg.matrix_norm(gate, 2),
    }
    cell = getattr(target.layer, "cell", None)
    keras = bool(kind_of(cell))
    half = next(target.layer.parameters()).dtype in (torch.float16, torch.bfloat16)
    weights = weights_of_keras(cell) if keras else dict(target.layer.named_parameters())
    named = [w for n, w in weights.items() if n.startswith("weight_hh")]
    if not named or any(len(w) % w.shape[1] or not bool(w.isfinite().all()) for w in named):
        raise Unfit
    with torch.no_grad():
        for weight in named:
            for gate in torch.split(weight, weight.shape[1]):
                gate /= sizes[what](gate.float() if half else gate)
    measure = size.replace("(gate", "(gate.float()") if half else size
    title = f"recurrent weights scaled to {what} 1"
    if keras:
        return Applied(
            title,
            f"kernel = {target.here}.cell.recurrent_kernel.value\n"
            "with torch.no_grad():\n"
            "    for gate in kernel.split(len(kernel), 1):\n"
            f"        gate /= {measure}",
        )
    return Applied(
        title,
        "with torch.no_grad():\n"
        f"    for name, weight in {target.here}.named_parameters():\n"
        '        if name.startswith("weight_hh"):\n'
        "            for gate in weight.split(weight.shape[1]):\n"
        f"                gate /= {measure}",
    )


@remedy(
    "one-bias",
    "The slice of `bias_hh` that belongs to the forget gate (a GRU's update gate) is set to 0: "
    "torch adds it to that of `bias_ih`, and the bias that was meant is the one that is left.",
)
def one_bias(target: Target) -> Applied:
    layer: Any = target.layer
    if kind_of(getattr(layer, "cell", None)) == "GRU":
        return _one_row(target, layer.cell)
    if not isinstance(layer, nn.LSTM | nn.LSTMCell | nn.GRU | nn.GRUCell):
        raise Unfit
    hidden = layer.hidden_size  # the second gate in both of torch's orders, i, f, g, o and r, z, n
    with torch.no_grad():
        for name, bias in layer.named_parameters():
            if name.startswith("bias_hh"):
                bias[hidden : 2 * hidden] = 0
    return Applied(
        "the gate's bias in bias_ih alone",
        "with torch.no_grad():\n"
        f"    for name, bias in {target.here}.named_parameters():\n"
        '        if name.startswith("bias_hh"):\n'
        f"            bias[{hidden}:{2 * hidden}] = 0",
    )


def _one_row(target: Target, cell: Any) -> Applied:
    """The same for a GRU of Keras, whose two biases are the rows of one."""
    weights, hidden = weights_of_keras(cell), cell.units  # the first gate in Keras' order z, r, h
    if "bias_hh" not in weights:
        raise Unfit
    with torch.no_grad():
        weights["bias_hh"][:hidden] = 0
    return Applied(
        "the gate's bias in the first row of bias alone",
        f"with torch.no_grad():\n    {target.here}.cell.bias.value[1, :{hidden}] = 0",
    )


@remedy(
    "fresh-output",
    "Whatever runs after the recurrent layers draws its weights anew by its own "
    "`reset_parameters`.",
)
def fresh_output(target: Target) -> Applied:
    drawn = []
    for path in target.after:
        module = target.module(path)
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
            drawn.append(f"{expression(path)}.reset_parameters()")
    if not drawn:
        raise Unfit
    return Applied("fresh weights in the output layer", "\n".join(drawn))
