"""From a recording, or from a model, a batch and a loss, to a report."""

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, overload

import torch
from torch import Tensor, nn

from retrograde.decompose.glance import NEAR
from retrograde.diagnosis import RULES, Finding, limits
from retrograde.diagnosis.finding import SEVERITIES
from retrograde.diagnosis.run import LossFunction, Run, run
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.training import MOST as MOST_TRAINED
from retrograde.diagnosis.training import train_remedies
from retrograde.diagnosis.trials import Clinic, plan, try_remedies
from retrograde.errors import ArgumentError, RetrogradeError
from retrograde.record import Recording
from retrograde.report.layer import Horizon, Layer
from retrograde.report.report import Report, Settings

Progress = Callable[[int, int, str], object]
"""Called with the passes done, the passes in all, and what is done next."""

TITLE = "How far back in time do the gradients reach?"


@overload
def diagnose(
    subject: Recording,
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    thresholds: Mapping[str, float] | None = None,
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
    remedies: bool = True,
    try_training: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report: ...
def diagnose(
    subject: Recording | nn.Module,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
    *,
    needs_lag: int | None = None,
    layer: str | None = None,
    thresholds: Mapping[str, float] | None = None,
    remedies: bool = True,
    try_training: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """What is wrong with the gradients of a model's recurrent layers, how we know, and what helped.

    Args:
        subject: a recording, or a model. A model is copied first, and the copy is run. Remedies can
            be tried, and the output layer looked at, only where there is a model to run.
        batch: what `loss_fn` takes beside the model.
        loss_fn: maps (model, batch) to the scalar loss; it must use the model it is given.
        needs_lag: the lag, in steps, that the model has to see. Without it a season in the input
            counts, and without that a tenth of the sequence.
        layer: the one layer to look at, all if None.
        thresholds: other values for rows of `retrograde.diagnosis.limits`, by name.
        remedies: try remedies on copies of the model.
        try_training: train original and best remedies for so many steps; needs Lightning.
        seed: of what is random in the pass, in fresh weights and in training. Random numbers
            outside are left as they are.
        progress: called with (passes done, passes in all, what comes next).

    Raises:
        ArgumentError: if the loss is not a scalar tensor with a gradient, or for a lag, a layer or
            a threshold that cannot be.
        RetrogradeError: whatever `record` and `decompose` refuse in all layers.

    Example:
        >>> import torch, retrograde
        >>> _ = torch.manual_seed(0)
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(1, 8), torch.randn(60, 2, 1), lambda m, x: m(x)[0][-1].square().sum(),
        ...     needs_lag=40,
        ... )
        >>> report.ok, report.findings[0].rule, report.findings[0].trials[0].helped
        (False, 'forget-gate-too-short', True)
    """
    if needs_lag is not None and (isinstance(needs_lag, bool) or needs_lag < 1):
        raise ArgumentError(f"needs_lag must be a positive number of steps; got {needs_lag!r}")
    table = limits(thresholds)
    settings = Settings(
        versions={
            "retrograde": version("retrograde"),
            "torch": str(torch.__version__),
            "Python": platform.python_version(),
        },
        needs_lag=needs_lag,
        rules=tuple(RULES),
        thresholds=table,
    )
    if isinstance(subject, Recording):
        found, errors = subjects(subject, table, needs_lag, layer)
        notes = ["Remedies were not tried: that takes diagnose(model, batch, loss_fn)."]
        return _report(subject, found, errors, _findings(found), settings, notes)
    if loss_fn is None:
        raise ArgumentError("diagnose takes a recording, or a model, a batch and a loss function")
    tell = _Teller(progress)
    tell("the backward pass")
    model = copy.deepcopy(subject)
    before = run(model, batch, loss_fn, seed)
    tell("taking it apart")
    found, errors = subjects(before.recording, table, needs_lag, layer, before.balance)
    findings, notes = _findings(found), []
    if not found or abs(before.loss) == float("inf") or before.loss != before.loss:
        findings = _of_the_loss(before, found) + findings
    if remedies:
        clinic = Clinic(subject, batch, loss_fn, seed, table, before)
        planned = len(plan(findings))
        tell.more(planned + (min(planned, MOST_TRAINED) + 1 if try_training else 0))
        findings, treated = try_remedies(clinic, found, findings, tell)
        if try_training:
            findings = train_remedies(clinic, findings, treated, try_training, tell)
        left = len(plan(findings, most=10**6)) - planned
        if left:
            notes.append(f"{left} remedies of further findings were not tried; layer= picks one.")
    settings = replace(
        settings,
        model=str(subject),
        batch=_described(batch),
        device=str(next(subject.parameters()).device),
        seed=seed,
    )
    tell("routes, crossings and gates")
    report = _report(before.recording, found, errors, findings, settings, notes)
    tell.end()
    return report


class _Teller:
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

    def end(self) -> None:
        """All is done, also what turned out to need no pass."""
        self._done = self._total - 1
        self("done")


def _findings(found: Mapping[str, Subject]) -> list[Finding]:
    """What the rules find in all layers: the severest first, then as the rules are ordered."""
    findings = [
        finding
        for rule in RULES.values()
        for subject in found.values()
        if (finding := rule.check(subject)) is not None
    ]
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


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


def _report(
    recording: Recording,
    found: Mapping[str, Subject],
    errors: Sequence[RetrogradeError],
    findings: Sequence[Finding],
    settings: Settings,
    notes: Sequence[str],
) -> Report:
    if errors and not found:
        raise errors[0]
    if not found:
        recording.only()  # says why
    flows = {name: subject.flow for name, subject in found.items() if subject.flow is not None}
    longest = max((flow.steps for flow in flows.values()), default=1)
    lag = settings.needs_lag
    bins = (0, NEAR, max(NEAR + 1, longest // 2)) if lag is None else tuple({0: 0, lag: lag})
    horizon = None if lag is None else Horizon(lag, "the lag that it needs")
    layers = tuple(
        Layer.of(name, flow, bins, horizon, [each.course for each in found[name].activities])
        for name, flow in flows.items()
    )
    said = [f"{name}: {note}" for name, s in found.items() for note in s.recorded.notes]
    refused = {*recording.refused.values(), *map(str, errors)}
    said += [f"Not taken apart: {why}" for why in sorted(refused)]
    return Report(TITLE, layers, tuple(findings), horizon, (*said, *notes), settings)


def _described(batch: Any) -> str:
    """Kind, shape and data type of whatever a batch is."""
    if isinstance(batch, Tensor):
        return f"{list(batch.shape)} {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_described(part)}" for key, part in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        parts = [_described(part) for part in batch[:8]]
        return "(" + ", ".join(parts + ["..."] * (len(batch) > 8)) + ")"
    return type(batch).__name__
