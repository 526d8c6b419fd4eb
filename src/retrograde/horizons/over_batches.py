"""The truncation curve of a model over several batches."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from retrograde import _checks
from retrograde._words import counted
from retrograde.declarations.matching import Declared
from retrograde.decomposition import Flow
from retrograde.decomposition.by_phase import by_phase
from retrograde.decomposition.flow import unasked
from retrograde.diagnosis.batches import Batches, calls_next, draw, is_source
from retrograde.diagnosis.copies import copied_model, untouched
from retrograde.diagnosis.examine import Progress
from retrograde.diagnosis.run import LossFunction, run
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.horizons.another_past import parts_of_the_past
from retrograde.horizons.feedback import count_calls, fed_back
from retrograde.horizons.price import price
from retrograde.horizons.replaced_output import adjoint_of
from retrograde.horizons.seen import Seen, look
from retrograde.horizons.separable import is_sum_over_steps
from retrograde.horizons.shorter import Cut, Shorter, shortened
from retrograde.horizons.unexplained import Readout, loss_steps, same_for_all
from retrograde.horizons.used import PASTS, losses_without_the_past, why_not_replaced
from retrograde.recording.layers import declared
from retrograde.truncation.horizon import NOTHING_TO_LEARN, Horizon
from retrograde.truncation.signal import signal_of
from retrograde.truncation.used import Used

BATCHES = 16
"""Batches that are looked at unless the caller says otherwise."""

TRAINING_STEPS = 1000
"""Steps of the training that learnability is judged for unless the caller says otherwise."""


@torch.inference_mode(False)
@torch.enable_grad()
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
    past: str = "another sample",
    cut: Cut | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cells: Declared | None = None,
) -> Horizon:
    """How long a window the gradients of a model need, over several batches.

    A copy of the model is run forwards and backwards on each batch, and each backward pass is taken
    apart by lag, as in `Flow.horizon`.

    What comes back through the input of a layer (a decoder that reads its own outputs, the past of
    another recurrent layer) is outside the truncation: `notes` says where that is so.

    Batches of another size than the first, as the last one of a DataLoader may be, are left out,
    and so are batches equal to an earlier one: they would pass noise off as signal.

    Args:
        model: the model; it is copied, and the copy is run.
        batches: a DataLoader, an iterator or a function of a seed; or a single batch, which a list
            or a tuple is too.
        loss_fn: maps (model, batch) to the scalar loss; it must use the model that it is given.
        kind: "sliding" (every loss step looks back over K steps), "chunks" (the state is detached
            every K steps; the mean over the phases of the cut) or "window" (the input is cut, so
            that the forward pass, too, starts K steps before the first loss step). The last needs
            forward passes, and is known on a grid of K only.
        layer: the one recurrent layer to look at; all if None. The recurrence of each is then
            truncated on its own: what comes to a layer through the past of a layer above it counts
            as given by the loss, so that the bias of truncating all of them at once may be larger.
        most: the maximum number of batches.
        training_steps: how many steps a training has to tell signal from noise, for the
            learnability horizon.
        batch_size: the samples of each of its batches; those of the batches seen if None.
        past: what stands in for all older than K steps, when the forward pass is asked what it
            uses: "another sample" of the batch (half a batch away, so that the neighbours of an
            ordered batch are not each other's), the "mean" of the layer's input, or "zeros". A
            loss that is linear in the outputs asks the same of every sample, and hardly changes
            when pasts change places: ask with "mean" or "zeros" there.
        cut: for kind="window": maps (batch, steps) to the batch with only the last so many steps
            of its input. Without it tensors of the batch with one axis as long as the sequence are
            cut along that axis, and it is checked that the layer then reads what it read before.
        seed: of the batches where they are a function, and of what is random in the pass of the
            first one; the pass of each further batch has the next seed.
        progress: called with (batches done, batches in all, what comes next).
        cells: further recurrences inside the model, as `record` takes them.

    Returns:
        A `Horizon` for K = 1 .. T. Its `learnable` is None for a single batch.

    Raises:
        ArgumentError: for a kind, layer or number that cannot be, if there is no batch, if batches
            differ in steps or layers, or if the loss is not a scalar tensor with a gradient; for
            kind="window" where the loss enters at the first step, so that there is nothing to cut,
            or where it cannot be told how to cut the input; for kind="chunks" where the loss is no
            sum over steps (of layers that are not called step by step).
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
    kind = _checks.one_of("kind", kind, ("sliding", "chunks", "window"))
    if layer is not None:
        _checks.instance("layer", layer, str, "the name of a layer")
    most, seed = _checks.whole("most", most), _checks.whole("seed", seed, -(2**63), 2**64 - 1)
    past = _checks.one_of("past", past, PASTS)
    training_steps = _checks.whole("training_steps", training_steps)
    batch_size = _checks.optional_whole("batch_size", batch_size)
    if cut is not None:
        _checks.function("cut", cut, "(batch, steps) -> batch", takes=2)
    if progress is not None:
        _checks.function("progress", progress, "(done, total, what comes next)", takes=3)
    every: list[Seen] = []
    kept: list[tuple[Any, int]] = []
    left_out, equal, unknown = 0, 0, ""
    back: list[str] = []
    one_by_one: bool | None = None
    rows: list[list[float]] = []
    shorter: list[Shorter] = []
    with declared(model, cells):
        given = _given(model, batches, loss_fn, seed, most)
        total = len(given.drawn) if given.function is None else most
        every_batch = chain([given.first], given.further(seed, most, float("inf")))
        for number, batch in enumerate(every_batch):
            own = (seed + number) % 2**64 if seed >= 0 else seed + number
            if progress is not None:
                progress(len(every), total, f"batch {len(every) + 1} of {total}")
            with untouched(model):
                copy = copied_model(model)
                calls = count_calls(copy)
                recording = run(copy, batch, loss_fn, own).recording
            seen = look(recording, layer, kind)
            if every and seen.samples != every[0].samples:
                left_out += 1
                continue
            if any(_same(seen, other) for other in every):
                equal += 1
                continue
            every.append(seen)
            kept.append((batch, own))
            _like_the_first(every)
            if len(every) == 1:
                repeated = {name: one for name, one in seen.layers.items() if calls[name] > 1}
                with untouched(model):
                    back = fed_back(model, batch, loss_fn, own, repeated)
            if kind == "chunks" and len(every) == 1:
                lengths = {name: len(recorded.x) for name, recorded in recording.items()}
                with untouched(model):
                    one_by_one = is_sum_over_steps(model, batch, loss_fn, own, lengths)
                if one_by_one is False:
                    raise ArgumentError(NO_SUM)
            if kind == "window":
                with untouched(model):
                    shorter.append(
                        shortened(model, batch, loss_fn, own, recording, seen.layers, cut)
                    )
                _cut_like_the_first(shorter)
            if len(seen.layers) > 1:
                unknown = SEVERAL_LAYERS
            if not unknown:
                (recorded,) = seen.layers.values()
                with untouched(model):
                    unknown = why_not_replaced(model, batch, loss_fn, own, unasked(recorded))
            if unknown or (past == PASTS[0] and seen.samples < 2):
                continue
            with untouched(model):
                rows.append(
                    losses_without_the_past(
                        model, batch, loss_fn, own, unasked(recorded), replaced(seen.lags), past
                    )
                )
        first = every[0]
        steps = shorter[0].steps if shorter else tuple(range(1, first.steps + 1))
        curves = [each.measures for each in shorter or every]
        measures = {name: tuple(curve[name] for curve in curves) for name in curves[0]}
        found = Horizon(
            kind,
            steps,
            first.steps,
            measures,
            round(statistics.median(seen.reach for seen in every)),
            signal=signal_of(first.lags, [seen.parts for seen in every], first.samples),
            training_steps=training_steps,
            batch_size=batch_size,
            used=Used(replaced(first.lags), torch.tensor(rows).double(), past)
            if rows and not unknown
            else None,
            sensitivity=torch.stack([seen.sensitivity for seen in every]).mean(0),
            layer=layer,
        )
        if kind == "chunks" and len(first.layers) == 1:
            (recorded,) = first.layers.values()
            flow = unasked(recorded)
            found = replace(found, by_phase=by_phase(flow.gradient, flow.steps, flow.in_chunks))
        further = shorter[0].further if shorter else 0
        if len(every) > 1 and not unknown and first.samples > 1:
            (name,) = first.layers
            flows = [unasked(seen.layers[name]) for seen in every]
            readout = Readout.fitted(flows)
            parts: list[list[dict[str, Scaled]]] = []
            for (batch, own), flow in zip(kept, flows, strict=True):
                if progress is not None:
                    progress(len(parts), len(every), "what the past says of the loss")
                ask = partial(_left, model, batch, loss_fn, own, flow, readout)
                with untouched(model):
                    parts.append(parts_of_the_past(flow, readout.left_of(flow), ask, first.lags))
            found = replace(found, unexplained=signal_of(first.lags, parts, first.samples))
        found = replace(found, price=price(model, first.layers, found.window(), further))
    notes = list(dict.fromkeys(note for seen in every for note in seen.notes))
    notes += [f"{name}: {FED_BACK}" for name in back]
    if kind == "chunks" and one_by_one is None:
        notes.append(NOT_ASKED)
    if unknown:
        notes.append(f"what is used and what is learnable is not known: {unknown}")
    elif first.samples < 2:
        notes.append(ONE_SAMPLE)
    if len(every) == 1:
        notes.append(SINGLE)
    if equal:
        notes.append(
            f"left out: {counted(equal, 'batch', 'batches')} equal to an earlier one, which "
            "cannot tell signal from noise"
        )
    if found.unexplained is not None and _in_order(batches):
        notes.append(IN_ORDER)
    if found.unexplained is not None and found.unexplained.nothing:
        notes.append(NOTHING_TO_LEARN)
    zero = sum(one.whole == -torch.inf for one in found.measures[""])
    if 0 < zero < len(every):
        notes.append(f"the gradient is 0 in {zero} of {len(every)} batches, left out of the curves")
    if found.used is not None and zero < len(every):
        flows = [unasked(one) for seen in every for one in seen.layers.values()]
        if past == PASTS[0] and same_for_all(flows):
            notes.append(CANCELS)
        elif found.used.rounding:
            notes.append(ROUNDING)
    if left_out:
        notes.append(f"left out: {counted(left_out, 'batch', 'batches')} of another size")
    if kind == "window":
        notes.append(GRID)
    return replace(found, notes=tuple(notes))


SINGLE = "a single batch: nothing tells signal from noise, so no learnability horizon is known"

SEVERAL_LAYERS = "there are several recurrent layers; name one, layer="

ONE_SAMPLE = (
    "what is learnable is not known, nor what is used of the past of another sample: a batch has "
    "a single sample"
)

IN_ORDER = (
    "the DataLoader does not shuffle: where neighbouring samples are alike, as windows of a series "
    "are, batches are not independent, and intervals are too narrow"
)

NO_SUM = (
    'kind="chunks" needs a loss that is a sum over steps; what this one gives to the output at one '
    "step depends on the outputs at others, as with attention, pooling, a product or a norm over "
    'time, so that it cannot be computed chunk by chunk. Use kind="sliding"'
)

NOT_ASKED = (
    "chunks: whether the loss is a sum over steps cannot be asked of a layer that is called step "
    "by step; if it is not, no training chunk by chunk computes it"
)

FED_BACK = (
    "its outputs come back through its own input; that part of the gradient takes no hop of the "
    "recurrence and counts as given by the loss, so that truncating the whole model may lose more"
)

CANCELS = (
    "used: the loss asks the same of every sample, and so hardly changes when pasts change places "
    'within the batch; past="mean" or past="zeros" tells more'
)

ROUNDING = "used: the loss moves by rounding alone when the past is replaced"

GRID = "the model was run on inputs of these lengths only: the window may lie between two of them"


def _left(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    flow: Flow,
    readout: Readout,
    states: Float[Tensor, "T1 B S"],
) -> Float[Tensor, "T B S"]:
    """What a readout does not explain of dL/ds_t where the layer has other states."""
    direct = adjoint_of(model, batch, loss_fn, seed, flow.recorded, states)[1:]
    return readout.left(states[1:, :, flow.unrolled.cell.output], direct, loss_steps(flow))


def _in_order(batches: object) -> bool:
    """Whether a DataLoader gives its samples in their order."""
    return isinstance(batches, DataLoader) and isinstance(batches.sampler, SequentialSampler)


def _same(one: Seen, other: Seen) -> bool:
    """Whether the layers read the same, and the loss asks the same of them."""
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(getattr(mine, what), getattr(other.layers[name], what))
        for name, mine in one.layers.items()
        for what in ("x", "initial", "direct")
    )


def replaced(lags: Sequence[range]) -> tuple[int, ...]:
    """The K at which all older is replaced: from the first lag of each bin on."""
    return (*(each.start for each in lags), lags[-1].stop)


def _cut_like_the_first(shorter: Sequence[Shorter]) -> None:
    """Refuse a batch whose loss enters at other steps than that of the first.

    Raises:
        ArgumentError: with the steps.
    """
    first, last = shorter[0].further, shorter[-1].further
    if first != last:
        raise ArgumentError(
            f"in batch 1 the loss enters from {first} steps before the last one on, in batch "
            f"{len(shorter)} from {last}. Give batches that are alike"
        )


def _like_the_first(every: Sequence[Seen]) -> None:
    """Refuse a batch whose gradient cannot be compared with that of the first.

    Raises:
        ArgumentError: with what differs.
    """
    first, last = every[0], every[-1]
    for what, one, other in (
        ("numbers of steps", first.steps, last.steps),
        ("layers", ", ".join(first.layers), ", ".join(last.layers)),
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
