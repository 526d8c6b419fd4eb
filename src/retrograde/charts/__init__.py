"""Altair charts of plain numbers: results pass their numbers to them, and are not known here."""

from retrograde._words import half_life_in_words, in_words, lag_in_words
from retrograde.charts.drawing import ACCENT, COUNTER, GREY, INK, RAMP, SERIES, SHAPES
from retrograde.charts.figure import picture, png
from retrograde.charts.gates import gates_over_time, saturation_over_time
from retrograde.charts.lags import adjoint_curve, lag_curve, memory, reach_by_layer
from retrograde.charts.parts import (
    blocks,
    loss_step_by_use_step,
    shares,
    shares_by_lag,
    split_by_lag,
)
from retrograde.charts.remedies import before_after, clipping, training_curves
from retrograde.charts.spectra import directions, exponents, singular_values
from retrograde.charts.studies import inside_training, success_by_lag
from retrograde.charts.training import training_run
from retrograde.charts.truncation import horizon_growth, truncation_curve

__all__ = [
    "ACCENT",
    "COUNTER",
    "GREY",
    "INK",
    "RAMP",
    "SERIES",
    "SHAPES",
    "adjoint_curve",
    "before_after",
    "blocks",
    "clipping",
    "directions",
    "exponents",
    "gates_over_time",
    "half_life_in_words",
    "horizon_growth",
    "in_words",
    "inside_training",
    "lag_curve",
    "lag_in_words",
    "loss_step_by_use_step",
    "memory",
    "picture",
    "png",
    "reach_by_layer",
    "saturation_over_time",
    "shares",
    "shares_by_lag",
    "singular_values",
    "split_by_lag",
    "success_by_lag",
    "training_curves",
    "training_run",
    "truncation_curve",
]
