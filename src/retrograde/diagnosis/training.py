"""Remedies judged by training: original and remedy side by side, from the same seeds and batches.

One backward pass tells whether the gradient reaches; whether a model learns better, only training
tells. Both sides are copies, trained with the user's loss and optimiser, and judged by the loss at
the end, on batches that were not trained on where there are several. Differences are taken seed by
seed, so that what chance does to both sides alike cancels out.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrograde.clipping import Clipper, GlobalNorm, suggest
from retrograde.clipping.groups import ALL
from retrograde.diagnosis.batches import Batches, taken
from retrograde.diagnosis.copies import copied, copied_model, seeded, untouched
from retrograde.diagnosis.finding import Finding, Inconclusive, Training, Trial
from retrograde.diagnosis.optimising import Factory, OutOfTime, optimizer_of, train
from retrograde.diagnosis.remedies import REMEDIES, Applied
from retrograde.diagnosis.rules import RULES
from retrograde.diagnosis.run import scalar
from retrograde.diagnosis.subject import Subject
from retrograde.diagnosis.trials import Context, Outcome, in_words
from retrograde.diagnosis.verdict import (
    SEEDS,
    final,
    inconclusive,
    last_part,
    verdict,
)
from retrograde.errors import ClippingError, NonFiniteError

MOST = 4
"""Maximum number of remedies trained."""


RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates of Adam that each side is tried with, where no optimiser is given."""


STEPS = 300
"""Maximum number of steps of a training; fewer where the budget does not allow them."""


GOOD_STEPS = 100
"""Remedies are left out until the others can be trained this long: an early lead may be lost."""


LEAST_STEPS = 20
"""A training of fewer steps tells nothing, so that it is not begun."""


JUDGING = 1.15
"""Time of a step with the losses of batches held out, over that without."""


JITTER = 0.01
"""Standard deviation of the factors by which weights are scaled for each seed but the first.

One factor for each tensor, the same for original and remedy: it varies the start, and leaves zeros
zero, equal units equal and orthogonal matrices orthogonal up to their scale.
"""


SAME_LOSS = 1e-3
"""Relative difference of losses that are the same but for rounding in a pass that magnifies it."""


BUDGET_USED = 0.75
"""Part of the budget that is planned for; the rest is for steps that take longer than the first."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How remedies are trained.

    Attributes:
        batches: what they are trained on.
        optimizer: the user's factory; None for Adam with the best of a few learning rates.
        budget: seconds for all trainings together.
        steps: steps of each training; None for as many as the budget allows.
    """

    batches: Batches
    optimizer: Factory | None = None
    budget: float = 60.0
    steps: int | None = None

    @property
    def optimizers(self) -> tuple[Factory, ...]:
        """Each side is trained with the best of these."""
        if self.optimizer is not None:
            return (self.optimizer,)
        return tuple(partial(torch.optim.Adam, lr=rate) for rate in RATES)

    @property
    def runs(self) -> int:
        """The number of trainings of each side: one for each rate that is tried, then the seeds."""
        rates = len(self.optimizers)
        return SEEDS + (rates if rates > 1 else 0)


@dataclass(frozen=True, eq=False)
class _Side:
    """The original or a remedy, made anew for each training.

    Attributes:
        words: by which it is called.
        make: maps a seed to a copied model and what was done to it, if anything was.
    """

    words: str
    make: Callable[[int], tuple[nn.Module, Applied | None]]


@dataclass(frozen=True, eq=False)
class _Result:
    """The trainings of one side, one for each seed, and by what they came about."""

    steps: int
    runs: tuple["_Run", ...]
    optimizer: str
    batches: str
    single: bool

    def final(self, start: float) -> tuple[float, ...]:
        """The final loss for each seed."""
        return tuple(final(run.losses, self.steps, start, run.held) for run in self.runs)


@dataclass(frozen=True, eq=False)
class _Run:
    """One training.

    Attributes:
        losses: at each step, of the batch that it is trained on next.
        held: at each of the last steps, of a batch that is held out; none if there is none.
        optimizer: what trained it.
        norms: of its gradients, by group, if they were measured.
    """

    losses: tuple[float, ...]
    held: tuple[float, ...]
    optimizer: torch.optim.Optimizer
    norms: Mapping[str, Tensor]


