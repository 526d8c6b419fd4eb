"""From a recording, or from a model, a batch and a loss, to a report."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, overload

from torch import nn

from retrograde import _checks
from retrograde.declarations.matching import Declared
from retrograde.decomposition import Flow
from retrograde.decomposition.summary import NEAR
from retrograde.diagnosis import RULES, limits
from retrograde.diagnosis.batches import MOST as MOST_BATCHES
from retrograde.diagnosis.batches import Batches, calls_next, draw, is_source
from retrograde.diagnosis.examine import (
    Examination,
    Progress,
    examine,
    examine_layer,
    examine_recording,
)
from retrograde.diagnosis.optimising import Factory
from retrograde.diagnosis.run import LossFunction
from retrograde.diagnosis.subject import SAMPLES
from retrograde.diagnosis.training import Plan
from retrograde.errors import ArgumentError
from retrograde.recording import Recorded, Recording
from retrograde.recording.layers import declared
from retrograde.report.data import NEEDED
from retrograde.report.directions import Directions
from retrograde.report.growth import NeededLag
from retrograde.report.layer import Layer
from retrograde.report.report import Report
from retrograde.report.settings import Settings, versions
from retrograde.spectra import spectrum as whole_spectrum

LOOKED_AT = 8
"""Maximum number of batches whose pass is looked at."""

STATES = 512
"""Maximum of samples times S in a spectrum: for a large state fewer samples are used."""

TITLE = "How far back in time do the gradients reach?"


@overload
def diagnose(
    subject: Recording | Recorded,
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    spectrum: bool = False,
    progress: Progress | None = None,
) -> Report: ...
@overload
def diagnose(
    subject: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    remedies: Literal["train", "pass"] | bool | None = "train",
    budget: float = 60.0,
    optimizer: Factory | None = None,
    batches: Any = None,
    try_training: int = 0,
    seed: int = 0,
    spectrum: bool = False,
    progress: Progress | None = None,
    cells: Declared | None = None,
) -> Report: ...
def diagnose(
    subject: Recording | Recorded | nn.Module,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    remedies: Literal["train", "pass"] | bool | None = "train",
    budget: float = 60.0,
    optimizer: Factory | None = None,
    batches: Any = None,
    try_training: int = 0,
    seed: int = 0,
    spectrum: bool = False,
    progress: Progress | None = None,
    cells: Declared | None = None,
) -> Report:
    """What is wrong with the gradients of a model's recurrent layers, how we know, and what helps.

    Args:
        subject: a recording, or one layer of it (also what `record_cell` returns), or a model. A
            model is copied first, and the copy is run. Remedies can be tried, and the output layer
            looked at, only where there is a model to run.
        batch: what `loss_fn` takes beside the model. A DataLoader, an iterator (a generator) or a
            function of a seed is taken for what gives batches, as `batches` is; a list or a tuple
            is one batch, and so is an iterator whose next batch `loss_fn` takes itself.
        loss_fn: maps (model, batch) to the scalar loss; it must use the model it is given.
        needs_lag: the lag, in steps, that the model has to see. Without it a season in the input
            counts, and without that a tenth of the sequence.
        layer: the one layer to look at, all if None.
        thresholds: other values for rows of `retrograde.diagnosis.limits`, by name.
        remedies: what is done with remedies, on copies of the model. "train", or True, runs one
            backward pass before and after each, trains the best of them beside the original, from
            the same seeds and on the same batches, and says which trained better, worse or no
            differently (`Trial.verdict`). "pass" stops after the passes, which takes seconds and is
            evidence, no verdict. None, or False, tries none. Where nothing is found, nothing is
            trained.
        budget: seconds that all trainings together may take, after the passes. Where it is too
            small for one, the evidence of the pass is what is left, and a note says so. A quarter
            of it may go into drawing batches, and another into looking at further ones.
        optimizer: makes the optimiser for a list of parameters, as `lambda p: SGD(p, lr=0.1)`
            does. Without it, Adam with the best of a few learning rates trains each side.
        batches: what is trained on, other than the one batch: a DataLoader or another iterable of
            batches, of which at most 32 are drawn (an iterator has given them up then), or a
            function that maps a seed to a batch, which is called for every step. The first of them
            is the batch if that is None. Of several batches at most 8 are looked at, and what is
            found in less than most of them is not told, unless it is an error of soundness; some
            are held out of training, and losses are those of them.
        try_training: steps of each training; 0 for as many as the budget allows, 300 at most.
        seed: of what is random in the pass, in fresh weights and in training. Random numbers
            outside are left as they are.
        spectrum: add what the recurrence would do with any gradient, from the first samples, 8 at
            most: Lyapunov exponents and singular values, `retrograde.spectrum`. Takes minutes where
            the state has hundreds of entries.
        progress: called with (passes done, passes in all, what comes next), and then, layer by
            layer, with (spectra done, spectra in all, whose comes next).
        cells: further recurrences inside the model, as `record` takes them.

    Raises:
        ArgumentError: if the loss is not a scalar tensor with a gradient, for a lag, a layer or
            a threshold that cannot be, if `optimizer` fails or makes no optimiser of the parameters
            it is given, or if there is no batch.
        RetrogradeError: whatever `record` and `decompose` refuse in all layers.

    Example:
        >>> import torch, retrograde
        >>> _ = torch.manual_seed(0)
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(1, 8), torch.randn(60, 2, 1), lambda m, x: m(x)[0][-1].square().sum(),
        ...     needs_lag=40, remedies="pass",
        ... )
        >>> report.ok, report.findings[0].rule, report.findings[0].trials[0].closer
        (False, 'forget-gate-too-short', True)

        Whether the model learns better with it, training tells:

        >>> def few_steps(seed):
        ...     x = torch.randn(60, 8, 1)
        ...     return x, x[20]
        >>> def loss_fn(model, batch):
        ...     return (model(batch[0])[0][-1].sum(1, keepdim=True) - batch[1]).square().mean()
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(1, 8), few_steps, loss_fn, needs_lag=40, try_training=1,
        ... )
        >>> report.findings[0].trials[0].verdict
        'no difference'
    """
    if needs_lag is not None:
        needs_lag = _checks.whole("needs_lag", needs_lag, words="a positive number of steps")
    try_training = _checks.whole("try_training", try_training, 0, words="a number of steps")
    seed = _checks.whole("seed", seed, -(2**63), 2**64 - 1)
    spectrum = _checks.flag("spectrum", spectrum)
    kind = _remedies(remedies)
    budget = _checks.number("budget", budget, lambda real: real >= 0, "0 or a positive number")
    if optimizer is not None:
        _checks.function("optimizer", optimizer, "parameters -> torch.optim.Optimizer", takes=1)
    table = limits(thresholds)
    settings = Settings(
        versions=versions(), needs_lag=needs_lag, rules=tuple(RULES), thresholds=table
    )
    if cells is not None and not isinstance(subject, nn.Module):
        raise ArgumentError("cells= declares modules of a model; what is recorded has its own")
    if isinstance(subject, Recorded):
        if layer is not None:
            _checks.existing("layer", layer, [subject.name])
        examination = examine_layer(subject, table, needs_lag)
        return _report(examination, settings, spectrum, progress)
    if isinstance(subject, Recording):
        examination = examine_recording(subject, table, needs_lag, layer)
        return _report(examination, settings, spectrum, progress)
    if loss_fn is None or not isinstance(subject, nn.Module):
        raise ArgumentError(
            "diagnose takes a recording, or a model, a batch and a loss function; got "
            f"{_checks.shown(subject)}{' without a loss function' if loss_fn is None else ''}"
        )
    _checks.loss_function(loss_fn)
    if progress is not None:
        _checks.function("progress", progress, "(done, total, what comes next)", takes=3)
    if isinstance(batch, Iterator) and batches is None:
        first = draw(batch, seed, 1).first
        batch = chain([first], batch)
        if calls_next(subject, first, loss_fn, seed):
            batch, batches = None, [batch]  # the one batch that it is
    training = None
    if progress is not None and (batches is not None or is_source(batch)):
        progress(0, 1, "drawing batches")
    if kind == "train":
        given = _batches(batch, batches, seed, MOST_BATCHES, budget / 4)
        training = Plan(given, optimizer, budget, try_training or None)
    else:
        given = _batches(batch, batches, seed, LOOKED_AT, budget / 4)
    batch = given.first
    with declared(subject, cells):
        examination = examine(
            subject,
            batch,
            loss_fn,
            table,
            needs_lag=needs_lag,
            layer=layer,
            remedies=kind is not None,
            training=training,
            others=lambda: given.further(seed, LOOKED_AT, budget / 4),
            seed=seed,
            progress=progress,
        )
    return _report(examination, settings.of_run(subject, batch, seed), spectrum, progress)


def _report(
    examination: Examination, settings: Settings, spectrum: bool, progress: Progress | None
) -> Report:
    found, errors = examination.subjects, examination.errors
    if errors and not found:
        raise errors[0]
    if not found:
        examination.recording.only()  # says why
    flows = {name: subject.flow for name, subject in found.items() if subject.flow is not None}
    longest = max((flow.steps for flow in flows.values()), default=1)
    lag = settings.needs_lag
    far = lag or max(NEAR + 1, longest // 2)
    bins = (0, NEAR, far) if far > NEAR else (0, far)
    horizon = None if lag is None else NeededLag(lag, NEEDED)
    known = {name: flow for name, flow in flows.items() if found[name].replayed}
    directions, unknown = _directions(known, progress) if spectrum else ({}, [])
    layers = tuple(
        Layer.of(
            name,
            flow,
            bins,
            horizon,
            [each.series for each in found[name].activities] if found[name].replayed else (),
            directions=directions.get(name),
        )
        for name, flow in flows.items()
    )
    notes = unknown + [f"{name}: {note}" for name, s in found.items() for note in s.recorded.notes]
    refused = {*examination.recording.refused.values(), *map(str, errors)}
    notes += [f"Not taken apart: {why}" for why in sorted(refused)]
    notes += examination.notes
    told = (examination.findings, horizon, tuple(notes), settings, examination.checks)
    return Report(TITLE, layers, *told, examination.loss)


def _directions(
    flows: Mapping[str, Flow], progress: Progress | None
) -> tuple[dict[str, Directions], list[str]]:
    """The spectra of the layers, and notes on each: what it comes to, or why there is none."""
    found, notes = {}, []
    for number, (name, flow) in enumerate(flows.items()):
        if progress is not None:
            progress(number, len(flows), f"the spectrum of {name}")
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                few = max(1, min(SAMPLES, STATES // flow.recorded.cell.state_size))
                spectrum = whole_spectrum(flow.recorded.part(few))
                found[name] = Directions.of(spectrum)
        except ArgumentError as error:
            notes.append(f"{name}: no spectrum: {error}")
            continue
        leading = spectrum.exponents.leading
        notes.append(
            f"{name}: in the long run a step multiplies a gradient of any direction by "
            f"{math.exp(leading):.3g} at most (leading Lyapunov exponent {leading:.3g} nats)"
        )
        notes += [f"{name}: {warning.message}" for warning in warned]
    return found, notes


def _remedies(value: object) -> str | None:
    """What is done with remedies: "train", "pass" or None."""
    if value is None:
        return None
    if isinstance(value, str):
        return _checks.one_of("remedies", value, ("train", "pass"))
    try:
        return "train" if _checks.flag("remedies", value) else None
    except ArgumentError:
        raise ArgumentError(
            f'remedies must be "train", "pass", True, False or None; got {_checks.shown(value)}'
        ) from None


def _batches(batch: Any, batches: Any, seed: int, most: int, seconds: float = math.inf) -> Batches:
    """The batch of the pass, and those to train on."""
    if batches is None and not is_source(batch):
        return Batches(batch, (batch,))
    drawn = draw(batch if batches is None else batches, seed, most, seconds)
    if batches is None or batch is None:
        return drawn
    first = draw(batch, seed, 1).first if is_source(batch) else batch
    return replace(drawn, first=first)
