"""The truncation curve of a model over several batches."""

import statistics
import warnings
from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn

from retrograde import _checks
from retrograde.decomposition.flow import unasked, void_in_words
from retrograde.diagnosis.batches import Batches, calls_next, draw, is_source
from retrograde.diagnosis.copies import copied_model, untouched
from retrograde.diagnosis.run import LossFunction, run
from retrograde.errors import ArgumentError, VoidDecompositionWarning
from retrograde.recording import Recording
from retrograde.truncation.horizon import Horizon, with_layers
from retrograde.truncation.measures import Measures

BATCHES = 16
"""Batches that are looked at unless the caller says otherwise."""


def horizon(
    model: nn.Module,
    batches: Any,
    loss_fn: LossFunction,
    *,
    kind: str = "sliding",
    layer: str | None = None,
    most: int = BATCHES,
    seed: int = 0,
) -> Horizon:
    """How long a window the gradients of a model need, over several batches.

    A copy of the model is run forwards and backwards on each batch, and each backward pass is taken
    apart by lag, as in `Flow.horizon`.

    Args:
        model: the model; it is copied, and the copy is run.
        batches: a DataLoader, an iterator or a function of a seed; or a single batch, which a list
            or a tuple is too.
        loss_fn: maps (model, batch) to the scalar loss; it must use the model that it is given.
        kind: "sliding" or "chunks".
        layer: the one recurrent layer to look at; all if None. The recurrence of each is then
            truncated on its own: what comes to a layer through the past of a layer above it counts
            as given by the loss, so that the bias of truncating all of them at once may be larger.
        most: the maximum number of batches.
        seed: of what is random in the passes, and of the batches where they are a function.

    Returns:
        A `Horizon` for K = 1 .. T.

    Raises:
        ArgumentError: for a kind, layer or number that cannot be, if there is no batch, if batches
            have different numbers of steps, or if the loss is not a scalar tensor with a gradient.
        RetrogradeError: whatever `record` and `decompose` refuse.

    Example:
        >>> import torch, retrograde
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.GRU(1, 4)
        >>> def batches(seed):
        ...     return torch.randn(30, 2, 1)
        >>> def loss_fn(model, x):
        ...     return model(x)[0].square().mean()
        >>> horizon = retrograde.horizon(model, batches, loss_fn, most=3)
        >>> horizon
        Horizon of the whole gradient (sliding, 30 steps, 3 batches)
        >>> horizon.window(delta=0.5) < 10
        True
    """
    _checks.model("model", model)
    _checks.function("loss_fn", loss_fn, "(model, batch) -> loss", takes=2)
    kind = _checks.one_of("kind", kind, ("sliding", "chunks"))
    if layer is not None:
        _checks.instance("layer", layer, str, "the name of a layer")
    most, seed = _checks.whole("most", most), _checks.whole("seed", seed, -(2**63), 2**64 - 1)
    given = _given(model, batches, loss_fn, seed, most)
    every: list[dict[str, Measures]] = []
    reaches: list[int] = []
    length = 0
    for batch in chain([given.first], given.further(seed, most, float("inf"))):
        with untouched(model):
            recording = run(copied_model(model), batch, loss_fn, seed).recording
        found, steps, reach = _looked_at(recording, layer, kind)
        if every and steps != length:
            raise ArgumentError(
                f"the batches have different numbers of steps: {length} and {steps}. Give batches "
                "of one length"
            )
        length = steps
        every.append(found)
        reaches.append(reach)
    names = {name: tuple(found[name] for found in every) for name in every[0]}
    steps_back = tuple(range(1, length + 1))
    return Horizon(kind, steps_back, length, names, round(statistics.median(reaches)))


def _given(model: nn.Module, batches: Any, loss_fn: LossFunction, seed: int, most: int) -> Batches:
    """The batches; an iterator whose next one the loss takes itself is a single batch."""
    if isinstance(batches, Iterator):
        first = draw(batches, seed, 1).first
        batches = chain([first], batches)
        if calls_next(model, first, loss_fn, seed):
            return Batches(batches, (batches,))
    return draw(batches, seed, most) if is_source(batches) else Batches(batches, (batches,))


def _looked_at(
    recording: Recording, layer: str | None, kind: str
) -> tuple[dict[str, Measures], int, int]:
    """The measures of one pass by name, its steps, and the reach of its gradient."""
    if layer is not None and layer not in recording.refused:
        _checks.existing("layer", layer, recording)
    names = [*recording] if layer is None else [layer]
    if not names:
        recording.only()  # says why
    flows = {name: unasked(recording[name]) for name in names}
    for name, flow in flows.items():
        if not flow.residual.ok:
            words = void_in_words(name, flow.residual)
            warnings.warn(words, VoidDecompositionWarning, stacklevel=3)
    length = max(flow.steps for flow in flows.values())
    reach = max(flow.reach for flow in flows.values())
    by_layer = {name: flow.truncated[kind] for name, flow in flows.items()}
    if len(by_layer) == 1:
        return with_layers(next(iter(by_layer.values()))), length, reach
    found: dict[str, Measures] = {}
    for name, some in by_layer.items():
        every = {part: one.extended(length) for part, one in with_layers(some).items()}
        found[name] = every.pop("")
        found |= {f"{name}: {part}": one for part, one in every.items()}
    whole = Measures.together([found[name] for name in by_layer])
    return {"": whole, **found}, length, reach
