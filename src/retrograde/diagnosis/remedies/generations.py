"""Another generation of the recurrence in the place of the layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from retrograde.cells.gates import with_role
from retrograde.cells.generations import generation
from retrograde.diagnosis.remedies.remedy import Applied, Target, Unfit, assignment, remedy
from retrograde.diagnosis.remedies.weights import bias_for
from retrograde.nn import GRU, LSTM, RNN, initialise


def _sizes(layer: nn.Module) -> dict[str, Any]:
    """The constructor arguments of a recurrent layer, those that are not torch's defaults."""
    defaults = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    given = {name: getattr(layer, name) for name in defaults}
    return {name: value for name, value in given.items() if value != defaults[name]}


def _call(kind: str, layer: Any, **options: Any) -> str:
    named = {**_sizes(layer), **options}
    weight = next(layer.parameters())
    if weight.device.type != "cpu":
        named["device"] = str(weight.device)
    words = [str(layer.input_size), str(layer.hidden_size)]
    words += [f"{name}={value!r}" for name, value in named.items()]
    if weight.dtype != torch.get_default_dtype():
        words.append(f"dtype={weight.dtype}")
    return f"{kind}({', '.join(words)})"


def _made(kind: Callable[..., nn.Module], layer: Any, **options: Any) -> nn.Module:
    """A layer of another kind with the same sizes, on the same device, drawn in the same type."""
    weight = next(layer.parameters())
    options |= {"device": weight.device, "dtype": weight.dtype}
    return kind(layer.input_size, layer.hidden_size, **_sizes(layer), **options)


def projects(layer: nn.Module) -> bool:
    """Whether a layer of torch projects its state onto fewer units."""
    return isinstance(layer, nn.RNNBase) and layer.proj_size > 0


@remedy(
    "no-forget-gate",
    "The LSTM is replaced by one without a forget gate, as it was in 1997: its carousel keeps "
    "everything (f = 1), and its cell state can drift.",
)
def no_forget_gate(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.LSTM | LSTM) or projects(layer):
        raise Unfit
    if isinstance(layer, LSTM) and layer.generation == "nfg":
        raise Unfit
    code = assignment(target.path, _call("retrograde.nn.LSTM", layer, generation="nfg"))
    target.replace(_made(LSTM, layer, generation="nfg"))
    return Applied("another generation: no forget gate (f = 1), fresh weights", code)


@remedy(
    "forget-gate",
    "An LSTM that cannot forget is replaced by one that can (Gers, Schmidhuber and Cummins, "
    "2000): a cell state that only adds up drifts into saturation.",
)
def forget_gate(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, LSTM) or with_role(generation(layer.generation).blocks, "forget"):
        raise Unfit
    made = _made(nn.LSTM, layer)
    code = assignment(target.path, _call("torch.nn.LSTM", layer))
    target.replace(made)
    return Applied("another generation: with a forget gate (2000), fresh weights", code)


@remedy(
    "lstm",
    "A plain RNN or a GRU is replaced by an LSTM of the same size, whose forget bias keeps 1 "
    "% of the state over the lag that matters: its carousel crosses no recurrent weights.",
)
def lstm(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.RNN | RNN | nn.GRU | GRU):
        raise Unfit
    value = bias_for(target.lag)
    made = _made(nn.LSTM, layer)
    initialise(made, "forget-bias", value=value)
    code = (
        assignment(target.path, _call("torch.nn.LSTM", layer))
        + "  # its state is a pair: output, (h_n, c_n)\n"
        f'retrograde.nn.initialise({target.here}, "forget-bias", value={value})'
    )
    target.replace(made)
    return Applied(f"another generation: an LSTM with forget bias {value:g}, fresh weights", code)


@remedy(
    "truncated-1997",
    "Nothing comes back through h, as in the backward pass of 1997: the carousel alone "
    "carries the gradient, and it cannot grow; the forward pass stays as it is.",
)
def truncated(target: Target) -> Applied:
    layer = target.layer
    if not isinstance(layer, nn.LSTM | nn.GRU) or projects(layer) or is_parametrized(layer):
        raise Unfit
    kind = LSTM if isinstance(layer, nn.LSTM) else GRU
    made = LSTM.from_torch(layer) if isinstance(layer, nn.LSTM) else GRU.from_torch(layer)
    made.truncated = True
    code = (
        assignment(target.path, f"retrograde.nn.{kind.__name__}.from_torch({target.here})")
        + f"\n{target.here}.truncated = True"
    )
    target.replace(made)
    return Applied("the truncated backward pass of 1997: nothing comes back through h", code)
