"""A whole examination: the pass, what rules find in it, remedies, and training with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from retrograde.diagnosis.copies import copied_model, copy_of, seeded, untouched
from retrograde.diagnosis.experiments import EXPERIMENTS, Case
from retrograde.diagnosis.experiments.elsewhere import not_its_own
from retrograde.diagnosis.experiments.solved import SOLVED
from retrograde.diagnosis.experiments.time_axis import CONSEQUENCES
from retrograde.diagnosis.experiments.weight_scale import WEIGHT_SCALE
from retrograde.diagnosis.finding import Check, Finding
from retrograde.diagnosis.optimising import optimizer_of
from retrograde.diagnosis.order import in_order
from retrograde.diagnosis.over_batches import Seen, over_batches
from retrograde.diagnosis.rules import LAYER_RULES
from retrograde.diagnosis.run import LossFunction, Run, run
from retrograde.diagnosis.sight import Sight, see
from retrograde.diagnosis.subject import Subject, subjects
from retrograde.diagnosis.thresholds import Threshold
from retrograde.diagnosis.training import ONE_PASS, Plan, train_remedies
from retrograde.diagnosis.trials import Context, plan, target_scale, try_remedies, untried
from retrograde.errors import RecordingError, RetrogradeError
from retrograde.recording import Recorded, Recording

Progress = Callable[[int, int, str], object]
"""Called with the passes done, the passes in all, and what is done next."""


@dataclass(frozen=True, eq=False)
class Examination:
    """What was looked at, and what was found.

    Attributes:
        recording: the pass.
        subjects: its layers, as far as they could be looked at.
        findings: in the order in which they are told, with the remedies that were tried.
        errors: why other layers could not be looked at.
        notes: what a reader must know.
        checks: what became of every rule at every layer.
        loss: of the pass, where it was run here.
    """

    recording: Recording
    subjects: Mapping[str, Subject]
    findings: tuple[Finding, ...]
    errors: tuple[RetrogradeError, ...] = ()
    notes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    loss: float | None = None


def examine_layer(
    recorded: Recorded, limits: Sequence[Threshold], needs_lag: int | None = None
) -> Examination:
    """Look at one layer on its own, perhaps a cell of one's own."""
    recording = Recording()
    recording.fill(recorded.name, lambda: recorded)
    return examine_recording(recording, limits, needs_lag)


def examine_recording(
    recording: Recording,
    limits: Sequence[Threshold],
    needs_lag: int | None = None,
    layer: str | None = None,
) -> Examination:
    """Look at a pass that was recorded elsewhere; there is no model on which to try anything."""
    found, errors = subjects(recording, limits, needs_lag, layer)
    findings, checks = _apply(found)
    checks += [
        Check(name, None, "not applicable", "the model itself was not run here")
        for name in EXPERIMENTS
    ]
    note = "Remedies were not tried: that takes diagnose(model, batch, loss_fn)."
    notes = (*_ended(found), note)
    return Examination(recording, found, in_order(findings), tuple(errors), notes, tuple(checks))


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
    training: Plan | None = None,
    others: Callable[[], Iterator[Any]] = lambda: iter(()),
    seed: int = 0,
    progress: Progress | None = None,
) -> Examination:
    """Run a copy of the model, look at the pass and try remedies; arguments as in `diagnose`.

    `training` says how remedies are trained, None that they are not. `others` gives further
    batches: what is found in less than most of all batches is not told.
    """
    tell = Teller(progress)
    tell("the backward pass")
    if training is not None and training.optimizer is not None:
        with untouched(model), seeded(seed):
            optimizer_of(training.optimizer, copied_model(model))
    asked = (loss_fn, limits, needs_lag, layer, seed)
    main = _look(model, batch, *asked, tell)
    before, found, errors, sight = main.run, main.subjects, main.errors, main.sight
    looks, failed = [main.seen], 0
    for other in others():
        tell.more(1)
        tell(f"batch {len(looks) + 1}")
        try:
            looks.append(_look(model, other, *asked).seen)
        except Exception:  # the first batch ran; what is wrong with this one is not the question
            failed += 1
    told, checks, notes = over_batches(looks)
    noun = "batch" if failed == 1 else "batches"
    notes += [f"{failed} further {noun} could not be run."] if failed else []
    notes = [*_ended(found), *notes]
    findings = list(in_order(told))
    if not remedies:
        notes.append("Remedies were not tried: remedies=False.")
    else:
        scale = target_scale(sight) if sight is not None else None
        has_rate = training is not None and training.optimizer is not None
        given = (model, batch, loss_fn, seed, limits, before, needs_lag, scale, has_rate)
        context = Context(*given)
        first = next(iter(found), "")
        here = {(each.rule, each.layer) for each in main.seen.findings}
        elsewhere = [each for each in findings if (each.rule, each.layer) not in here]
        findings = [each for each in findings if each not in elsewhere]
        pairs = plan(findings, first)
        tell.more(len(pairs))
        findings, outcomes = try_remedies(context, found, findings, tell)
        notes += untried(context, pairs, outcomes)
        if training is not None:
            findings, how = train_remedies(
                context, found, findings, outcomes, training, tell, tell.more
            )
            notes += how
        elif any(finding.trials for finding in findings):
            notes.append(ONE_PASS)
        left = len(plan(findings, first, most=10**6)) - len(pairs)
        if left:
            notes.append(f"{left} remedies of further findings were not tried; layer= picks one.")
        findings = list(in_order([*findings, *elsewhere]))
    tell("routes, crossings and gates")
    seen = (tuple(findings), tuple(errors), tuple(notes), tuple(checks), before.loss)
    return Examination(before.recording, found, *seen)


