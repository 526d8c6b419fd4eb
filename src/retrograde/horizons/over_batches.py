"""The truncation curve of a model over several batches."""

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from retrograde import _checks
from retrograde._words import counted
from retrograde.cells import SideBySide
from retrograde.declarations.matching import Declared
from retrograde.decomposition import Flow
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.flow import unasked, void_in_words
from retrograde.diagnosis.batches import Batches, calls_next, draw, is_source
from retrograde.diagnosis.copies import copied_model, untouched
from retrograde.diagnosis.examine import Progress
from retrograde.diagnosis.run import LossFunction, run
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError, VoidDecompositionWarning
from retrograde.recording import Recording
from retrograde.recording.layers import declared
from retrograde.truncation.horizon import Horizon, with_layers
from retrograde.truncation.measures import Measures
from retrograde.truncation.signal import signal_of
from retrograde.truncation.truncated import Binned, Truncation, fold_lags

BATCHES = 16
"""Batches that are looked at unless the caller says otherwise."""

TRAINING_STEPS = 1000
"""Steps of the training that learnability is judged for unless the caller says otherwise."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What one pass says.

    Attributes:
        measures: by name, "" for the whole gradient.
        parts: those of each bin of lags, by layer and parameter.
        lags: the bins.
        steps: of the longest layer.
        reach: the largest of any layer.
        samples: of the batch.
        notes: what a reader must know.
    """

    measures: Mapping[str, Measures]
    parts: tuple[Mapping[str, Scaled], ...]
    lags: tuple[range, ...]
    steps: int
    reach: int
    samples: int
    notes: tuple[str, ...]


