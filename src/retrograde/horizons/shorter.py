"""A shorter input window: the model run on the last steps of its input alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as tree

from retrograde._checks import listed
from retrograde._words import counted
from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.run import LossFunction, run
from retrograde.diagnosis.subject import half_octaves
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError, RetrogradeError
from retrograde.horizons.feedback import detach_input
from retrograde.horizons.used import one_way
from retrograde.recording import Recorded, Recording, recurrent_layers
from retrograde.truncation.horizon import of_layers
from retrograde.truncation.measures import Comparison, Measures, Total

Cut = Callable[[Any, int], Any]
"""Maps a batch and a number of steps to the batch with only the last so many steps of its input."""

HOW = "retrograde.horizon(..., kind='window', cut=lambda batch, steps: ...)"

SAME = 1e-4
"""A layer reads the same numbers if they differ by no more than this, relative to their size."""


@dataclass(frozen=True, eq=False)
class Shorter:
    """What shorter inputs leave of the gradient.

    Attributes:
        steps: the K, ascending.
        further: the steps after the first loss step, which every input keeps.
        measures: by name, "" for the whole gradient.
    """

    steps: tuple[int, ...]
    further: int
    measures: Mapping[str, Measures]


def shortened(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    recording: Recording,
    layers: Mapping[str, Recorded],
    cut: Cut | None,
) -> Shorter:
    """The gradients of shorter inputs against that of the whole one, on a grid of K.

    Args:
        model: the user's model; copies are run.
        batch: the batch.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in a pass.
        recording: the pass.
        layers: the layers of it whose gradients are looked at.
        cut: how the input is cut; found if None.

    Raises:
        ArgumentError: if there is nothing to cut, if it cannot be told how, or if the loss cannot
            be had of a shorter input.
    """
    if not all(map(one_way, layers.values())):
        raise ArgumentError(
            'kind="window" needs layers that read the sequence one way; this one reads it both '
            "ways, so that no step's past can be cut on its own"
        )
    lengths = {name: len(recorded.x) for name, recorded in recording.items()}
    length = max(lengths.values())
    if min(lengths.values()) < length:
        reads = listed(f"{name} reads {counted(steps, 'step')}" for name, steps in lengths.items())
        raise ArgumentError(
            f'kind="window" needs layers that read the same steps of the input; here {reads}. Use '
            'kind="sliding"'
        )
    entering = entry_steps(model, batch, loss_fn, seed, recording)
    if not entering:
        raise ArgumentError(
            'kind="window" needs a loss that enters at some step; here no step gets a gradient'
        )
    first = min(entering)
    if first == 0:
        raise ArgumentError(
            'kind="window" needs steps before the first loss step, which a shorter input leaves '
            "out; here the loss enters at step 0, so that every step that is cut takes a part of "
            'the loss with it. Use kind="sliding", or a loss of the last step alone'
        )
    further = length - 1 - first
    comparisons = {name: Comparison(_gradients(recorded)) for name, recorded in layers.items()}
    steps = tuple(dict.fromkeys((*(k for k in half_octaves(first + 1) if k), first + 1)))
    for count in steps:
        kept = count + further
        cut_batch = _cut_by_axis(batch, length, kept) if cut is None else cut(batch, kept)
        try:
            shorter = run(copied_model(model), cut_batch, loss_fn, seed).recording
            found = entry_steps(model, cut_batch, loss_fn, seed, shorter)
        except Exception as error:
            raise ArgumentError(
                f"loss_fn fails where the input is cut to its last {kept} of {length} steps: "
                f"{_said(error)}. It may count steps from the first one on: count them from the "
                f"last one, or say how a batch is cut, {HOW}"
            ) from error
        reads_first = next(iter(recording))
        for name, recorded in recording.items():
            _check(shorter.get(name), recorded, kept, cut is None and name == reads_first)
        if cut is None and found != {step - (length - kept) for step in entering}:
            raise ArgumentError(
                f"where the input is cut to its last {kept} of {length} steps the loss enters at "
                f"other steps: {_places(found, kept)}, not {_places(entering, length)} (-1 is the "
                "last one). Count steps from the last one, or say how a batch is cut, " + HOW
            )
        for name, comparison in comparisons.items():
            totals = {}
            for of, row in _gradients(shorter[name]).items():
                totals[of] = Total(row.values[0])
                totals[of].add(row.values[0], int(row.exponent))
            comparison.add(totals)
    measures = of_layers({name: each.result() for name, each in comparisons.items()})
    return Shorter(steps, further, measures)


def entry_steps(
    model: nn.Module, batch: Any, loss_fn: LossFunction, seed: int, recording: Recording
) -> set[int]:
    """The steps at which the loss enters, not by way of another recurrent layer.

    What a layer gets from one above it came there at a later step.
    """
    if len(recurrent_layers(model)) > 1:
        copy = copied_model(model)
        for layer in recurrent_layers(copy).values():
            detach_input(layer)
        recording = run(copy, batch, loss_fn, seed).recording
    return {
        int(step)
        for recorded in recording.values()
        for step in torch.nonzero(recorded.direct.flatten(1).any(1))
    }


def _said(error: Exception) -> str:
    """What went wrong, in a line; of a traceback that the command line made a message, the last."""
    lines = str(error).strip().splitlines() or [""]
    return (
        lines[-1] if isinstance(error, RetrogradeError) else f"{type(error).__name__}: {lines[0]}"
    )


def _places(steps: set[int], length: int) -> str:
    """Steps counted from the last one."""
    return listed(step - length for step in sorted(steps))


def _gradients(recorded: Recorded) -> dict[str, Scaled]:
    """Autograd's own gradients of a layer, a row for each parameter."""
    return {name: Scaled.of(gradient.unsqueeze(0)) for name, gradient in recorded.gradients.items()}


