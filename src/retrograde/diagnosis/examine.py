"""A whole examination: the pass, what rules find in it, remedies, and training with them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from retrograde.diagnosis.finding import SEVERITIES, Finding
from retrograde.diagnosis.rules import RULES
from retrograde.diagnosis.rules.kept import kept_graph
from retrograde.diagnosis.run import LossFunction, Run, run
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.thresholds import Threshold
from retrograde.diagnosis.training import MOST as MOST_TRAINED
from retrograde.diagnosis.training import train_remedies
from retrograde.diagnosis.trials import Clinic, plan, try_remedies
from retrograde.diagnosis.unharmed import copy_of, untouched
from retrograde.errors import RecordingError, RetrogradeError
from retrograde.record import Recording

Progress = Callable[[int, int, str], object]
"""Called with the passes done, the passes in all, and what is done next."""


@dataclass(frozen=True, eq=False)
class Examination:
    """What was looked at, and what was found.

    Attributes:
        recording: the pass.
        subjects: its layers, as far as they could be looked at.
        findings: the severest first, with the remedies that were tried.
        errors: why other layers could not be looked at.
        notes: what a reader must know.
    """

    recording: Recording
    subjects: Mapping[str, Subject]
    findings: tuple[Finding, ...]
    errors: tuple[RetrogradeError, ...] = ()
    notes: tuple[str, ...] = ()


def examine_recording(
    recording: Recording,
    limits: Sequence[Threshold],
    needs_lag: int | None = None,
    layer: str | None = None,
) -> Examination:
    """Look at a pass that was recorded elsewhere; there is no model on which to try anything."""
    found, errors = subjects(recording, limits, needs_lag, layer)
    note = "Remedies were not tried: that takes diagnose(model, batch, loss_fn)."
    return Examination(recording, found, by_severity(_findings(found)), tuple(errors), (note,))


@torch.inference_mode(False)
def examine(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    limits: Sequence[Threshold],
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    remedies: bool = True,
    try_training: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Examination:
    """Run a copy of the model, look at the pass and try remedies; arguments as in `diagnose`."""
    tell = Teller(progress)
    tell("the backward pass")
    with untouched(model):
        try:
            copy = copy_of(model)
            before = run(copy.model, batch, loss_fn, seed)
        except RecordingError as error:
            raise RecordingError(
                "loss_fn(model, batch) led no gradient through a recurrent layer of the model it "
                f"was given. {error}"
            ) from None
    tell("taking it apart")
    found, errors = subjects(before.recording, limits, needs_lag, layer, before.balance)
    notes: list[str] = []
    carried = [kept_graph(copy.reached)] if copy.reached else []
    findings = list(by_severity(_of_the_loss(before, found) + carried + _findings(found)))
    if remedies:
        clinic = Clinic(model, batch, loss_fn, seed, limits, before)
        planned = len(plan(findings))
        tell.more(planned + (min(planned, MOST_TRAINED) + 1 if try_training else 0))
        findings, treated = try_remedies(clinic, found, findings, tell)
        if try_training:
            findings = train_remedies(clinic, findings, treated, try_training, tell)
        left = len(plan(findings, most=10**6)) - planned
        if left:
            notes.append(f"{left} remedies of further findings were not tried; layer= picks one.")
    tell("routes, crossings and gates")
    return Examination(before.recording, found, tuple(findings), tuple(errors), tuple(notes))


class Teller:
    """Counts the passes for a progress bar."""

    def __init__(self, progress: Progress | None):
        self._progress, self._done, self._total = progress, -1, 3

    def __call__(self, what: str) -> None:
        """One pass is done, and this comes next."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), what)

    def more(self, passes: int) -> None:
        """So many passes are to come beside those known."""
        self._total += passes


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The severest first, else in the order given."""
    return tuple(sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity)))


def _findings(found: Mapping[str, Subject]) -> list[Finding]:
    """What the rules find in all layers, in the order of the rules."""
    return [
        finding
        for rule in RULES.values()
        for subject in found.values()
        if (finding := rule.check(subject)) is not None
    ]


def _of_the_loss(before: Run, found: Mapping[str, Subject]) -> list[Finding]:
    """A loss that is not finite although all that the layers know of is."""
    if any(subject.place for subject in found.values()):
        return []
    finite = abs(before.loss) < float("inf")
    if finite:
        return []
    return [
        Finding(
            "non-finite",
            "error",
            None,
            f"The loss is {before.loss}, although input, weights, states and dL/dh are finite",
            causes=("The loss function divides by 0, or takes the log of 0",),
            advice=("Look at the loss function",),
        )
    ]