def plan(
    findings: Sequence[Finding],
    outcomes: Mapping[tuple[str, str], Outcome],
    first: str = "",
    most: int = MOST,
) -> list[tuple[str, str]]:
    """The (layer, remedy) pairs worth training.

    Another learning rate than the user's, the best of each finding in one pass, those of which
    training tells more than a pass does, and then others that moved the number towards its
    threshold.
    """
    rates: list[tuple[str, str]] = []
    best: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    by_training: list[tuple[str, str]] = []
    for finding in findings:
        layer = finding.layer or first
        closer = [(layer, trial.remedy) for trial in finding.trials if trial.closer]
        best += closer[:1]
        others += closer[1:]
        for pair in [(layer, trial.remedy) for trial in finding.trials if not trial.harmful]:
            if outcomes[pair].applied.by_training and not outcomes[pair].problem:
                (by_training if outcomes[pair].applied.rate == 1 else rates).append(pair)
    return list(dict.fromkeys(rates + best + by_training + others))[:most]


def train_remedies(
    context: Context,
    targets: Mapping[str, Subject],
    findings: Sequence[Finding],
    outcomes: Mapping[tuple[str, str], Outcome],
    how: Plan,
    tell: Callable[[str], object],
    more: Callable[[int], object],
) -> tuple[list[Finding], list[str]]:
    """Train the best remedies beside the original.

    Args:
        context: the model and its pass.
        targets: the layers by name.
        findings: with their trials.
        outcomes: the models after each remedy.
        how: the optimiser, the batches and the budget.
        tell: called with what is trained next, before each training.
        more: called with the number of trainings, when it is known.

    Returns:
        The findings with the verdicts, and notes on how they came about.
    """
    first = next(iter(targets), "")
    pairs = plan(findings, outcomes, first)
    if not pairs:
        return list(findings), []
    with untouched(context.model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the user's own loss, said in the recorded pass before
        results, problems, note = _train_all(context, targets, pairs, how, tell, more)
    told = [
        replace(
            finding,
            trials=_sorted(
                _judged(finding.layer or first, trial, results, problems)
                for trial in finding.trials
            ),
        )
        for finding in findings
    ]
    return [without_refuted(finding) for finding in told], [note]


def without_refuted(finding: Finding) -> Finding:
    """A finding without the causes and the advice that its trials refute.

    A remedy that was trained and did not train better refutes what claims that it would, unless
    another that claims the same did train better, or was not trained. What is wired or computed
    wrongly is wrong however few steps of training make of it.
    """
    if RULES[finding.rule].kind in ("wiring", "soundness"):
        return finding
    refuted: set[str] = set()
    open_: set[str] = set()
    for trial in finding.trials:
        claims = REMEDIES[trial.remedy].claims
        stands = trial.undecided or trial.verdict == "trained better"
        (open_ if stands else refuted).update(claims)
    refuted -= open_

    def kept(lines: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line for line in lines if not any(claim in line for claim in refuted))

    return replace(finding, causes=kept(finding.causes), advice=kept(finding.advice))


INCONCLUSIVE: dict[Inconclusive, str] = {
    "by heart": "both learned the one batch by heart, which tells nothing of other data: several "
    "batches do (batches=)",
    "nothing learned": "neither learned anything yet, so that a longer training may tell (budget=)",
}
"""Why a training without a difference refutes nothing."""

ONE_PASS = (
    "What is said of remedies is the evidence of one backward pass, and no verdict: "
    'remedies="train" tells whether the model learns better with them.'
)
"""Of remedies that were not trained."""


_ORIGINAL = ("", "")
"""In the place of a (layer, remedy) pair."""


def _train_all(
    context: Context,
    targets: Mapping[str, Subject],
    pairs: list[tuple[str, str]],
    how: Plan,
    tell: Callable[[str], object],
    more: Callable[[int], object],
) -> tuple[dict[tuple[str, str], _Result], dict[tuple[str, str], str], str]:
    """The results of all sides, why others have none, and how it was done, in a sentence."""
    until = time.monotonic() + how.budget
    batches = _held_out(context, how.batches)
    how = replace(how, batches=_resampled(context, batches, targets.values()))
    sides = {_ORIGINAL: _side(context, None, "")}
    sides |= {pair: _side(context, targets[pair[0]], pair[1]) for pair in pairs}
    results: dict[tuple[str, str], _Result] = {}
    problems: dict[tuple[str, str], str] = {}
    costs: dict[tuple[str, str], float] = {}
    more(1)
    tell("measuring how long a step of training takes")
    for pair, side in sides.items():
        try:
            costs[pair] = _seconds(side, context, how, until)
        except OutOfTime:
            break
        except Exception as error:  # a loss or a model that does not stand a second step
            problems[pair] = f"could not be trained: {in_words(error)}"
    if _ORIGINAL in problems:
        return _without_original(pairs, problems)
    least = how.steps or LEAST_STEPS
    left = BUDGET_USED * (until - time.monotonic())
    able = [pair for pair in sides if pair in costs]
    costs = {pair: cost * (JUDGING if how.batches.held else 1) for pair, cost in costs.items()}
    while len(able) > 2 and _affordable(able, costs, how, left) < (how.steps or GOOD_STEPS):
        able.pop()
    while len(able) > 1 and _affordable(able, costs, how, left) < least:
        able.pop()
    short = f"the budget of {how.budget:g} s"
    for pair in sides.keys() - set(able) - problems.keys():
        problems[pair] = f"was not trained, since {short} is too small"
    if len(able) < 2:
        why = "; ".join(f"{sides[pair].words} {problems[pair]}" for pair in pairs)
        if _ORIGINAL in costs:
            needed = how.runs * least * 2 * costs[_ORIGINAL] / BUDGET_USED
            why += f" (one remedy beside the original takes about {needed:.2g} s)"
        return {}, problems, f"No remedy was trained: {why}. {ONE_PASS}"
    steps = how.steps or int(min(STEPS, _affordable(able, costs, how, left)))
    more(how.runs * len(able))
    for pair in able:
        try:
            results[pair] = _trained(sides[pair], context, how, steps, until, tell, not any(pair))
        except OutOfTime:
            problems[pair] = f"was not trained to the end, since {short} was used up"
        except Exception as error:
            problems[pair] = f"could not be trained: {in_words(error)}"
        if _ORIGINAL in problems:
            return _without_original(pairs, problems)
    if len(results) < 2:
        why = "; ".join(f"{sides[pair].words} {problems[pair]}" for pair in pairs)
        return {}, problems, f"No remedy was trained: {why}. {ONE_PASS}"
    rates = "the best of its learning rates on each side" if len(how.optimizers) > 1 else "as given"
    return (
        results,
        problems,
        f"Verdicts rest on {SEEDS} paired trainings of {steps} steps, {rates}, on "
        f"{how.batches.words}, from the weights as they are and from weights scaled by factors of "
        f"about 1 %; a loss is the mean of the last {last_part(steps)} steps. They tell how "
        "training starts, and are no test error.",
    )


def _affordable(
    pairs: Sequence[tuple[str, str]],
    costs: Mapping[tuple[str, str], float],
    how: Plan,
    seconds: float,
) -> float:
    """The number of steps that each training of these sides can have in this time."""
    return seconds / max(how.runs * sum(costs[pair] for pair in pairs), 1e-9)


def _without_original(
    pairs: Sequence[tuple[str, str]], problems: Mapping[tuple[str, str], str]
) -> tuple[dict[tuple[str, str], _Result], dict[tuple[str, str], str], str]:
    """Where there is nothing to compare remedies with."""
    why = f"the original {problems[_ORIGINAL]}"
    note = f"No remedy was trained: {why}. {ONE_PASS}"
    return {}, dict.fromkeys(pairs, why), note


def _side(context: Context, subject: Subject | None, remedy: str) -> _Side:
    def make(number: int) -> tuple[nn.Module, Applied | None]:
        model = copied_model(context.model)
        seed = _seed(context, number)
        if number:
            _scale(model, seed)
        if subject is None:
            return model, None
        with seeded(seed):
            target, applied = context.apply(model, subject, remedy)
        return target.model, applied

    return _Side(f"{remedy} on {subject.name}" if subject else "the original", make)


def _resampled(context: Context, batches: Batches, found: Iterable[Subject]) -> Batches:
    """A single batch with its number of samples, if these can be drawn again.

    They can if the loss of the same samples in another order is the same.
    """
    sizes = {subject.recorded.x.shape[1] for subject in found}
    if len(batches.drawn) != 1 or len(sizes) != 1 or sizes <= {1}:
        return batches
    batch, size = batches.drawn[0], sizes.pop()
    losses = []
    try:
        for order in (torch.arange(size), torch.arange(size).flip(0)):
            with seeded(context.seed), torch.no_grad():
                other = copied(taken(batch, order))
                losses.append(float(context.loss_fn(copied_model(context.model).eval(), other)))
    except Exception:  # a loss that wants its batch as it is
        return batches
    same = math.isclose(*losses, rel_tol=SAME_LOSS)
    return replace(batches, samples=size) if same else batches


def _held_out(context: Context, batches: Batches) -> Batches:
    """The batches, some of them held out if the loss of one that is not trained on can be had."""
    split = batches.held_out(context.seed)
    try:
        for batch in split.held[:1]:
            _loss(copied_model(context.model), context, batch)
    except Exception:  # a loss for training alone
        return batches
    return split


def _loss(model: nn.Module, context: Context, batch: Any) -> float:
    """The loss of a batch in evaluation mode, on a copy of the copy that is being trained."""
    with seeded(context.seed % 2**63):
        loss = context.loss_fn(copied_model(model).eval(), copied(batch))
    return float(scalar(loss).detach())


def _seed(context: Context, number: int) -> int:
    return (context.seed + number) % 2**63


def _scale(model: nn.Module, seed: int) -> None:
    """Scale every floating-point weight by a factor close to 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            factor = 1 + JITTER * float(torch.randn((), generator=generator))
            if not nn.parameter.is_lazy(parameter) and parameter.is_floating_point():
                parameter.mul_(factor)


def _run(
    side: _Side,
    context: Context,
    how: Plan,
    factory: Factory,
    number: int,
    steps: int,
    until: float,
    measured: bool = False,
) -> _Run:
    """One training of one side; the norms of its gradients are measured if that is asked for."""
    model, applied = side.make(number)
    held: list[float] = []

    def judge(model: nn.Module, step: int) -> None:
        if how.batches.held and step >= steps - last_part(steps):
            held.append(_loss(model, context, how.batches.held[step % len(how.batches.held)]))

    norms = Clipper(model, GlobalNorm(math.inf)) if measured else None  # it changes nothing

    def before_step(model: nn.Module) -> None:
        if norms is not None:
            with suppress(NonFiniteError, ClippingError):
                norms()
        if applied is not None and applied.afterwards is not None:
            applied.afterwards(model)

    seed = _seed(context, number)
    with seeded(seed), torch.enable_grad():
        optimizer = _optimizer(factory, model, applied)
        batches = how.batches.by_step(seed, as_it_is=number == 0)
        scale = applied.loss_scale if applied is not None else 1.0
        given = (context.loss_fn, optimizer, steps, before_step, until, judge, scale)
        losses = train(model, batches, *given)
    found: Mapping[str, Tensor] = {}
    if norms is not None:
        with suppress(ClippingError):
            found = norms.norms()
    return _Run(losses, tuple(held), optimizer, found)


def _optimizer(
    factory: Factory, model: nn.Module, applied: Applied | None
) -> torch.optim.Optimizer:
    """The user's optimiser, at the rate that a remedy sets."""
    optimizer = optimizer_of(factory, model)
    for group in optimizer.param_groups if applied is not None and applied.rate != 1 else ():
        group["lr"] = group["lr"] * applied.rate  # type: ignore[union-attr]
    return optimizer


def _seconds(side: _Side, context: Context, how: Plan, until: float) -> float:
    """How long a step of training takes, after a first one that may take longer."""
    times: list[float] = []
    given = how.batches.by_step(_seed(context, 0), as_it_is=True)

    def batches(step: int) -> Any:
        times.append(time.monotonic())
        return given(step)

    model, applied = side.make(0)
    with seeded(context.seed % 2**63), torch.enable_grad():
        optimizer = optimizer_of(how.optimizers[0], model)
        afterwards = applied.afterwards if applied is not None else None
        train(model, batches, context.loss_fn, optimizer, 3, afterwards, until)
    times.append(time.monotonic())
    return (times[-1] - times[1]) / max(1, len(times) - 2)


def _trained(
    side: _Side,
    context: Context,
    how: Plan,
    steps: int,
    until: float,
    tell: Callable[[str], object],
    measured: bool,
) -> _Result:
    """One side with its best optimiser, chosen on a seed of its own, for all seeds."""
    choice = how.optimizers
    if len(choice) > 1:

        def loss(factory: Factory) -> float:
            tell(f"training {side.words}: which learning rate")
            run = _run(side, context, how, factory, SEEDS, steps, until)
            return final(run.losses, steps, run.losses[0], run.held)

        choice = (min(choice, key=loss),)
    runs = []
    for number in range(SEEDS):
        tell(f"training {side.words}, {number + 1} of {SEEDS}")
        first = measured and number == 0
        runs.append(_run(side, context, how, choice[0], number, steps, until, first))
    optimizer = runs[0].optimizer
    rate = optimizer.param_groups[0].get("lr")
    words = type(optimizer).__name__
    if isinstance(rate, float | int | Tensor):
        words += f", learning rate {float(rate):g}"
    return _Result(steps, tuple(runs), words, how.batches.words, how.batches.single)


def _judged(
    layer: str,
    trial: Trial,
    results: Mapping[tuple[str, str], _Result],
    problems: Mapping[tuple[str, str], str],
) -> Trial:
    """The trial with its verdict, or why there is none."""
    pair = (layer, trial.remedy)
    if pair in problems:
        return replace(trial, note="; ".join(filter(None, (trial.note, problems[pair]))))
    if pair not in results:
        if not (trial.closer and results):
            return trial
        only = f"not trained, as at most {MOST} remedies are"
        return replace(trial, note="; ".join(filter(None, (trial.note, only))))
    original, remedy = results[_ORIGINAL], results[pair]
    words = remedy.optimizer
    if original.optimizer != remedy.optimizer:
        words += f" (the original: {original.optimizer})"
    first, other = original.runs[0], remedy.runs[0]
    ends = original.final(first.losses[0]), remedy.final(first.losses[0])
    why = inconclusive([first.losses, other.losses], ends, original.single)
    training = Training(f"{words}, {remedy.batches}", first.losses, other.losses, *ends, why)
    judged = replace(trial, training=training, verdict=verdict(training))
    notes = [trial.note, _threshold(trial.remedy, first.norms)]
    notes += [INCONCLUSIVE[why]] if judged.undecided else []
    return replace(judged, note="; ".join(filter(None, notes)))


def _sorted(trials: Any) -> tuple[Trial, ...]:
    """What trained better first, then what one pass speaks for, and what training refuted last."""
    refuted = ("no difference", "trained worse", "diverged")

    def place(trial: Trial) -> int:
        if trial.undecided:
            return 1 if trial.closer else 2
        return 0 if trial.verdict == "trained better" else 3 + refuted.index(trial.verdict)

    return tuple(sorted(trials, key=place))


def _threshold(remedy: str, norms: Mapping[str, Tensor]) -> str:
    """What the norms of the original's training say of a threshold, for clipping by norm."""
    if remedy != "clip" or not norms or not bool((norms[ALL] > 0).any()):
        return ""
    return "from the norms while the original trained: " + str(suggest(norms)).replace("\n", " ")
