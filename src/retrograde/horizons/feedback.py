"""Whether the outputs of a layer come back to it through its own input, as in a decoder.

    x_{t+1} = g(h_t)      dL/dh_t has a part that comes back by way of x_{t+1}

That part takes no hop of the recurrence, so that it counts as given by the loss at step t, whatever
a truncation leaves of dL/dx_{t+1}. It is found by experiment: with the input detached the rest is
left.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.run import LossFunction, run
from retrograde.recording import Recorded, recurrent_layers

SAME = 1e-4
"""What the loss gives to a state is the same up to this part of its size."""


def count_calls(model: nn.Module) -> Counter[str]:
    """How often each recurrent layer of a model is called from now on, counted as it happens."""
    calls = Counter[str]()
    for name, layer in recurrent_layers(model).items():
        if isinstance(layer, torch.jit.ScriptModule):
            continue
        layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def fed_back(
    model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, layers: Mapping[str, Recorded]
) -> list[str]:
    """The layers, of some that are called more than once, to which their outputs come back.

    Args:
        model: the user's model; copies are run.
        batch: the batch that was recorded.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in the pass.
        layers: what was recorded of them.
    """
    found = []
    for name, recorded in layers.items():
        copy = copied_model(model)
        detach_input(recurrent_layers(copy)[name])
        again = run(copy, batch, loss_fn, seed).recording.get(name)
        if again is None or again.direct.shape != recorded.direct.shape:
            continue
        off = torch.linalg.vector_norm(again.direct - recorded.direct)
        if off > SAME * torch.linalg.vector_norm(recorded.direct):
            found.append(name)
    return found


def detach_input(layer: nn.Module) -> None:
    """From now on a layer reads its input, its first argument, without the graph behind it.

    Not a scripted one, which takes no hooks of ours.
    """
    if not isinstance(layer, torch.jit.ScriptModule):
        layer.register_forward_pre_hook(_detached, with_kwargs=True)


def _detached(_: nn.Module, inputs: Any, options: Any) -> Any:
    if not inputs:
        return inputs, options
    read, *others = inputs
    if isinstance(read, PackedSequence):
        read = read._replace(data=read.data.detach())
    elif isinstance(read, Tensor):
        read = read.detach()
    return (read, *others), options
