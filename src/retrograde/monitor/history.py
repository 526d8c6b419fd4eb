"""What a monitor saw, look after look: as rows, as a table and as a chart."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retrograde import _checks, charts, plots
from retrograde._optional import optional

FORGOTTEN = math.log2(100)
"""The halvings after which 1 % of the gradient is left, which counts as forgotten."""


class History(Sequence[Mapping[str, float]]):
    """The scalars of every look, in order; each row has a `step` as well.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.GRU(1, 2)
        >>> monitor = retrograde.Monitor(model, every=2)
        >>> for _ in range(3):
        ...     with monitor:
        ...         model(torch.ones(5, 3, 1))[0].square().mean().backward()
        >>> [row["step"] for row in monitor.history], monitor.history.layers
        ([0, 2], ['GRU'])
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a look."""
        self._rows.append({"step": step, **scalars})

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        if not self._rows:
            return "History of no looks"
        first, last = self._rows[0]["step"], self._rows[-1]["step"]
        layers = ", ".join(self.layers) or "none"
        return f"History of {len(self)} looks, blocks {first} to {last}; layers: {layers}"

    @property
    def layers(self) -> list[str]:
        """The names of all layers that were looked at."""
        names = (name.split("/") for row in self._rows for name in row)
        return list(dict.fromkeys("/".join(name[1:-1]) for name in names if len(name) > 2))

    def of(self, layer: str, scalar: str) -> list[tuple[int, float]]:
        """(step, value) of a scalar of a layer, where there was one.

        Raises:
            ArgumentError: for a layer that is not in it.
        """
        _checks.existing("layer", layer, self.layers)
        name = f"retrograde/{layer}/{scalar}"
        return [(int(row["step"]), row[name]) for row in self._rows if name in row]

    def horizon(self, layer: str) -> list[tuple[int, float]]:
        """(step, lag at which the adjoint would be 1 % of what it was) by its rate of growth.

        -log2(100) / rate, in steps, where the rate is negative; unlike the reach it may lie beyond
        the sequence. Where the adjoint does not shrink there is none, and no row.
        """
        return [(at, -FORGOTTEN / rate) for at, rate in self.of(layer, "rate") if rate < 0]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each look and a column for each scalar.

        Raises:
            MissingExtraError: without pandas; the message says how to install it.
        """
        with optional("a table", "dataframe"):
            import pandas  # type: ignore[import-untyped]

        return pandas.DataFrame(self._rows)

    def chart(self, layer: str | None = None, needs_lag: int | None = None) -> Any:
        """An Altair chart of reach and horizon over training, and of the rate of growth below it.

        Args:
            layer: the one to draw; all, one above the other, if None.
            needs_lag: a lag to mark.

        Raises:
            ArgumentError: for a layer that is not in it.
            MissingExtraError: without altair; the message says how to install it.
        """
        return charts.training_run(self._curves(layer), needs_lag)

    def plot(
        self, layer: str | None = None, needs_lag: int | None = None, ax: Any = None
    ) -> tuple[Any, Any]:
        """Reach and horizon over training with Matplotlib, as (figure, axes).

        Args:
            layer: the one to draw, all if None.
            needs_lag: a lag to mark.
            ax: the axes to draw on; new ones if None.

        Raises:
            ArgumentError: for a layer that is not in it.
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        return plots.training_run(self._curves(layer), needs_lag, ax)

    def _curves(self, layer: str | None) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Reach, horizon and rate of a layer, or of all."""
        return {
            name: {
                "reach": self.of(name, "reach"),
                "horizon": self.horizon(name),
                "rate": self.of(name, "rate"),
            }
            for name in (self.layers if layer is None else [layer])
        }

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return iter(self._rows)


class Smoothed:
    """Exponential moving averages of scalars, without the bias towards 0 at their beginning.

        m_n = (1 - a) * sum_i a^(n-i) v_i / (1 - a^n)

    (Kingma and Ba 2015, section 3.)

    Args:
        factor: a, from 0 (no smoothing) to below 1.
    """

    def __init__(self, factor: float):
        self.factor = factor
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """The averages of these scalars, each with the new value."""
        for name, value in scalars.items():
            total, weight = self._sums.get(name, (0.0, 0.0))
            a = self.factor
            self._sums[name] = (a * total + (1 - a) * value, a * weight + 1 - a)
        return {name: self._sums[name][0] / self._sums[name][1] for name in scalars}
