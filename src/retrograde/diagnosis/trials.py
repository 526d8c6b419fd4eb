"""Remedies tried: on a copy of the model, in the same pass, judged by the finding's own number."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from retrograde.declarations.keras import LAYER, is_a, named_modules
from retrograde.diagnosis.copies import copied_model, seeded
from retrograde.diagnosis.experiments import EXPERIMENTS, Case, Experiment
from retrograde.diagnosis.experiments.comparison import REGRESSIONS
from retrograde.diagnosis.finding import Evidence, Finding, NotApplicable, Trial, at_least
from retrograde.diagnosis.remedies import REMEDIES, Applied, Target, Unfit
from retrograde.diagnosis.rules import LAYER_RULES, RULES
from retrograde.diagnosis.run import LossFunction, Run, run
from retrograde.diagnosis.sight import Sight, see
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.thresholds import Threshold
from retrograde.errors import RetrogradeError
from retrograde.recording import recurrent_layers

MOST = 24
"""So many passes are run for remedies; the findings of further layers are left untried."""

GOOD_WAY = 0.25
"""A number is closer if it covered this part of the way to the threshold, or crossed it."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A copied model after a remedy.

    Attributes:
        applied: what was done.
        model: the copy.
        subject: the layer in its new pass, None if that failed.
        loss: of the new pass.
        problem: why it failed.
        run: the new pass.
    """

    applied: Applied
    model: nn.Module
    subject: Subject | None
    loss: float
    problem: str = ""
    run: Run | None = None


@dataclass(frozen=True, eq=False)
class Context:
    """A model, its batch and its loss: where remedies are tried.

    Attributes:
        model: the user's model, which is copied each time.
        batch, loss_fn, seed: as in `diagnose`.
        limits: the thresholds.
        before: the pass without any remedy.
        needs_lag: the lag that the user named.
        targets: mean and standard deviation of the targets of a regression, if known.
        has_rate: whether training has the user's own learning rate, so that another one is a
            remedy; without it several are tried anyway.
    """

    model: nn.Module
    batch: Any
    loss_fn: LossFunction
    seed: int
    limits: Sequence[Threshold]
    before: Run
    needs_lag: int | None = None
    targets: tuple[float, float] | None = None
    has_rate: bool = False

    def apply(self, model: nn.Module, subject: Subject, remedy: str) -> tuple[Target, Applied]:
        """Apply a remedy to a layer of a copied model.

        Raises:
            Unfit: where it has no place.
        """
        layers = recurrent_layers(model)
        paths = {id(module): path for path, module in named_modules(model)}
        path = paths[id(layers[subject.name])]
        lag, direct = max(1, subject.need.lag), subject.recorded.direct
        entering = float(direct.norm(dim=-1).max())
        after = self.before.after
        target = Target(model, subject.name, path, lag, after, entering, self.targets)
        return target, REMEDIES[remedy].apply(target)

    def try_remedy(self, subject: Subject, remedy: str) -> Outcome | None:
        """Apply a remedy to a copy and run the pass again; None where it has no place."""
        model = copied_model(self.model)
        with seeded(self.seed):
            try:
                target, applied = self.apply(model, subject, remedy)
                if applied.rate != 1 and not self.has_rate:
                    return None
            except Unfit:
                return None
            except Exception as error:  # weights of a form that it cannot be done to
                nothing = Applied(REMEDIES[remedy].description.rstrip("."), "")
                return Outcome(nothing, model, None, math.nan, in_words(error))
        if applied.rate != 1 or applied.loss_scale != 1:  # the pass stays what it is
            return Outcome(applied, target.model, None, self.before.loss)
        try:
            now = run(target.model, self.batch, self.loss_fn, self.seed, applied.afterwards)
            found, errors = subjects(
                now.recording, self.limits, None, target.name, now.balance, subject.need
            )
            if errors:
                raise errors[0]
        except Exception as error:  # the model may not stand another layer; that is an answer too
            return Outcome(applied, target.model, None, math.nan, in_words(error))
        return Outcome(applied, target.model, found[target.name], now.loss, run=now)


def target_scale(sight: Sight) -> tuple[float, float] | None:
    """Mean and standard deviation of the targets, where the loss compares once, in a regression."""
    if len(sight.comparisons) != 1 or sight.comparisons[0].function not in REGRESSIONS:
        return None
    target = sight.comparisons[0].target.detach().double()
    return (float(target.mean()), float(target.std())) if target.numel() > 1 else None


def in_words(error: Exception) -> str:
    """What went wrong with a copy."""
    if isinstance(error, RetrogradeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def plan(findings: Sequence[Finding], first: str = "", most: int = MOST) -> list[tuple[str, str]]:
    """The (layer, remedy) pairs to be tried, those of the first findings first.

    What concerns the model as a whole is done at its first layer.
    """
    pairs = dict.fromkeys(
        (finding.layer or first, remedy)
        for finding in findings
        if (finding.layer or first) and at_least(finding.severity, "warning")
        for remedy in RULES[finding.rule].remedies
    )
    return list(pairs)[:most]


def untried(
    context: Context, planned: Sequence[tuple[str, str]], tried: Collection[tuple[str, str]]
) -> list[str]:
    """What of a plan has no place in layers of Keras, in sentences."""
    layers = recurrent_layers(context.model)
    missing: dict[str, list[str]] = {}
    for layer, remedy in planned:
        if (layer, remedy) not in tried and is_a(layers[layer], LAYER):
            missing.setdefault(layer, []).append(remedy)
    return [
        f"Not tried on {layer}, a layer of Keras: {', '.join(names)}; each needs a layer of "
        "torch, or has nothing to change in this one."
        for layer, names in missing.items()
    ]


def judge(
    finding: Finding, outcome: Outcome, remedy: str, context: Context, known: set[str]
) -> Trial:
    """The finding's own number before and after.

    Args:
        finding: what the remedy is for.
        outcome: the model after it.
        remedy: its name.
        context: where it was tried.
        known: the rules that found something in this layer before.
    """
    applied = outcome.applied
    trial = Trial(remedy, applied.title, applied.code)
    if finding.evidence:
        trial = replace(trial, before=finding.evidence[0].value)
    if outcome.subject is None and not outcome.problem:
        note = "only training tells of it"
        return replace(trial, loss_before=outcome.loss, loss_after=outcome.loss, note=note)
    if outcome.subject is None:
        return replace(trial, note=outcome.problem)
    subject = outcome.subject
    if finding.rule not in LAYER_RULES:
        return _asked_again(finding, trial, outcome, context, known)
    rule = LAYER_RULES[finding.rule]
    residual = subject.flow.residual if subject.flow else None
    if residual is not None and not residual.ok:
        number = None if rule.unknown(subject) else rule.measure(subject)
        value = number.value if isinstance(number, Evidence) else math.nan
        after = None if math.isnan(value) else value
        note = f"what is left is void: {residual.note}"
        return replace(trial, after=after, residual=float(residual), note=note)
    measured = rule.measure(subject)
    if isinstance(measured, NotApplicable):
        why = f"the number cannot be measured after it, since {measured.reason}"
        return replace(trial, note=why)
    if math.isnan(measured.value):
        return replace(trial, note="the number cannot be measured after it")
    after, gone = measured.value, measured.is_healthy()
    way = progress(finding.evidence[0], after)
    brought, worse = _brought(outcome, subject, context, known)
    notes = [f"brings a new finding: {', '.join(brought)}"] if brought else []
    notes += [applied.note] if applied.note else []
    return replace(
        trial,
        after=after,
        closer=(gone or way >= GOOD_WAY) and not worse,
        healthy=gone and not brought and not worse,
        harmful=worse,
        residual=None if residual is None else float(residual),
        loss_before=context.before.loss,
        loss_after=outcome.loss,
        note="; ".join(notes),
    )


def _brought(
    outcome: Outcome, subject: Subject, context: Context, known: set[str]
) -> tuple[list[str], bool]:
    """The rules that find something new after a remedy, and whether that is worse."""
    answers = {name: r.answer(subject) for name, r in LAYER_RULES.items() if name not in known}
    brought = {
        name: answer
        for name, answer in answers.items()
        if isinstance(answer, Finding) and at_least(answer.severity, "warning")
    }
    worse = any(name == "exploding" or f.severity == "error" for name, f in brought.items())
    worse |= math.isfinite(context.before.loss) and not math.isfinite(outcome.loss)
    return list(brought), worse


def _asked_again(
    finding: Finding, trial: Trial, outcome: Outcome, context: Context, known: set[str]
) -> Trial:
    """The question of an experiment, asked of the model after a remedy."""
    assert outcome.subject is not None and outcome.run is not None
    residual = outcome.subject.flow.residual if outcome.subject.flow else None
    if residual is not None and not residual.ok:
        note = f"what is left is void: {residual.note}"
        return replace(trial, residual=float(residual), note=note)
    model, values = outcome.model, {row.name: row.value for row in context.limits}
    given = (context.batch, context.loss_fn, context.seed)
    recorded = outcome.run.recording
    layers, _ = subjects(recorded, context.limits, context.needs_lag, None, outcome.run.balance)
    try:
        seen = see(model, *given)
    except Exception as error:
        return replace(trial, note=in_words(error))
    case = Case(model, *given, outcome.run, layers, seen, context.needs_lag, values)
    check, found = EXPERIMENTS[finding.rule].check(case)
    gone = check.status == "passed" or (
        check.status == "found" and not any(at_least(f.severity, "warning") for f in found)
    )
    brought, worse = _brought(outcome, outcome.subject, context, known)
    still = [each.evidence[0].value for each in found if each.evidence]
    notes = [f"brings a new finding: {', '.join(brought)}"] if brought else []
    if check.status == "not applicable":
        notes.append(f"the question cannot be asked after it, since {check.reason}")
    elif gone:
        notes.append("in one pass the finding is gone")
    notes += [outcome.applied.note] if outcome.applied.note else []
    return replace(
        trial,
        after=still[0] if still and not gone else None,
        closer=gone and not worse,
        healthy=gone and not brought and not worse,
        harmful=worse,
        residual=None if residual is None else float(residual),
        loss_before=context.before.loss,
        loss_after=outcome.loss,
        note="; ".join(notes),
    )


def progress(before: Evidence, after: float) -> float:
    """Which part of the way from the number to its threshold was covered; 1 is all of it."""
    if before.threshold is None or after != after:
        return 0.0
    distance = before.threshold - before.value
    if not math.isfinite(distance) or distance == 0:
        return math.inf if before.is_healthy(after) else 0.0
    return (after - before.value) / distance


def ordered(finding: Finding, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials by their measured effect, the healthy first; among equals as the rule lists them.

    An effect counts up to the threshold: of two remedies that reach it, the one that goes far
    beyond is not the better one.
    """

    def effect(trial: Trial) -> tuple[bool, bool, float]:
        after = math.nan if trial.after is None else trial.after
        way = progress(finding.evidence[0], after) if finding.evidence else 0.0
        return trial.healthy, trial.closer, min(1.0, way)

    return tuple(sorted(trials, key=effect, reverse=True))