@dataclass(frozen=True, eq=False)
class _Look:
    """What was looked at in one batch, and what was found."""

    run: Run
    subjects: Mapping[str, Subject]
    errors: list[RetrogradeError]
    sight: Sight | None
    seen: Seen


def _look(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    limits: Sequence[Threshold],
    needs_lag: int | None,
    layer: str | None,
    seed: int,
    tell: Callable[[str], object] = lambda what: None,
) -> _Look:
    """Run a copy of the model on one batch; every rule and every experiment looks at it."""
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
    of_layers, checks = _apply(found)
    tell("experiments on the whole")
    values = {row.name: row.value for row in limits}
    at_hand = (before, found, needs_lag, values, copy.reached)
    of_model, tried, sight = _experiments(model, batch, loss_fn, seed, *at_hand)
    of_model = [each for each in of_model if layer is None or each.layer in (None, layer)]
    if not any(finding.rule.startswith("non-finite") for finding in of_model):
        of_layers = _of_the_loss(before, found) + of_layers
    if sight is not None and needs_lag is not None:
        of_layers, checks = _of_its_own(sight, found, of_layers, checks)
    told = _causes_behind([*of_model, *of_layers])
    findings, checks = _without_consequences(told, [*tried, *checks])
    return _Look(before, found, errors, sight, Seen(tuple(findings), tuple(checks)))


