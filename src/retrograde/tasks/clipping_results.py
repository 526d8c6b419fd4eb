"""What came out of `clipping_study`, for those who read it without Lightning."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from retrograde.clipping import AbstractPolicy, ByGroup, GlobalNorm

FILE = Path(__file__).with_name("clipping_study.json")
SEEDS = range(5)
HIDDEN, BATCH = 32, 32
MAX_NORM = 1.0
"""The norm that everybody clips to."""

LAG = 30
"""The length of the adding problem."""

LOOK = 50
"""Steps from one comparison with the true gradient to the next, for clipping inside."""

NEVER = GlobalNorm(math.inf)
AT_THE_END: dict[str, AbstractPolicy] = {
    "nothing": NEVER,
    "recurrent layer": ByGroup({"recurrent": GlobalNorm(MAX_NORM)}),
    "output layer": ByGroup({"output": GlobalNorm(MAX_NORM)}),
    "everything": GlobalNorm(MAX_NORM),
}
INSIDE = "inside"
WAYS = (*AT_THE_END, INSIDE)
LAYERS: dict[str, type[nn.RNN] | type[nn.LSTM]] = {"RNN": nn.RNN, "LSTM": nn.LSTM}


@dataclass(frozen=True)
class Run:
    """What came out of one training.

    Attributes:
        task, layer, way, seed: which.
        error: on held-out data, NaN if the training ended in numbers that are not finite.
        diverged: whether it did, or ended worse than a forecast without a model.
        clip_rate: by group, the share of steps (inside: of elements) that clipping changed.
        cosine: between clipped and true gradient, mean over the steps: of all of it, or inside of
            the recurrent layer's.
        norm: by group, the median norm of the gradient.
        first: the first losses, by which a run can be recognised.
    """

    task: str
    layer: str
    way: str
    seed: int
    error: float
    diverged: bool
    clip_rate: dict[str, float]
    cosine: float
    norm: dict[str, float]
    first: tuple[float, ...]


def results() -> list[Run]:
    """What came out when all trainings were last run."""
    return [Run(**{**run, "first": tuple(run["first"])}) for run in json.loads(FILE.read_text())]
