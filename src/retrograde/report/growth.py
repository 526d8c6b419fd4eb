"""How far back a gradient has to go, and how far it went in the course of training."""

from dataclasses import dataclass
from typing import Any

from retrograde import charts


@dataclass(frozen=True)
class NeededLag:
    """A lag that matters to the reader, and what lies there: 52 weeks, "last year's season".

    Attributes:
        lag: in steps.
        name: what lies there, in words.

    Example:
        >>> from retrograde.report import NeededLag
        >>> NeededLag(52, "last year's season").lag
        52
    """

    lag: int
    name: str


@dataclass(frozen=True)
class Growth:
    """How far back the gradient of a layer went at several sets of weights, in order of training.

    Attributes:
        weights: what each is called: "fresh", "epoch 1".
        window: steps; the smallest truncation whose bias is at most `delta`, None if there is none.
        reach: steps; the largest lag whose mean contribution is still 1 % of that at lag 0.
        delta: the bias that the window may have.
        beyond: at the last weights, the norm of what comes from the report's horizon and beyond,
            over that of the whole gradient: the bias of truncating there.

    Example:
        >>> from retrograde.report import Growth
        >>> Growth(("fresh", "epoch 1"), (5, 20), (8, 36), 0.1, 0.003).window[-1]
        20
    """

    weights: tuple[str, ...]
    window: tuple[int | None, ...]
    reach: tuple[int, ...]
    delta: float
    beyond: float

    def chart(self, layer: str, horizon: NeededLag | None = None) -> Any:
        """An Altair chart of window and reach over training.

        Args:
            layer: what it is called.
            horizon: a lag to mark.
        """
        needed = None if horizon is None else (horizon.lag, horizon.name)
        curves = {"window": self.window, "reach": self.reach}
        return charts.horizon_growth(self.weights, curves, layer, needed)
