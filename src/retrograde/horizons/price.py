"""What a window costs: the recurrent layer run over so many steps, timed and weighed."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from retrograde.diagnosis.copies import copied_model, untouched
from retrograde.nn import AbstractRecurrent
from retrograde.recording import Recorded, recurrent_layers
from retrograde.truncation.price import Price

ROUNDS = 3
"""A pass is run so often after one that warms up; the least time counts."""


def price(
    model: nn.Module, layers: Mapping[str, Recorded], steps: int | None, further: int = 0
) -> Price | None:
    """What a window costs against all steps; None where a layer cannot be run on its own.

    Args:
        model: the user's model; a copy is run.
        layers: the recorded layers. Several are run one after the other.
        steps: of the window; None if there is none.
        further: the steps after the first loss step that are read as well.
    """
    if steps is None:
        return None
    present = max(len(recorded.x) for recorded in layers.values())
    seconds, size, whole_seconds, whole_size = 0.0, 0, 0.0, 0
    with untouched(model):
        modules = recurrent_layers(copied_model(model))
        for name, recorded in layers.items():
            if not isinstance(modules.get(name), nn.RNNBase | AbstractRecurrent):
                return None
            short, long = (
                _measured(modules[name], recorded, n) for n in (steps + further, present)
            )
            seconds, size = seconds + short[0], size + short[1]
            whole_seconds, whole_size = whole_seconds + long[0], whole_size + long[1]
    return Price(steps, present, seconds, whole_seconds, size, whole_size, further)


def _measured(layer: nn.Module, recorded: Recorded, steps: int) -> tuple[float, int]:
    """Seconds of a forward and a backward pass, and bytes kept between them beside the weights."""
    x = recorded.x[-steps:].detach()
    if getattr(layer, "batch_first", False):
        x = x.transpose(0, 1)
    x = x.to(next(layer.parameters()).dtype)
    best, kept = float("inf"), dict[int, int]()

    weights = {weight.untyped_storage().data_ptr() for weight in layer.parameters()}

    def weigh(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for round_ in range(ROUNDS + 1):
        _wait(x)
        start = time.perf_counter()
        if round_ == 0:
            with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
                output = layer(x)[0]
        else:
            output = layer(x)[0]
        output.sum().backward()
        _wait(x)
        best = min(best, time.perf_counter() - start) if round_ else best
    return best, sum(kept.values())


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