def horizon(
    model: nn.Module,
    batches: Any,
    loss_fn: LossFunction,
    *,
    kind: str = "sliding",
    layer: str | None = None,
    most: int = BATCHES,
    training_steps: int = TRAINING_STEPS,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cells: Declared | None = None,
) -> Horizon:
    """How long a window the gradients of a model need, over several batches.

    A copy of the model is run forwards and backwards on each batch, and each backward pass is taken
    apart by lag, as in `Flow.horizon`.

    Batches of another size than the first, as the last one of a DataLoader may be, are left out.

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
        training_steps: how many steps a training has to tell signal from noise, for the
            learnability horizon.
        batch_size: the samples of each of its batches; those of the batches seen if None.
        seed: of what is random in the passes, and of the batches where they are a function.
        progress: called with (batches done, batches in all, what comes next).
        cells: further recurrences inside the model, as `record` takes them.

    Returns:
        A `Horizon` for K = 1 .. T. Its `learnable` is None for a single batch.

    Raises:
        ArgumentError: for a kind, layer or number that cannot be, if there is no batch, if batches
            differ in steps or layers, or if the loss is not a scalar tensor with a gradient.
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
    _checks.loss_function(loss_fn)
    kind = _checks.one_of("kind", kind, ("sliding", "chunks"))
    if layer is not None:
        _checks.instance("layer", layer, str, "the name of a layer")
    most, seed = _checks.whole("most", most), _checks.whole("seed", seed, -(2**63), 2**64 - 1)
    training_steps = _checks.whole("training_steps", training_steps)
    batch_size = _checks.optional_whole("batch_size", batch_size)
    if progress is not None:
        _checks.function("progress", progress, "(done, total, what comes next)", takes=3)
    every: list[Seen] = []
    left_out = 0
    with declared(model, cells):
        given = _given(model, batches, loss_fn, seed, most)
        total = len(given.drawn) if given.function is None else most
        for batch in chain([given.first], given.further(seed, most, float("inf"))):
            if progress is not None:
                progress(len(every), total, f"batch {len(every) + 1} of {total}")
            with untouched(model):
                recording = run(copied_model(model), batch, loss_fn, seed).recording
            seen = _seen(recording, layer, kind)
            if every and seen.samples != every[0].samples:
                left_out += 1
                continue
            every.append(seen)
            _like_the_first(every)
    first = every[0]
    signal = signal_of(first.lags, [seen.parts for seen in every], first.samples)
    notes = list(dict.fromkeys(note for seen in every for note in seen.notes))
    if len(every) == 1:
        notes.append(SINGLE)
    if left_out:
        notes.append(f"left out: {counted(left_out, 'batch', 'batches')} of another size")
    return Horizon(
        kind,
        tuple(range(1, first.steps + 1)),
        first.steps,
        {name: tuple(seen.measures[name] for seen in every) for name in first.measures},
        round(statistics.median(seen.reach for seen in every)),
        signal.learnable(training_steps, batch_size) if len(every) > 1 else None,
        tuple(notes),
        signal=signal,
        training_steps=training_steps,
        batch_size=batch_size,
    )


SINGLE = "a single batch: nothing tells signal from noise, so no learnability horizon is known"


def _like_the_first(every: Sequence[Seen]) -> None:
    """Refuse a batch whose gradient cannot be compared with that of the first.

    Raises:
        ArgumentError: with what differs.
    """
    first, last = every[0], every[-1]
    for what, one, other in (
        ("numbers of steps", first.steps, last.steps),
        ("layers", ", ".join(first.measures), ", ".join(last.measures)),
    ):
        if one != other:
            raise ArgumentError(
                f"batches 1 and {len(every)} have different {what}: {one} and {other}. "
                "Give batches that are alike"
            )


def _given(model: nn.Module, batches: Any, loss_fn: LossFunction, seed: int, most: int) -> Batches:
    """The batches; an iterator whose next one the loss takes itself is a single batch."""
    if isinstance(batches, Iterator):
        first = draw(batches, seed, 1).first
        batches = chain([first], batches)
        if calls_next(model, first, loss_fn, seed):
            return Batches(batches, (batches,))
    return draw(batches, seed, most) if is_source(batches) else Batches(batches, (batches,))


def _seen(recording: Recording, layer: str | None, kind: str) -> Seen:
    """Look at one pass."""
    if layer is not None and layer not in recording.refused:
        _checks.existing("layer", layer, recording)
    names = [*recording] if layer is None else [layer]
    if not names:
        recording.only()  # says why
    flows = {name: unasked(recording[name]) for name in names}
    steps = max(flow.steps for flow in flows.values())
    lags = lag_bins("octaves", steps)
    measures: dict[str, Measures] = {}
    parts: list[dict[str, Scaled]] = [{} for _ in lags]
    notes = []
    for name, flow in flows.items():
        if not flow.residual.ok:
            words = void_in_words(name, flow.residual)
            warnings.warn(words, VoidDecompositionWarning, stacklevel=3)
        truncation = Truncation(kind, flow.gradient)
        binned = Binned(lag_bins([bin_.start for bin_ in lags], flow.steps))
        fold_lags(flow.lag_by_lag(), [truncation, binned])
        for number, some in enumerate(binned.parts):
            parts[number] |= {f"{name}: {of}": row for of, row in some.items()}
        for some in parts[len(binned.parts) :]:
            some |= {f"{name}: {of}": row for of, row in nothing_like(flow.gradient).items()}
        found = with_layers(truncation.result())
        if len(flows) == 1:
            measures = found
        else:
            found = {of: one.extended(steps) for of, one in found.items()}
            measures[name] = found.pop("")
            measures |= {f"{name}: {of}": one for of, one in found.items()}
        if ends_lags(flow):
            notes.append(f"{name}: {ENDS}")
    if len(flows) > 1:
        whole = Measures.together([measures[name] for name in flows])
        measures = {"": whole, **measures}
        notes.append(SEVERAL)
    return Seen(
        measures,
        tuple(parts),
        lags,
        steps,
        max(flow.reach for flow in flows.values()),
        max(flow.recorded.x.shape[1] for flow in flows.values()),
        tuple(notes),
    )


SEVERAL = (
    "several recurrent layers: the recurrence of each is truncated on its own, and what comes to a "
    "layer through another one's past counts as given by the loss, so that truncating all of them "
    "at once may lose more"
)

ENDS = (
    "what comes from beyond some steps counts as given by the loss there, so that truncating the "
    "whole model may lose more"
)


def ends_lags(flow: Flow) -> bool:
    """Whether lags end inside the layer: at some steps, or at a layer that reads both ways."""
    both = isinstance(flow.recorded.cell, SideBySide) and len(flow.recorded.cell.layers) > 2
    return flow.reach_is_lower_bound or both


def nothing_like(rows: Mapping[str, Scaled]) -> dict[str, Scaled]:
    """Zeros of the same shapes."""
    return {n: Scaled(torch.zeros_like(row.values), row.exponent) for n, row in rows.items()}