def try_remedies(
    context: Context,
    targets: Mapping[str, Subject],
    findings: Sequence[Finding],
    tell: Callable[[str], object],
) -> tuple[list[Finding], dict[tuple[str, str], Outcome]]:
    """Try the remedies of all findings.

    Args:
        context: the model and its pass.
        targets: the layers by name.
        findings: what was found in them.
        tell: called with what is done next, before each of the passes of `plan`.

    Returns:
        The findings with their trials, and the outcomes.
    """
    outcomes: dict[tuple[str, str], Outcome] = {}
    first = next(iter(targets), "")
    for layer, remedy in plan(findings, first):
        tell(f"trying {remedy} on {layer}")
        result = context.try_remedy(targets[layer], remedy)
        if result is not None:
            outcomes[layer, remedy] = result
    known: dict[str, set[str]] = {name: set() for name in targets}
    for finding in findings:
        rule = RULES[finding.rule]
        consequences = rule.replaces if isinstance(rule, Experiment) else ()
        if (finding.layer or first) in known:
            known[finding.layer or first] |= {finding.rule, *consequences}
    told = []
    for finding in findings:
        layer = finding.layer or first
        trials = [
            judge(finding, outcomes[layer, remedy], remedy, context, known[layer])
            for remedy in RULES[finding.rule].remedies
            if (layer, remedy) in outcomes
        ]
        serious = at_least(finding.severity, "warning")
        told.append(replace(finding, trials=ordered(finding, trials)) if serious else finding)
    return told, outcomes
