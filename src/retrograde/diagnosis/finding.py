"""Findings as data: what is wrong, how we know, what probably causes it, and what was tried."""

from dataclasses import dataclass
from typing import Any, Literal

from retrograde import charts
from retrograde.cells import Position

Severity = Literal["info", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""In ascending order."""


@dataclass(frozen=True)
class Evidence:
    """One measured number, and what it was compared with.

    Attributes:
        name: what was measured, "reach".
        value: the number.
        unit: its unit, "steps".
        threshold: what it was compared with, None for a number that only explains.
        healthy: which side of the threshold is the healthy one.
        setting: the threshold's name in the table, where it is one; `thresholds=` changes it.

    Example:
        >>> from retrograde.diagnosis import Evidence
        >>> Evidence("reach", 9.0, "steps", threshold=100.0).is_healthy()
        False
    """

    name: str
    value: float
    unit: str
    threshold: float | None = None
    healthy: Literal["above", "below"] = "above"
    setting: str | None = None

    def is_healthy(self, value: float | None = None) -> bool:
        """Whether its value, or another one, lies on the healthy side; a NaN has no side."""
        value = self.value if value is None else value
        if self.threshold is None or value != value:
            return True
        return value >= self.threshold if self.healthy == "above" else value <= self.threshold


@dataclass(frozen=True)
class NotApplicable:
    """That a rule can say nothing about a layer, and why.

    Attributes:
        reason: what completes "the rule does not apply, since ...".

    Example:
        >>> from retrograde.diagnosis import NotApplicable
        >>> NotApplicable("the cell has no gates").reason
        'the cell has no gates'
    """

    reason: str


@dataclass(frozen=True)
class Check:
    """What became of one rule at one layer.

    Attributes:
        name: the rule.
        layer: the recurrent layer, None for a rule about the model as a whole.
        status: whether its number is on the healthy side ("passed"), whether there is a finding, or
            whether it has nothing to look at.
        reason: of a rule that does not apply, why; of another, what part of the layer it could not
            look at, and why.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.RNN(2, 4), torch.ones(20, 3, 2), lambda model, x: model(x)[0].sum()
        ... )
        >>> checks = {check.name: check for check in report.checks}
        >>> checks["exploding"].status, checks["forget-gate-too-short"].status
        ('passed', 'not applicable')
    """

    name: str
    layer: str | None
    status: Literal["passed", "found", "not applicable"]
    reason: str = ""


@dataclass(frozen=True)
class Training:
    """Losses of the original and of a remedy, trained side by side from the same seed.

    Attributes:
        optimizer: what trained both, with its learning rate.
        original, remedy: the loss at each step.

    Example:
        >>> from retrograde.diagnosis import Training
        >>> training = Training("Adam", original=(1.0, 0.9), remedy=(1.0, 0.4))
        >>> training.remedy[-1] < training.original[-1]
        True
    """

    optimizer: str
    original: tuple[float, ...]
    remedy: tuple[float, ...]

    def chart(self) -> Any:
        """Both losses over the training steps, as an Altair chart."""
        return charts.training_curves(self.original, self.remedy)


@dataclass(frozen=True)
class Trial:
    """A remedy that was applied to a copy of the model, and the finding's own number after it.

    Attributes:
        remedy: its name in the table.
        title: what was done, in a line.
        code: the lines that do it to the user's model.
        before, after: the number of the finding's first evidence; None if it could not be measured.
        helped: whether the number moved to the healthy side, or at least a good way towards it.
        cured: whether the finding is gone.
        residual: of the decomposition after.
        loss_before, loss_after: the loss of that very batch; a remedy that draws fresh weights
            throws away what was learned.
        note: why it could not be tried, or what else it did.
        training: what training did with it, if that was asked for.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(2, 4),
        ...     torch.ones(40, 1, 2),
        ...     lambda model, x: model(x)[0][-1].sum(),
        ...     needs_lag=39,
        ... )
        >>> trials = {trial.remedy: trial for trial in report.findings[0].trials}
        >>> trials["forget-bias"].helped, trials["forget-bias"].code
        (True, 'retrograde.nn.initialise(model, "forget-bias", value=2.08)')
    """

    remedy: str
    title: str
    code: str
    before: float | None = None
    after: float | None = None
    helped: bool = False
    cured: bool = False
    residual: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    note: str = ""
    training: Training | None = None


@dataclass(frozen=True)
class Finding:
    """Something that a rule found, with the numbers it stands on.

    Attributes:
        rule: the rule's name, as `retrograde explain` takes it.
        severity: "info", "warning" or "error".
        layer: the recurrent layer, None for the model as a whole.
        message: what is wrong, in one sentence.
        evidence: numbers with their units and thresholds; the first is the one that a remedy is
            judged by.
        causes: likely causes, the likeliest first.
        advice: what to do, the first thing first, also what cannot be tried here.
        gate: the gate concerned.
        position: the layer and direction of a module with several that is concerned.
        route: the route concerned.
        steps: first and last step concerned.
        trials: remedies that were tried, the one with the largest effect first.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(2, 4),
        ...     torch.ones(40, 1, 2),
        ...     lambda model, x: model(x)[0][-1].sum(),
        ...     needs_lag=39,
        ...     remedies=False,
        ... )
        >>> finding = report.findings[0]
        >>> finding.rule, finding.layer, finding.evidence[0].unit
        ('forget-gate-too-short', 'LSTM', 'steps')
    """

    rule: str
    severity: Severity
    layer: str | None
    message: str
    evidence: tuple[Evidence, ...] = ()
    causes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    gate: str | None = None
    route: str | None = None
    steps: tuple[int, int] | None = None
    trials: tuple[Trial, ...] = ()
    position: Position | None = None

    def chart(self) -> Any:
        """The first evidence before and after each trial, as an Altair chart; None without any."""
        measured = [trial for trial in self.trials if None not in (trial.before, trial.after)]
        if not measured or not self.evidence:
            return None
        first = self.evidence[0]
        return charts.before_after(
            [trial.title for trial in self.trials],
            [trial.before for trial in self.trials],
            [trial.after for trial in self.trials],
            first.name,
            first.unit,
            first.threshold,
        )


def at_least(severity: Severity, other: Severity) -> bool:
    """Whether one severity is as high as another."""
    return SEVERITIES.index(severity) >= SEVERITIES.index(other)
