"""Findings as data: what is wrong, how we know, what probably causes it, and what was tried."""

import math
from dataclasses import dataclass
from statistics import stdev
from typing import Any, Literal

from retrograde import charts
from retrograde._notebook import card
from retrograde.cells import Position

Severity = Literal["info", "warning", "error"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""In ascending order."""

Kind = Literal["wiring", "soundness", "scale", "memory", "advice"]

KINDS: tuple[Kind, ...] = ("wiring", "soundness", "scale", "memory", "advice")
"""What a rule asks: is the recurrence wired as its user thinks, are the numbers sound, are they on
a scale that can be learnt from, does the gradient reach, and what else is worth knowing. In the
order in which they are told: an answer means little where an earlier question has gone wrong."""

Inconclusive = Literal["", "by heart", "nothing learned"]
Verdict = Literal["trained better", "no difference", "trained worse", "diverged", "not trained"]
"""What a paired training says of a remedy."""


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
class Spread:
    """In how many batches a finding holds, and its number in each of them.

    Attributes:
        found: the number of batches in which it holds.
        of: the number of batches that were looked at.
        values: the finding's first evidence in each batch in which it holds, in its unit.

    Example:
        >>> from retrograde.diagnosis import Spread
        >>> str(Spread(7, 8, (5.0, 6.0, 5.0, 9.0, 6.0, 7.0, 5.0)))
        'in 7 of 8 batches'
    """

    found: int
    of: int
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"in {self.found} of {self.of} batches"


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
    """Losses of the original and of a remedy, trained side by side from the same seeds.

    Attributes:
        optimizer: what trained both, with the learning rates, and on which batches.
        original, remedy: the loss at each step of the first seed.
        original_final, remedy_final: the final loss for each seed, the mean of the last fifth of
            the steps; infinite where the training diverged.
        inconclusive: why a training without a difference refutes nothing: "by heart", where both
            learned the one batch that there was, or "nothing learned", where neither got anywhere;
            else "".

    Example:
        >>> from retrograde.diagnosis import Training
        >>> training = Training("Adam", (1.0, 0.9), (1.0, 0.4), (0.9, 0.8, 0.9), (0.4, 0.3, 0.4))
        >>> round(training.difference, 2), round(training.spread, 2)
        (-0.5, 0.0)
    """

    optimizer: str
    original: tuple[float, ...]
    remedy: tuple[float, ...]
    original_final: tuple[float, ...] = ()
    remedy_final: tuple[float, ...] = ()
    inconclusive: Inconclusive = ""

    @property
    def differences(self) -> tuple[float, ...]:
        """By how much the remedy's final loss is above the original's, for each seed."""
        pairs = zip(self.original_final, self.remedy_final, strict=True)
        return tuple(remedy - original for original, remedy in pairs)

    @property
    def difference(self) -> float:
        """The mean of the differences, in the unit of the loss; negative if the remedy is better.

        Infinite where one of the two diverged; NaN where both did, or with no seed.
        """
        return sum(self.differences) / len(self.differences) if self.differences else math.nan

    @property
    def spread(self) -> float:
        """The standard deviation of the differences over seeds; NaN where one is infinite."""
        if len(self.differences) < 2 or not all(map(math.isfinite, self.differences)):
            return math.nan
        return stdev(self.differences)

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
        closer: whether the number moved to the healthy side, or at least a good way towards it, and
            nothing worse came in: no error, no explosion, no void residual. It is the evidence of
            one pass, and no verdict.
        healthy: whether the number is on the healthy side, and no rule finds anything new.
        harmful: whether something worse came in: an error that was not there, an explosion, a loss
            that is not finite. It is no help then, whatever training says.
        residual: of the decomposition after.
        loss_before, loss_after: the loss of that very batch; a remedy that draws fresh weights
            throws away what was learned.
        note: why it could not be tried, or what else it did.
        training: what training did with it, if that was asked for.
        verdict: what follows from the training.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.LSTM(2, 4),
        ...     torch.ones(40, 1, 2),
        ...     lambda model, x: model(x)[0][-1].sum(),
        ...     needs_lag=39,
        ...     remedies="pass",
        ... )
        >>> trials = {trial.remedy: trial for trial in report.findings[0].trials}
        >>> trials["forget-bias"].closer, trials["forget-bias"].code
        (True, 'retrograde.nn.initialise(model, "forget-bias", value=2.08)')
    """

    remedy: str
    title: str
    code: str
    before: float | None = None
    after: float | None = None
    closer: bool = False
    healthy: bool = False
    harmful: bool = False
    residual: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    note: str = ""
    training: Training | None = None
    verdict: Verdict = "not trained"

    @property
    def undecided(self) -> bool:
        """Whether training could not tell: it was not done, or `training.inconclusive` says why."""
        inconclusive = self.training is not None and bool(self.training.inconclusive)
        return self.verdict == "not trained" or (self.verdict == "no difference" and inconclusive)

    @property
    def recommended(self) -> bool:
        """Whether it trained better; if training could not tell, whether one pass speaks for it."""
        if self.undecided:
            return self.closer
        return self.verdict == "trained better" and not self.harmful


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
        trials: remedies that were tried, those that trained better first, then the one with the
            largest effect in one pass.
        batches: in how many batches it holds, where several were looked at.

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
    batches: Spread | None = None

    def __repr__(self) -> str:
        where = "the whole model" if self.layer is None else self.layer
        return f"Finding {self.rule!r} ({self.severity}) in {where}: {self.message}"

    def _repr_html_(self) -> str:
        rows = [f"{row.name}: {row.value:.3g} {row.unit}".rstrip() for row in self.evidence]
        return card("\n".join([repr(self), *rows]), draw=self.chart)

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
