"""What the losses of paired trainings say: better, no difference, worse, or diverged."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from retrograde.diagnosis.finding import Inconclusive, Training, Verdict

SEEDS = 5
"""Number of paired trainings that a verdict rests on."""


STUDENT = 2.776
"""The 97.5 % quantile of Student's t with SEEDS - 1 degrees of freedom."""


LAST = 5
"""The final loss is the mean over the last of this many equal parts of the steps."""


MARGIN = 0.05
"""A smaller part of the final loss is no difference, however certain it is."""


SOLVED = 0.01
"""And so is a smaller part of the loss that training started with: both have learned it."""


LEARNED = 0.1
"""A batch whose loss has fallen to this part may have been learned by heart."""

GAINED = 0.05
"""A loss that has fallen by less than this part shows nothing that was learned."""

BLOWN_UP = 10.0
"""A training whose loss ends above this multiple of where it began has diverged."""


def final(losses: Sequence[float], steps: int, start: float, held: Sequence[float] = ()) -> float:
    """The mean loss over the last part of the steps, infinite if the training diverged.

    Args:
        losses: at each step.
        steps: how many there should be.
        start: a loss that it may begin with, however much lower the model itself begins.
        held: losses of batches held out over the last part of the steps, if there are any.
    """
    end = mean(held or losses[-last_part(steps) :])
    if len(losses) < steps or not math.isfinite(end):
        return math.inf
    return end if end <= BLOWN_UP * max(abs(losses[0]), abs(start)) else math.inf


def last_part(steps: int) -> int:
    """The number of steps at the end over which a loss is the mean."""
    return max(1, steps // LAST)


def inconclusive(
    losses: Sequence[Sequence[float]], ends: Sequence[Sequence[float]], single: bool
) -> Inconclusive:
    """Why two trainings that end alike may still not be alike; "" if nothing speaks for it.

    Args:
        losses: at each step of the first seed, of the original and of the remedy.
        ends: their final losses for each seed.
        single: whether there was one batch, for training and for judging alike.
    """
    sides = [
        (mean(each[: last_part(len(each))]), end) for each, end in zip(losses, ends, strict=True)
    ]
    if not all(start and all(map(math.isfinite, end)) for start, end in sides):
        return ""
    if single and all(start > 0 and max(end) <= LEARNED * start for start, end in sides):
        return "by heart"
    gained = max((start - mean(end)) / abs(start) for start, end in sides)
    return "nothing learned" if gained < GAINED else ""


def verdict(training: Training) -> Verdict:
    """What the final losses of all seeds say.

    A difference counts if it has the same sign for every seed, is at least the margin for every
    seed, and would have that sign for a further seed: 0 lies outside the 95 % prediction interval

        mean(d) ± t s sqrt(1 + 1/n)

    of Student's t for n differences d of standard deviation s, of the losses or, where all are
    positive, of their logarithms. The interval of the mean would not do: where a remedy draws
    weights anew, the original is one more draw, and luck makes it the worst of six in one case of
    six.
    """
    if not all(map(math.isfinite, training.remedy_final)):
        return "diverged"
    if not all(map(math.isfinite, training.original_final)):
        diverged = not any(map(math.isfinite, training.original_final))
        return "trained better" if diverged else "no difference"
    final_loss = max(abs(mean(training.original_final)), abs(mean(training.remedy_final)))
    start = min(abs(training.original[0]), abs(training.remedy[0]))
    margin = max(MARGIN * final_loss, SOLVED * start)
    differences = training.differences
    if not _beyond_chance(differences):
        if min(*training.original_final, *training.remedy_final) <= 0:
            return "no difference"
        pairs = zip(training.original_final, training.remedy_final, strict=True)
        if not _beyond_chance([math.log(remedy / original) for original, remedy in pairs]):
            return "no difference"
    if max(differences) <= -margin:
        return "trained better"
    return "trained worse" if min(differences) >= margin else "no difference"


def _beyond_chance(differences: Sequence[float]) -> bool:
    """Whether a further one would have their sign, as far as 95 % can tell."""
    spread = STUDENT * stdev(differences) * math.sqrt(1 + 1 / len(differences))
    return abs(mean(differences)) > spread
