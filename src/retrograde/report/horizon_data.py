"""What a horizon report holds: plain numbers, which JSON keeps and every view is made of."""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from retrograde import _checks
from retrograde.errors import ArgumentError
from retrograde.report.settings import Settings
from retrograde.truncation import Horizon
from retrograde.truncation.horizon import BAND, Column

KINDS = {
    "sliding": "every loss step looks back over K steps",
    "chunks": "the state is detached every K steps; mean over the phases of the cut",
    "window": "the forward pass, too, starts K steps before the loss",
}
"""What is cut, in words."""

PASTS = {
    "another sample": "the past of another sample",
    "mean": "a past of the mean input",
    "zeros": "a past of zeros",
}
"""What stands in for the past, in words."""


@dataclass(frozen=True)
class Curve:
    """What a truncation leaves of one gradient, for each K; medians over batches.

    Attributes:
        of: the layer or parameter, "" for the whole gradient.
        window: the smallest K whose bias is small enough in 90 % of the batches, if there is one.
        bias: ||g - g_K|| / ||g||.
        low, high: the ends of its band, from 10 % to 90 % of the batches.
        cosine: of g_K and g.
        ratio: ||g_K|| / ||g||.
        signs: the share of entries whose sign differs.
    """

    of: str
    window: int | None
    bias: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    cosine: tuple[float, ...]
    ratio: tuple[float, ...]
    signs: tuple[float, ...]

    @staticmethod
    def of_horizon(horizon: Horizon, delta: float) -> "Curve":
        """That of a horizon, or of a layer or parameter of it."""
        low, middle, high = (horizon.quantile("bias", share) for share in BAND)
        rows = (middle, low, high, horizon.cosine, horizon.ratio, horizon.signs)
        return Curve(horizon.name, horizon.window(delta), *map(_numbers, rows))


@dataclass(frozen=True)
class LagRow:
    """What is known of the lags from `first` to `last`.

    Attributes:
        used: by how much the loss falls when the forward pass sees these lags too.
        reached: the size of their part of the gradient over that of the whole.
        learnable: above 1 where the signal of their part is above its noise.
        low, high: the interval of that.
    """

    first: int
    last: int
    used: float | None
    reached: float
    learnable: float | None
    low: float | None
    high: float | None

    @staticmethod
    def of_column(column: Column) -> "LagRow":
        """That of a horizon's column."""
        low, high = column.interval or (None, None)
        return LagRow(
            column.lags[0],
            column.lags[-1],
            column.used,
            column.reached,
            column.learnable,
            low,
            high,
        )


@dataclass(frozen=True)
class AtWeights:
    """The horizon at one set of weights.

    Attributes:
        name: of the checkpoint, "" for the model as it was given.
        advice: the window to choose, in words.
        used: the largest lag that the forward pass uses, None where it is not known.
        reach: the largest lag whose mean contribution is still 1 % of that at lag 0.
        learnable: the learnability horizon, None where it is not known, -1 for no lag at all.
        curves: the whole gradient first, then its layers and parameters.
        lags: what is used, reached and learnable, bin by bin.
        notes: what a reader must know.
    """

    name: str
    advice: str
    used: int | None
    reach: int
    learnable: int | None
    curves: tuple[Curve, ...]
    lags: tuple[LagRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def window(self) -> int | None:
        """The window that the whole gradient needs."""
        return self.curves[0].window

    @staticmethod
    def of_horizon(name: str, horizon: Horizon, delta: float) -> "AtWeights":
        """That of a horizon."""
        parts = (horizon.of(part) for part in horizon.names)
        curves = tuple(Curve.of_horizon(part, delta) for part in (horizon, *parts))
        return AtWeights(
            name,
            horizon.recommendation(delta),
            None if horizon.used is None else horizon.used.lag,
            horizon.reach,
            horizon.learnable,
            curves,
            tuple(LagRow.of_column(column) for column in horizon.columns),
            horizon.notes,
        )


@dataclass(frozen=True)
class HorizonData:
    """The horizon of a model, at one or several sets of weights; `HorizonReport` says the rest."""

    kind: str
    steps: tuple[int, ...]
    length: int
    batches: int
    delta: float
    weights: tuple[AtWeights, ...]
    settings: Settings = Settings()
    layer: str | None = None
    training_steps: int | None = None
    batch_size: int | None = None
    past: str | None = None

    # What pydantic reads when it is written and read: numbers beyond JSON's are strings.
    __pydantic_config__ = {"ser_json_inf_nan": "strings", "extra": "forbid"}

    def __post_init__(self) -> None:
        """Refuse numbers that do not belong together.

        Raises:
            ArgumentError: with the first thing that is wrong.
        """
        _checks.one_of("kind", self.kind, KINDS)
        if self.past is not None:
            _checks.one_of("past", self.past, PASTS)
        _checks.whole("batches", self.batches)
        _checks.number("delta", self.delta, lambda real: real >= 0, "a number from 0 on")
        ascending = all(a < b for a, b in pairwise((0, *self.steps, self.length + 1)))
        if not self.steps or not ascending:
            raise ArgumentError(f"steps must ascend from 1 to {self.length}; got {self.steps}")
        if not self.weights:
            raise ArgumentError("weights must hold at least one set of weights; got none")
        for each in self.weights:
            if not each.curves or each.curves[0].of:
                raise ArgumentError("curves must begin with that of the whole gradient")
            for curve in each.curves:
                _check_curve(curve, self.steps)

    @property
    def last(self) -> AtWeights:
        """The horizon at the last weights, which the views show."""
        return self.weights[-1]

    @property
    def shown(self) -> list[int]:
        """The places of the K that a table shows: powers of two, the window, the last one."""
        wanted = {2**power for power in range(self.length.bit_length())}
        wanted |= {self.steps[0], self.steps[-1]}
        wanted |= {each.window for each in self.weights if each.window is not None}
        return [at for at, k in enumerate(self.steps) if k in wanted]


def _check_curve(curve: Curve, steps: tuple[int, ...]) -> None:
    for name in ("bias", "low", "high", "cosine", "ratio", "signs"):
        if len(getattr(curve, name)) != len(steps):
            raise ArgumentError(f"{name} of {curve.of!r} must have a number for each of the steps")
    if curve.window is not None and curve.window not in steps:
        raise ArgumentError(f"the window of {curve.of!r} must be one of the steps")


def _numbers(curve: Tensor) -> tuple[float, ...]:
    return tuple(curve.tolist())
