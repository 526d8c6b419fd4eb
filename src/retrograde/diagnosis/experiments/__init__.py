"""Experiments on a whole model, in the order in which they are told.

Is the recurrence wired as its user thinks, are the numbers sound, is anything left to learn, and
does the gradient reach through the layers?
"""

from collections.abc import Mapping

from retrograde.diagnosis.experiments.comparison import BROADCAST, PROBABILITIES, TARGET_SCALE
from retrograde.diagnosis.experiments.depth import DEPTH
from retrograde.diagnosis.experiments.experiment import Case, Experiment
from retrograde.diagnosis.experiments.initial import INITIAL
from retrograde.diagnosis.experiments.kept import KEPT
from retrograde.diagnosis.experiments.numbers import DATA, LOSS
from retrograde.diagnosis.experiments.padding import PADDING
from retrograde.diagnosis.experiments.precision import PRECISION
from retrograde.diagnosis.experiments.samples import SAMPLES
from retrograde.diagnosis.experiments.scale import INPUT_SCALE
from retrograde.diagnosis.experiments.solved import SOLVED
from retrograde.diagnosis.experiments.time_axis import TIME
from retrograde.diagnosis.experiments.twins import TWINS
from retrograde.diagnosis.experiments.unreached import UNREACHED
from retrograde.diagnosis.experiments.weight_scale import WEIGHT_SCALE
from retrograde.diagnosis.experiments.window import WINDOW

EXPERIMENTS: Mapping[str, Experiment] = {
    each.name: each
    for each in (
        *(SAMPLES, UNREACHED, TIME, PADDING, TWINS, INITIAL, KEPT),
        *(DATA, LOSS, PRECISION, BROADCAST, PROBABILITIES, INPUT_SCALE, TARGET_SCALE),
        WEIGHT_SCALE,
        *(SOLVED, DEPTH, WINDOW),
    )
}

__all__ = ["EXPERIMENTS", "Case", "Experiment"]