def _cut_by_axis(batch: Any, length: int, kept: int) -> Any:
    """The last steps of every tensor that has one axis as long as the sequence.

    Raises:
        ArgumentError: if none has such an axis, or one has two.
    """
    found = 0

    def cut(leaf: Any) -> Any:
        nonlocal found
        if isinstance(leaf, PackedSequence) or not isinstance(leaf, Tensor):
            return leaf
        axes = [axis for axis, size in enumerate(leaf.shape) if size == length]
        if len(axes) > 1:
            raise ArgumentError(
                f"which axis of a tensor of shape {list(leaf.shape)} is that of the {length} "
                f"steps? Say how the input is cut: {HOW}"
            )
        found += len(axes)
        return leaf.narrow(axes[0], length - kept, kept) if axes else leaf

    result = tree.tree_map(cut, batch, is_leaf=lambda part: isinstance(part, PackedSequence))
    if not found:
        raise ArgumentError(
            f"no tensor of the batch has an axis of the {length} steps that the layer reads. Say "
            f"how the input is cut: {HOW}"
        )
    return result


def _check(found: Recorded | None, recorded: Recorded, kept: int, by_axis: bool) -> None:
    """Refuse a cut after which a layer does not read the last steps of what it read.

    Raises:
        ArgumentError: with what it reads.
    """
    steps = 0 if found is None else len(found.x)
    if found is None or steps != kept:
        raise ArgumentError(
            f"the input was cut to {kept} steps, and {recorded.name!r} then reads {steps}. Say how "
            f"it is cut: {HOW}"
        )
    last = recorded.x[-kept:]
    off = torch.linalg.vector_norm(found.x - last) if found.x.shape == last.shape else torch.inf
    if by_axis and off > SAME * torch.linalg.vector_norm(last):
        raise ArgumentError(
            f"with its input cut along the axis of {len(recorded.x)} steps {recorded.name!r} reads "
            "other numbers than before: what comes before it looks at other steps, or the axis is "
            f"another one. Say how the input is cut: {HOW}"
        )
