"""What the gates do over time in the forward pass, and how much of them is saturated."""

from dataclasses import dataclass

from retrograde.cells import Position


@dataclass(frozen=True)
class GateSeries:
    """One gate (or squashed value) along the sequence, over all samples and units.

    Attributes:
        name: the gate, with its layer in a stack: "forget", "output_l1".
        steps: the steps shown; long sequences are thinned out.
        low, median, high: 10th, 50th and 90th percentile of the activation at each of them.
        saturated: the share of samples and units that are saturated there.
        gate: the name of the gate alone.
        position: its layer and direction, where the module has several.

    Example:
        >>> from retrograde.diagnosis import GateSeries
        >>> series = GateSeries("forget", (0, 1), (0.4, 0.9), (0.5, 0.95), (0.6, 0.99), (0.0, 0.5))
        >>> dict(zip(series.steps, series.median))
        {0: 0.5, 1: 0.95}
    """

    name: str
    steps: tuple[int, ...]
    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    saturated: tuple[float, ...]
    gate: str = ""
    position: Position | None = None
