"""The truncation curve of a model over several batches."""

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from math import inf
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from retrograde import _checks
from retrograde._words import counted
from retrograde.declarations.matching import Declared
from retrograde.decomposition import Flow
from retrograde.decomposition.all_reduced import SAME, fingerprint
from retrograde.decomposition.from_recording import unasked
from retrograde.decomposition.processes import Processes
from retrograde.diagnosis.batches import Batches, calls_next, draw, is_source
from retrograde.diagnosis.copies import untouched
from retrograde.diagnosis.examine import Progress
from retrograde.diagnosis.run import LossFunction
from retrograde.engine import Scaled
from retrograde.errors import ArgumentError
from retrograde.horizons.another_past import FEWEST_PAIRED, paired, parts_of_the_past
from retrograde.horizons.looked import Looked, Told, alike, replaced
from retrograde.horizons.price import price
from retrograde.horizons.replaced_output import adjoint_of
from retrograde.horizons.shorter import Cut
from retrograde.horizons.unexplained import Readout, loss_steps, same_for_all
from retrograde.horizons.used import PASTS
from retrograde.recording.layers import declared
from retrograde.truncation.horizon import NOTHING_TO_LEARN, Horizon
from retrograde.truncation.signal import Gather, one_process, signal_of
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
    all_reduce: bool = False,
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
        all_reduce: under torchrun, the horizon of the batches of all processes together, which
            every process gets. All must call it, with the same model (the module inside of a
            DistributedDataParallel), each with batches of its own: a function is called with other
            seeds in each, as one process would call it for all of them. Parts are gathered bin by
            bin, so that it takes the memory of one bin of all batches.

    Returns:
        A `Horizon` for K = 1 .. T. Its `learnable` is None for a single batch.

    Raises:
        ArgumentError: for a kind, layer or number that cannot be, if there is no batch, if batches
            differ in steps or layers, or if the loss is not a scalar tensor with a gradient; for
            kind="window" where the loss enters at the first step, so that there is nothing to cut,
            or where it cannot be told how to cut the input; for kind="chunks" where the loss is no
            sum over steps (of layers that are called once).
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
    all_reduce = _checks.flag("all_reduce", all_reduce)
    if progress is not None:
        _checks.function("progress", progress, "(done, total, what comes next)", takes=3)
    processes = Processes() if all_reduce else None
    answers: Gather = one_process if processes is None else processes.answers
    if processes is not None:
        _same_weights(model, answers)
        seed += most * processes.rank
    looked = Looked()
    with declared(model, cells):

        def look_at_all() -> list[Told]:
            given = _given(model, batches, loss_fn, seed, most)
            total = len(given.drawn) if given.function is None else most
            every_batch = chain([given.first], given.further(seed, most, float("inf")))
            for number, batch in enumerate(every_batch):
                own = (seed + number) % 2**64 if seed >= 0 else seed + number
                if progress is not None:
                    progress(len(looked.every), total, f"batch {number + 1} of {total}")
                with untouched(model):
                    looked.take(model, batch, loss_fn, own, kind, layer, past, cut)
            return looked.told()

        told = [one for some in answers(look_at_all) for one in some]
        for number, one in enumerate(told):
            alike(told[0], one, number + 1)
        first, every = told[0], looked.every
        counts = answers(lambda: (looked.left_out, looked.equal, looked.unknown, looked.back))
        unknown = next((reason for _, _, reason, _ in counts if reason), "")
        alone = looked.alone  # in all processes: the models are the same
        used = [one.losses for one in told if one.losses]
        found = Horizon(
            kind,
            first.of,
            first.steps,
            {name: tuple(one.curves[name] for one in told) for name in first.curves},
            round(statistics.median(one.reach for one in told)),
            signal=signal_of(first.lags, [seen.parts for seen in every], first.samples, answers),
            training_steps=training_steps,
            batch_size=batch_size,
            used=Used(replaced(first.lags), torch.tensor(used).double(), past)
            if used and not unknown
            else None,
            sensitivity=torch.stack([one.sensitivity for one in told]).mean(0),
            layer=layer,
        )
        if kind == "chunks" and len(first.layers) == 1:
            phases = answers(
                lambda: looked.by_phase() if processes is None or processes.rank == 0 else {}
            )
            found = replace(found, by_phase=phases[0])
        asked, lonely = len(told) > 1 and not unknown and alone and first.samples > 1, False
        if asked:
            (name,) = first.layers
            flows = [unasked(seen.layers[name]) for seen in every]
            shares = chain(*answers(lambda: [paired(flow) for flow in flows]))
            lonely = statistics.mean(shares) < FEWEST_PAIRED
        if asked and not lonely:
            readout = Readout.fitted(flows, answers=answers)

            def parts_of_all() -> list[list[dict[str, Scaled]]]:
                parts: list[list[dict[str, Scaled]]] = []
                for (batch, own), flow in zip(looked.kept, flows, strict=True):
                    if progress is not None:
                        progress(len(parts), len(every), "what the past says of the loss")
                    ask = partial(_left, model, batch, loss_fn, own, flow, readout)
                    with untouched(model):
                        left = readout.left_of(flow)
                        parts.append(parts_of_the_past(flow, left, ask, first.lags))
                return parts

            past_parts: list[list[dict[str, Scaled]]] = []
            answers(lambda: past_parts.extend(parts_of_all()))
            unexplained = signal_of(first.lags, past_parts, first.samples, answers)
            found = replace(found, unexplained=unexplained)
        further = looked.shorter[0].further if looked.shorter else 0
        window = found.window()
        prices = answers(
            lambda: (
                price(model, every[0].layers, window, further)
                if processes is None or processes.rank == 0
                else None
            )
        )
        found = replace(found, price=prices[0])
    notes = list(dict.fromkeys(note for one in told for note in one.notes))
    notes += [f"{name}: {FED_BACK}" for name in counts[0][3]]
    if kind == "chunks" and looked.one_by_one is None:
        notes.append(NOT_ASKED)
    if unknown:
        notes.append(f"what is used and what is learnable is not known: {unknown}")
    elif not alone:
        notes.append(ONE_OF_SEVERAL)
    elif first.samples < 2:
        notes.append(ONE_SAMPLE)
    elif lonely:
        notes.append(LONELY)
    if len(told) == 1:
        notes.append(SINGLE)
    if equal := sum(each for _, each, _, _ in counts):
        notes.append(
            f"left out: {counted(equal, 'batch', 'batches')} equal to an earlier one, which "
            "cannot tell signal from noise"
        )
    if found.unexplained is not None and _in_order(batches):
        notes.append(IN_ORDER)
    if found.unexplained is not None and found.unexplained.nothing:
        notes.append(NOTHING_TO_LEARN)
    zero = sum(one.whole == -torch.inf for one in found.measures[""])
    if 0 < zero < len(told):
        notes.append(f"the gradient is 0 in {zero} of {len(told)} batches, left out of the curves")
    if found.used is not None and zero < len(told):
        cancels = past == PASTS[0] and all(answers(lambda: same_for_all(looked.flows)))
        if cancels:
            notes.append(CANCELS)
        elif found.used.rounding:
            notes.append(ROUNDING)
    if left_out := sum(each for each, _, _, _ in counts):
        notes.append(f"left out: {counted(left_out, 'batch', 'batches')} of another size")
    if kind == "window":
        notes.append(GRID)
    return replace(found, notes=tuple(notes))


