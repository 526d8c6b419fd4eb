"""A shorter input window: the model run on the last steps of its input alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as tree

from retrograde.diagnosis.copies import copied_model
from retrograde.diagnosis.run import LossFunction, run
from retrograde.diagnosis.subject import half_octaves
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.recording import Recorded
from retrograde.truncation.horizon import with_layers
from retrograde.truncation.measures import Comparison, Measures, Total

Cut = Callable[[Any, int], Any]
"""Maps a batch and a number of steps to the batch with only the last so many steps of its input."""

SAME = 1e-4
"""A layer reads the same numbers if they differ by no more than this, relative to their size."""


def shortened(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    layers: Mapping[str, Recorded],
    cut: Cut | None,
) -> tuple[tuple[int, ...], dict[str, Measures]]:
    """The gradients of shorter inputs against that of the whole one, on a grid of K.

    Args:
        model: the user's model; copies are run.
        batch: the batch.
        loss_fn: maps (model, batch) to the loss.
        seed: of what is random in a pass.
        layers: the recorded pass of each layer.
        cut: how the input is cut; found if None.

    Raises:
        ArgumentError: if there is nothing to cut, or it cannot be told how.
    """
    length = max(len(recorded.x) for recorded in layers.values())
    first = min(_first_loss_step(recorded) for recorded in layers.values())
    if first == 0:
        raise ArgumentError(
            'kind="window" needs steps before the first loss step, which a shorter input leaves '
            "out; here the loss enters at step 0, so that every step that is cut takes a part of "
            'the loss with it. Use kind="sliding", or a loss of the last step alone'
        )
    whole = _gradients(layers)
    comparison = Comparison(whole)
    steps = tuple(dict.fromkeys((*(k for k in half_octaves(first + 1) if k), first + 1)))
    for count in steps:
        kept = length - first - 1 + count
        cut_batch = _cut_by_axis(batch, length, kept) if cut is None else cut(batch, kept)
        recording = run(copied_model(model), cut_batch, loss_fn, seed).recording
        for name, recorded in layers.items():
            _check(recording.get(name), recorded, kept, cut is None)
        totals = {}
        for name, row in _gradients({name: recording[name] for name in layers}).items():
            totals[name] = Total(row.values[0])
            totals[name].add(row.values[0], int(row.exponent))
        comparison.add(totals)
    found = comparison.result()
    if len(layers) > 1:
        return steps, {"": Measures.together(list(found.values())), **found}
    return steps, with_layers(found)


def _first_loss_step(recorded: Recorded) -> int:
    entering = torch.nonzero(recorded.direct.flatten(1).any(1))
    return int(entering[0]) if len(entering) else 0


def _gradients(layers: Mapping[str, Recorded]) -> dict[str, Scaled]:
    """Autograd's own gradients of all layers, a row for each parameter."""
    several = len(layers) > 1
    return {
        f"{name}: {of}" if several else of: Scaled.of(gradient.unsqueeze(0))
        for name, recorded in layers.items()
        for of, gradient in recorded.gradients.items()
    }


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
                "steps? Say how the input is cut: cut=lambda batch, steps: ..."
            )
        found += len(axes)
        return leaf.narrow(axes[0], length - kept, kept) if axes else leaf

    result = tree.tree_map(cut, batch, is_leaf=lambda part: isinstance(part, PackedSequence))
    if not found:
        raise ArgumentError(
            f"no tensor of the batch has an axis of the {length} steps that the layer reads. Say "
            "how the input is cut: cut=lambda batch, steps: ..."
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
            "it is cut: cut=lambda batch, steps: ..."
        )
    last = recorded.x[-kept:]
    off = torch.linalg.vector_norm(found.x - last) if found.x.shape == last.shape else torch.inf
    if by_axis and off > SAME * torch.linalg.vector_norm(last):
        raise ArgumentError(
            f"with its input cut along the axis of {len(recorded.x)} steps {recorded.name!r} reads "
            "other numbers than before: what comes before it looks at other steps, or the axis is "
            "another one. Say how the input is cut: cut=lambda batch, steps: ..."
        )
