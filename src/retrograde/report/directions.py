"""The spectrum of a layer as plain numbers."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrograde import charts
from retrograde.spectra import Spectrum


@dataclass(frozen=True)
class Directions:
    """What the recurrence would do with any gradient, for some of its directions.

    Medians over the batch: a sample in which a direction is lost does not speak for the others.

    Attributes:
        size: S, how many directions there are.
        shown: which of them stand here, the first being 0.
        exponents: their Lyapunov exponents, in nats per step.
        steps, curve: numbers of steps, and the exponents estimated after each, a row for each.
        lengths, log2: window lengths in steps, and log2 of the singular values, a row for each.
    """

    size: int
    shown: tuple[int, ...]
    exponents: tuple[float, ...]
    steps: tuple[int, ...]
    curve: tuple[tuple[float, ...], ...]
    lengths: tuple[int, ...]
    log2: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(spectrum: Spectrum) -> "Directions":
        """The plain numbers of a spectrum, with windows of 1, 4, 16, ... and all steps."""
        steps = len(spectrum.chain)
        lengths = [4**e for e in range(steps.bit_length()) if 4**e < steps] + [steps]
        found, values = spectrum.exponents, spectrum.singular_values(lengths)
        shown = charts.directions(spectrum.chain.size)
        return Directions(
            size=spectrum.chain.size,
            shown=tuple(shown),
            exponents=_row(found.each.median(0).values[shown]),
            steps=tuple(found.steps.tolist()),
            curve=_rows(found.curve.median(1).values[:, shown]),
            lengths=values.lengths,
            log2=_rows(values.log2.median(1).values[:, shown]),
        )

    def exponents_chart(self) -> Any:
        """The exponents as they settle, as an Altair chart."""
        return charts.exponents(self.steps, self.shown, self.size, self.curve)

    def chart(self) -> Any:
        """The singular values over the length of the window, as an Altair chart."""
        return charts.singular_values(self.lengths, self.shown, self.size, self.log2)


def _row(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))
