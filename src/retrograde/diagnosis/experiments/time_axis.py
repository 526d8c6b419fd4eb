"""Is there time to learn from? Sequences of one step, states that are not handed on, short windows.

No initialisation can bring back a lag that the pass does not hold.
"""

import torch

from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable, Severity
from retrograde.diagnosis.subject import Subject

CONSEQUENCES = ("forget-gate-too-short", "vanishing", "near-lags-dominate")


def cut_every(subject: Subject) -> int | None:
    """The longest run of steps between two at which the state is cut off; None if it never is."""
    borders = subject.recorded.borders
    ends = set(subject.recorded.lags_end)
    cuts = [
        k for k, border in borders.items() if k not in ends and not any(
            bool(read.factor.any()) for read in border.reads
        )
    ]
    if not cuts:
        return None
    edges = torch.tensor([0, *sorted(cuts), len(subject.recorded.x)])
    return int(edges.diff().max())


def _look(case: Case) -> list[Finding] | NotApplicable:
    findings = []
    for subject in case.subjects.values():
        if subject.place is not None:
            continue
        steps, run = len(subject.recorded.x), cut_every(subject)
        if steps == 1:
            findings.append(_one_step(subject, len(case.sight.reads.get(subject.name, ())), case))
        elif run is not None:
            findings += _cut(subject, run, steps, case.needs_lag)
        elif case.needs_lag is not None and case.needs_lag >= steps and not _from_elsewhere(subject):
            findings.append(_too_short(subject, case.needs_lag, steps))
    return findings


def _from_elsewhere(subject: Subject) -> bool:
    """Whether the state that a layer starts from carries a gradient on to another layer."""
    return any("passes on to" in note for note in subject.recorded.notes)


def _one_step(subject: Subject, calls: int, case: Case) -> Finding:
    lag = case.needs_lag
    called = f" in each of {calls} calls, none of which hands its state to the next" * (calls > 1)
    return Finding(
        "no-time",
        _how_bad(subject, calls, lag),
        subject.name,
        f"{subject.name!r} reads one step{called}: there is no earlier step to learn from"
        + (f", and the lag of {lag} steps is out of its sight" if lag else ""),
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


def _how_bad(subject: Subject, calls: int, lag: int | None) -> Severity:
    """One step is all that an agent sees that is handed its state from outside."""
    if calls > 1 or lag:
        return "error"
    return "info" if bool(subject.recorded.initial.any()) else "warning"


def _cut(subject: Subject, run: int, steps: int, lag: int | None) -> list[Finding]:
    every = run == 1
    beyond = lag is not None and lag >= run
    if run >= steps or not (every or beyond):
        return []
    return [
        Finding(
            "no-time",
            "error" if every or beyond else "info",
            subject.name,
            f"The state of {subject.name!r} is cut off "
            + ("at every step" if every else f"so that no more than {run} steps are connected")
            + ": nothing comes back from before"
            + (f", and the lag of {lag} steps cannot be learnt" if beyond else ""),
            (Evidence("steps that are connected", float(run), "steps", lag and float(lag + 1)),),
            ("The state is detached, reset or made anew on the way (.detach(), .data, zeros)",),
            (
                "Hand the state on as it is within a sequence, and detach it between sequences "
                "or every k steps, k larger than the lag",
            ),
        )
    ]


def _too_short(subject: Subject, lag: int, steps: int) -> Finding:
    return Finding(
        "no-time",
        "error",
        subject.name,
        f"The lag of {lag} steps is longer than the sequence: it takes {lag + 1} steps to hold it, "
        f"and {subject.name!r} reads {steps}. No initialisation can help",
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
)