class Teller:
    """Counts the passes for a progress bar."""

    def __init__(self, progress: Progress | None):
        self._progress, self._done, self._total = progress, -1, 4

    def __call__(self, what: str) -> None:
        """One pass is done, and this comes next."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done), what)

    def more(self, passes: int) -> None:
        """So many passes are to come beside those known."""
        self._total += passes


def _apply(found: Mapping[str, Subject]) -> tuple[list[Finding], list[Check]]:
    """What becomes of every rule at every layer, in the order of the rules."""
    answers = [rule.check(subject) for rule in LAYER_RULES.values() for subject in found.values()]
    findings = [finding for _, finding in answers if finding is not None]
    return findings, [check for check, _ in answers]


def _experiments(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction,
    seed: int,
    before: Run,
    found: Mapping[str, Subject],
    needs_lag: int | None,
    limits: Mapping[str, float],
    reached: tuple[str, ...],
) -> tuple[list[Finding], list[Check], Sight | None]:
    """What the experiments on the whole model find, in their order."""
    with untouched(model):
        try:
            sight = see(model, batch, loss_fn, seed)
        except Exception as error:
            why = f"the model could not be run again: {type(error).__name__}: {error}"
            return [], [Check(name, None, "not applicable", why) for name in EXPERIMENTS], None
        case = Case(model, batch, loss_fn, seed, before, found, sight, needs_lag, limits, reached)
        answers = [experiment.check(case) for experiment in EXPERIMENTS.values()]
    return [each for _, some in answers for each in some], [check for check, _ in answers], sight


def _of_its_own(
    sight: Sight,
    found: Mapping[str, Subject],
    findings: Sequence[Finding],
    checks: Sequence[Check],
) -> tuple[list[Finding], list[Check]]:
    """What layers are told of a named lag that is theirs; the rest is said where it is checked."""
    memory = [each for each in findings if each.rule in CONSEQUENCES and each.layer in found]
    why: dict[str | None, str] = {
        each.layer: not_its_own(
            sight, each.layer, found[each.layer].need.lag, len(found[each.layer].recorded.x)
        )
        for each in memory
        if each.layer is not None
    }
    kept = [each for each in findings if each not in memory or not why.get(each.layer)]
    told = [
        replace(check, status="not applicable", reason=why[check.layer])
        if check.status == "found" and check.name in CONSEQUENCES and why.get(check.layer)
        else check
        for check in checks
    ]
    return kept, told


def _causes_behind(findings: Sequence[Finding]) -> list[Finding]:
    """The findings in order, the size of the weights behind what it does to a layer."""
    causes = {each.layer: each for each in findings if each.rule == WEIGHT_SCALE.name}
    told: list[Finding] = []
    for each in findings:
        if each.rule != WEIGHT_SCALE.name:
            told.append(each)
            if each.rule in ("exploding", "saturated") and each.layer in causes:
                told.append(replace(causes.pop(each.layer), severity=each.severity))
    return [*told, *causes.values()]


REMARKS = ("weight-scale", "input-scale", "target-scale", "vanishing-in-depth")
"""Experiments whose findings are remarks where a model has solved its task."""

CERTAIN = ("void", "rounding-decides", "non-finite", "no-gradient")
"""Rules that hold for a model that has solved its task as for any other."""


def _without_consequences(
    findings: Sequence[Finding], checks: Sequence[Check]
) -> tuple[list[Finding], list[Check]]:
    """The findings without those that another one explains, which is said where they are checked.

    Where there is little left to learn, what the rules find is a remark.
    """
    explained: dict[tuple[str, str | None], str] = {}
    for cause in findings:
        if cause.severity == "info" or cause.rule not in EXPERIMENTS:
            continue
        for finding in findings:
            same = cause.layer is None or finding.layer in (None, cause.layer)
            if finding.rule in EXPERIMENTS[cause.rule].replaces and same:
                explained.setdefault((finding.rule, finding.layer), cause.rule)
    kept = [f for f in findings if (f.rule, f.layer) not in explained]
    if any(finding.rule == SOLVED.name for finding in kept):
        kept = [
            replace(f, severity="info")
            if f.rule in REMARKS or (f.rule in LAYER_RULES and f.rule not in CERTAIN)
            else f
            for f in kept
        ]
    told = [
        Check(check.name, check.layer, "not applicable", f"{explained[key]} explains it")
        if check.status == "found" and (key := (check.name, check.layer)) in explained
        else check
        for check in checks
    ]
    return kept, told


def _ended(found: Mapping[str, Subject]) -> list[str]:
    """Where lags end before the sequence does."""
    return [
        f"{name}: lags end before {_steps(subject.recorded.lags_end)}, where the state or the "
        "input was computed from the state before by something that the recursion does not pass; "
        "the reach is a lower bound, and a gradient that reaches less than it should is not said "
        "to vanish."
        for name, subject in found.items()
        if subject.flow is not None and not subject.void and subject.flow.reach_is_lower_bound
    ]


def _steps(numbers: Sequence[int], shown: int = 5) -> str:
    named = ", ".join(map(str, numbers[:shown]))
    more = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return f"step{'s' if len(numbers) > 1 else ''} {named}{more}"


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
