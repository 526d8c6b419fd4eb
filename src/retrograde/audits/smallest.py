"""The smallest case that still fails: fewer steps, samples, inputs and units."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from retrograde.audits.trial import LayerCall, Trial, attempt
from retrograde.recording.calls import data

LINEAR = 8
"""Up to this many every number is tried in turn; beyond, the interval is halved."""


def smallest(
    layer: LayerCall, dtype: torch.dtype, trial: Trial, whole: tuple[int, int], seed: int
) -> tuple[Trial, tuple[int, int]]:
    """A smaller trial that fails as one does, and how many inputs and units are left.

    Steps and samples are left out; inputs and units are set to zero, with all weights that lead to
    them and from them, which needs no constructor.

    Args:
        layer: the call as it was recorded, of T and B as in `whole`.
        dtype: the precision.
        trial: one that fails, of this call or of one with other steps.
        whole: T and B of the call.
        seed: of the adjoints.
    """
    first, (steps, batch) = trial.call.form.batch_first, trial.size
    best = trial

    def fails(call: LayerCall) -> bool:
        nonlocal best
        try:
            found = attempt(call, dtype, seed, again=False)
        except Exception:  # a size that the layer does not take
            return False
        if found.differences:
            best = found
        return bool(found.differences)

    def cut(steps: int, batch: int) -> LayerCall:
        return resized(layer, whole, (steps, batch), first)

    if not trial.call.form.stepped:
        steps = fewest(steps, lambda count: fails(cut(count, whole[1])))
    batch = fewest(batch, lambda count: fails(cut(steps, count)))
    small, (inputs, units) = cut(steps, batch), trial.widths
    inputs = fewest(inputs, lambda count: fails(with_inputs(small, count, inputs)))
    small = with_inputs(small, inputs, trial.widths[0])
    units = fewest(units, lambda count: fails(with_units(small, count, units)))
    return best, (inputs, units)


def fewest(most: int, fails: Callable[[int], bool]) -> int:
    """The fewest of something with which it still fails; it does with `most`."""
    few = 0
    for count in range(1, min(LINEAR, most - 1) + 1):
        if fails(count):
            return count
        few = count
    count = 2 * few
    while few and count < most:  # doubled until it fails, and halved from there on
        if fails(count):
            most = count
            break
        few, count = count, 2 * count
    while few and most - few > 1:
        middle = (few + most) // 2
        few, most = (few, middle) if fails(middle) else (middle, most)
    return most


def with_inputs(layer: LayerCall, count: int, inputs: int) -> LayerCall:
    """The call with all input features but the first ones set to zero."""

    def change(value: Tensor | PackedSequence) -> Tensor | PackedSequence:
        values = data(value)
        if not values.is_floating_point() or values.shape[-1] != inputs:
            return value
        kept = values * (torch.arange(inputs, device=values.device) < count)
        return value._replace(data=kept) if isinstance(value, PackedSequence) else kept

    return layer.changed(change)


def with_units(layer: LayerCall, count: int, units: int) -> LayerCall:
    """The call with the weights of all units but the first ones set to zero."""
    module = copy.deepcopy(layer.module)
    with torch.no_grad():
        for parameter in module.parameters():
            for axis, size in enumerate(parameter.shape):
                if size % units == 0:  # a block for each gate
                    kept = torch.arange(size, device=parameter.device) % units < count
                    parameter.mul_(kept.view(-1, *[1] * (parameter.ndim - 1 - axis)))
    return replace(layer, module=module)


def resized(layer: LayerCall, size: tuple[int, int], to: tuple[int, int], first: bool) -> LayerCall:
    """The call with other numbers of steps and samples; more steps repeat what there is.

    Args:
        layer: the call.
        size: its T and B.
        to: those wanted.
        first: whether sequences are [B, T, *].
    """
    (steps, batch), (new_steps, new_batch) = size, to
    time, samples = (1, 0) if first else (0, 1)

    def change(value: Tensor | PackedSequence) -> Any:
        if isinstance(value, PackedSequence):
            padded, lengths = pad_packed_sequence(value)
            return pack_padded_sequence(
                padded[:new_steps, :new_batch],
                lengths[:new_batch].clamp(max=new_steps),
                enforce_sorted=False,
            )
        shape = value.shape
        if value.ndim > 2 and shape[time] == steps and shape[samples] == batch:
            order = torch.arange(new_steps, device=value.device) % steps
            return value.index_select(time, order).narrow(samples, 0, new_batch)
        axis = next((axis for axis in (1, 0) if value.ndim > 2 and shape[axis] == batch), None)
        if axis is None and value.ndim and shape[0] == batch:
            axis = 0
        cut = value if axis is None else value.narrow(axis, 0, new_batch)
        counts = not value.is_floating_point() and value.ndim == 1  # of steps
        return cut.clamp(max=new_steps) if counts else cut

    return layer.changed(change)
