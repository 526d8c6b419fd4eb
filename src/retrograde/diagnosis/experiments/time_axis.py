"""Is there time to learn from? Sequences of one step, states that are not handed on, short windows.

No initialisation can bring back a lag that the pass does not hold.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.experiments.numbers import tensors
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable, Severity
from retrograde.diagnosis.sight import Sight
from retrograde.diagnosis.subject import Subject

CONSEQUENCES = ("forget-gate-too-short", "vanishing", "near-lags-dominate")


@dataclass(frozen=True)
class Runs:
    """The runs of steps between which a gradient can pass.

    Attributes:
        lengths: of each run, in steps.
        cut: how many of them start from a state that an earlier call returned, cut off.
    """

    lengths: tuple[int, ...]
    cut: int


def runs_of(sight: Sight, layer: str) -> Runs:
    """The runs of a layer: a call that is given a state with a gradient goes on with one.

    Steps without a graph, as of a burn-in under no_grad, are none that a gradient passes.
    """
    lengths: list[int] = []
    cut, returned = 0, sight.final.get(layer, [])
    for call, read in enumerate(sight.reads[layer]):
        given = sight.initial[layer][call]
        learnt = any(part.requires_grad for part in given or ())
        if call and learnt and not _as_at_first(given, sight.initial[layer][0]):
            lengths[-1] += read.steps
            continue
        cut += bool(call and given and any(_same(given, other) for other in returned[:call]))
        recorded = call >= len(returned) or any(part.requires_grad for part in returned[call])
        lengths.append(read.steps if recorded or not returned[call] else 0)
    return Runs(tuple(lengths), cut)


def _as_at_first(given: tuple[Tensor, ...] | None, first: tuple[Tensor, ...] | None) -> bool:
    """Whether a call starts from what the first one started from, as a state that is learnt."""
    return bool(given and first) and all(
        one.shape == other.shape and torch.equal(one, other)
        for one, other in zip(given or (), first or (), strict=False)
    )


def _same(given: tuple[Tensor, ...], returned: tuple[Tensor, ...]) -> bool:
    """Whether one state is the other, but for its graph."""
    return bool(returned) and all(
        one.shape == other.shape and bool(one.any()) and torch.equal(one, other)
        for one, other in zip(given, returned, strict=False)
    )


def _look(case: Case) -> list[Finding] | NotApplicable:
    findings = []
    for name, subject in case.subjects.items():
        if subject.place is not None or name not in case.sight.reads:
            continue
        runs = runs_of(case.sight, name)
        run, lag = max(runs.lengths), case.needs_lag
        beside = _steps_beside(case, name)
        if runs.cut:
            findings += _cut(subject, run, lag)
        elif run == 1 and not beside:
            findings.append(_one_step(case, subject, len(runs.lengths), lag))
        elif lag is not None and lag >= run + beside and not _held_elsewhere(case, lag):
            findings.append(_too_short(subject, lag, run + beside, beside > 0))
    return findings


def _steps_beside(case: Case, layer: str) -> int:
    """The steps of the layers that a state comes from or goes on to, as an encoder's a decoder."""
    together, waiting = {layer}, [layer]
    while waiting:
        one = waiting.pop()
        for name in {*case.subjects} & {*case.sight.reads} - together:
            if _passes_on(case, name, one) or _passes_on(case, one, name):
                together.add(name)
                waiting.append(name)
    return sum(max(runs_of(case.sight, name).lengths) for name in together - {layer})


def _held_elsewhere(case: Case, lag: int) -> bool:
    """Whether another layer holds the lag: it may be meant in its steps, or be bridged by it."""
    return any(max(runs_of(case.sight, name).lengths) > lag for name in case.sight.reads)


def _passes_on(case: Case, one: str, other: str) -> bool:
    """Whether the state of one layer is what another starts from."""
    notes = case.subjects[one].recorded.notes if one in case.subjects else ()
    return any(f"passes on to {other!r}" in note for note in notes)


def _one_step(case: Case, subject: Subject, calls: int, lag: int | None) -> Finding:
    called = f" in each of {calls} calls, none of which hands its state to the next" * (calls > 1)
    return Finding(
        "no-time",
        _how_bad(case, subject, calls, lag),
        subject.name,
        f"{subject.name!r} reads one step{called}: there is no earlier step to learn from"
        + (f", and the lag of {lag} steps is beyond what it sees" if lag else ""),
        (Evidence("steps", 1.0, "steps"),),
        (
            "The state of one call is not given to the next"
            if calls > 1
            else "The sequence lies along the axis of the samples or of the features, or the "
            "windows are one step long",
        ),
        (
            "h = cell(x, h): hand on the state"
            if calls > 1
            else "Feed sequences: [B, T, features] with batch_first=True, [T, B, features] else",
        ),
    )


def _how_bad(case: Case, subject: Subject, calls: int, lag: int | None) -> Severity:
    """One step is all that an agent sees that is handed its state from outside."""
    if calls > 1 or lag:
        return "error"
    given = bool(subject.recorded.initial.any()) or _in_the_batch(case, subject.name)
    return "info" if given else "warning"


def _in_the_batch(case: Case, layer: str) -> bool:
    """Whether the state that a layer starts from stands in the batch: zero as an episode begins."""
    given = case.sight.initial[layer][0]
    held = [tensor.flatten() for _, tensor in tensors(case.batch)]
    return bool(given) and all(
        any(part.numel() == each.numel() and torch.equal(part.flatten(), each) for each in held)
        for part in given or ()
    )


def _cut(subject: Subject, run: int, lag: int | None) -> list[Finding]:
    beyond = lag is not None and lag >= run
    if run > 1 and not beyond:
        return []
    return [
        Finding(
            "no-time",
            "error",
            subject.name,
            f"The state of {subject.name!r} is cut off "
            + ("at every step" if run == 1 else f"every {run} steps")
            + ": nothing comes back from before"
            + (f", and the lag of {lag} steps cannot be learnt" if beyond else ""),
            (Evidence("steps that are connected", float(run), "steps", float((lag or 1) + 1)),),
            ("The state is detached on the way from one call to the next (.detach(), .data)",),
            (
                "Hand the state on as it is within a sequence, and detach it between sequences "
                "or every k steps, k larger than the lag",
            ),
        )
    ]


def _too_short(subject: Subject, lag: int, steps: int, joined: bool) -> Finding:
    return Finding(
        "no-time",
        "error",
        subject.name,
        f"The lag of {lag} steps is longer than the sequence: it takes {lag + 1} steps to hold "
        f"it, and {subject.name!r} reads {steps}{' with those it is joined to' * joined}. No "
        "initialisation can help",
        (Evidence("steps", float(steps), "steps", float(lag + 1)),),
        ("The windows are shorter than the lag",),
        (f"Feed windows of more than {lag} steps, or carry the state from window to window",),
    )


TIME = Experiment(
    "no-time",
    "There is no earlier step to learn from",
    "Sequences of one step, states that are detached or never handed on, and a named lag that is "
    "longer than the sequence: what the pass does not hold no weight can learn. A state that is "
    "cut off less often than the lag needs is no finding.",
    _look,
    replaces=CONSEQUENCES,
    kind="wiring",
)