SINGLE = "a single batch: nothing tells signal from noise, so no learnability horizon is known"

ONE_OF_SEVERAL = (
    "what is learnable is not known of one of several recurrent layers: the others carry the past, "
    "too"
)

LONELY = (
    "what is learnable is not known: each input follows so closely from the one before that too "
    "few samples of a batch could lend each other a past. Larger batches have more that could"
)

ONE_SAMPLE = (
    "what is learnable is not known, nor what is used of the past of another sample: a batch has "
    "a single sample"
)

IN_ORDER = (
    "the DataLoader does not shuffle: where neighbouring samples are alike, as windows of a series "
    "are, batches are not independent, and intervals are too narrow"
)

NOT_ASKED = (
    "chunks: whether the loss is a sum over steps cannot be asked of a layer that is called more "
    "than once; if it is not, no training chunk by chunk computes it"
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


def _same_weights(model: nn.Module, answers: Gather) -> None:
    """Refuse models that differ between processes.

    Raises:
        ArgumentError: with the parameter and the rank.
    """
    told = answers(lambda: {name: fingerprint(each) for name, each in model.named_parameters()})
    for rank, other in enumerate(told):
        for name in told[0] | other:
            here, there = told[0].get(name, (inf, inf)), other.get(name, (inf, inf))
            if not all(abs(b - a) <= SAME * here[0] for a, b in zip(here, there, strict=True)):
                raise ArgumentError(
                    f"all_reduce=True needs the same model in all processes; {name} of rank {rank} "
                    "differs from that of rank 0"
                )


def _given(model: nn.Module, batches: Any, loss_fn: LossFunction, seed: int, most: int) -> Batches:
    """The batches; an iterator whose next one the loss takes itself is a single batch."""
    if isinstance(batches, Iterator):
        first = draw(batches, seed, 1).first
        batches = chain([first], batches)
        if calls_next(model, first, loss_fn, seed):
            return Batches(batches, (batches,))
    return draw(batches, seed, most) if is_source(batches) else Batches(batches, (batches,))
