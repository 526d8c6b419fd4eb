"""Every threshold of every rule, in one table, each with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from retrograde import _checks


@dataclass(frozen=True)
class Threshold:
    """A number that a rule compares with.

    Attributes:
        name: what `thresholds={name: value}` calls it.
        value: its value, the default of the table or the user's.
        unit: its unit.
        reason: why this value.

    Example:
        >>> from retrograde.diagnosis import limits
        >>> {limit.name: limit.unit for limit in limits()}["reach_fraction"]
        'of the sequence'
    """

    name: str
    value: float
    unit: str
    reason: str


TABLE = (
    Threshold(
        "reach_fraction",
        0.1,
        "of the sequence",
        "Whoever feeds 200 steps expects more than 20 of them to matter; with needs_lag= named, or "
        "a season found in the input, this one is not used.",
    ),
    Threshold(
        "season_correlation",
        0.5,
        "autocorrelation",
        "At 0.5 the value one season ago explains a quarter of the variance (its square). Only a "
        "peak counts: that neighbouring values resemble each other asks for no memory.",
    ),
    Threshold(
        "far_share",
        0.01,
        "share of the gradient",
        "A hundredth of the gradient, as in the definition of reach; less than that is not felt "
        "beside the rest.",
    ),
    Threshold(
        "growth_total",
        6.64,
        "powers of two",
        "A factor of 100: what late steps give to the gradient is then less than 1 % of what early "
        "ones give, the 1 % of reach seen from the other end; clipping leaves nothing of it.",
    ),
    Threshold(
        "saturated_slope",
        0.04,
        "of the largest slope",
        "|tanh| > 0.98, or a sigmoid beyond 0.01 and 0.99: a twenty-fifth of the gradient passes.",
    ),
    Threshold(
        "saturated_share",
        0.5,
        "of units and steps",
        "Gates that are decided for some units at some steps are what gates are for; when most are "
        "decided at any time, most of the gate's weights learn nothing.",
    ),
    Threshold(
        "saturated_state_share",
        0.8,
        "of units and steps",
        "Units that count or hold drive their cell state where its activation function is flat, "
        "and a trained LSTM that works may do so with more than half of them. Beyond four in five "
        "hardly any state is read.",
    ),
    Threshold(
        "dead_share",
        0.1,
        "of the units",
        "A few idle units are harmless; one in ten is capacity that was paid for.",
    ),
    Threshold(
        "double_bias",
        0.5,
        "bias",
        "Both biases of the forget gate the same in every unit, and each at least this: torch adds "
        "the two, and drawn at random they never agree.",
    ),
    Threshold(
        "imbalance",
        3.0,
        "powers of ten",
        "Gradient over weight, in L2 norms, of what comes after the recurrence against that of the "
        "recurrence: no one learning rate serves both where it is three orders below the usual.",
    ),
    Threshold(
        "usual_imbalance",
        1.0,
        "powers of ten",
        "What that ratio is where nothing is wrong, give or take a power of ten: an output layer "
        "is small, and every step of the loss reaches it undiminished.",
    ),
    Threshold(
        "conflict",
        -1.0,
        "share of the gradient",
        "The lags that pull against the rest take back as much as the whole gradient is.",
    ),
    Threshold(
        "radius_margin",
        0.05,
        "nats per step",
        "So near to neither growing nor shrinking (5 % a step) a rule of thumb is not held to it.",
    ),
    Threshold(
        "input_scale",
        10.0,
        "units",
        "Weights are drawn for features of size 1; ten times that saturates a gate by itself.",
    ),
    Threshold(
        "input_scale_low",
        1e-3,
        "units",
        "A thousandth of the size that weights are drawn for: the biases, of size 1/sqrt(H), then "
        "outweigh anything that the input says.",
    ),
    Threshold(
        "weight_scale",
        3.0,
        "times torch's own",
        "Orthogonal, Xavier and He initialisations give recurrent weights 1.1 to 2.5 times the "
        "spread of torch's. It is a finding only where gates are saturated or gradients explode, "
        "and fresh weights mend that.",
    ),
    Threshold(
        "target_scale",
        100.0,
        "times the predictions",
        "Adam at a rate of 1e-3 moves an output bias by 1 in a thousand steps; targets a hundred "
        "times as far away as any prediction are out of reach of any usual training.",
    ),
    Threshold(
        "flushed_share",
        0.1,
        "of the gradient's entries",
        "A tenth of the entries that float32 holds: rounding alone flushes hardly any.",
    ),
    Threshold(
        "solved_share",
        0.1,
        "of the loss of the best constant",
        "Nine tenths of what there is to explain are explained.",
    ),
    Threshold(
        "depth_ratio",
        -8.0,
        "powers of two",
        "A 256th: the lowest layers hardly learn while the highest do. As torch draws them, LSTM "
        "stacks of up to four layers and GRU stacks of up to eight stay above it.",
    ),
)


SHARES = (
    *("reach_fraction", "season_correlation", "far_share", "saturated_slope", "saturated_share"),
    *("saturated_state_share", "dead_share"),
)
"""Those that only make sense from 0 to 1."""

SIZES = ("growth_total", "double_bias", "imbalance")
"""Those that cannot be negative; infinity switches a rule off."""


def limits(changed: Mapping[str, float] | None = None) -> tuple[Threshold, ...]:
    """The table, with some values changed.

    Raises:
        ArgumentError: for a name that the table does not have (the message lists those it has), or
            a value that is no number, or none that the threshold can have.

    Example:
        >>> from retrograde.diagnosis import limits
        >>> {limit.name: limit.value for limit in limits({"reach_fraction": 0.2})}["reach_fraction"]
        0.2
    """
    changed = _checks.mapping(
        "thresholds", {} if changed is None else changed, "of names to numbers"
    )
    known = [row.name for row in TABLE]
    for name in changed:
        _checks.existing("threshold", name, known)
    values = {name: _checked(name, value) for name, value in changed.items()}
    return tuple(replace(row, value=values.get(row.name, row.value)) for row in TABLE)


def _checked(name: str, value: object) -> float:
    """The value of a threshold, in the range that it can have."""
    low, high, words = -math.inf, math.inf, "a number"
    if name in SHARES:
        low, high, words = 0.0, 1.0, "a number from 0 to 1"
    elif name in SIZES:
        low, words = 0.0, "a number that is not negative"
    return _checks.between(f"the threshold {name!r}", value, low, high, words)
