"""Horizon: how far the gradient of a truncated backward pass is from the whole one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, nan
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde import _checks, charts, plots
from retrograde._notebook import card
from retrograde._optional import optional
from retrograde._words import steps as in_words
from retrograde.cells.position import SUFFIX, Position
from retrograde.errors import ArgumentError
from retrograde.truncation.measures import Measures
from retrograde.truncation.price import Price
from retrograde.truncation.signal import Signal
from retrograde.truncation.used import Used

DELTA = 0.1
"""The bias that a truncation may have unless the caller says otherwise."""

BAND = (0.1, 0.5, 0.9)
"""A curve's lower end, its middle and its upper end over batches, as quantiles."""

MEASURES = ("bias", "cosine", "ratio", "signs")

MOST_BATCHES = 0.9
"""The share of the batches in which the bias must be small enough."""

AT_THESE_WEIGHTS = (
    "This holds at the current weights: a fresh network forgets within a few steps whatever the "
    "data hold, so that a bias near zero proves nothing about other weights."
)
"""What every view of a horizon says, once."""

ENDS = (
    "what comes from beyond some steps counts as given by the loss there, so that truncating the "
    "whole model may lose more"
)

ZERO = "the gradient is 0"

NOTHING_TO_LEARN = (
    "what the loss asks follows from the present state alone (one linear in the outputs asks the "
    "same of every sample), so that there is nothing to learn by lag"
)


@dataclass(frozen=True)
class Column:
    """What is known of one bin of lags.

    Attributes:
        lags: the lags.
        used: by how much the loss falls when the forward pass sees these lags too.
        reached: the size of their part of the gradient over that of the whole.
        learnable: the `Signal.learnability` of what the past at these lags says of the loss, above
            1 where it exceeds its noise.
        interval: that of it.

    Example:
        >>> from retrograde.truncation import Column
        >>> row = Column(range(5, 9), used=0.2, reached=0.1, learnable=12.0, interval=(8.0, 20.0))
        >>> row.lags.stop - 1, row.interval[0] > 1  # the last lag; its signal is shown
        (8, True)
    """

    lags: range
    used: float | None
    reached: float
    learnable: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Horizon:
    """What truncated back-propagation through time leaves of the gradient, for every K.

        bias(K) = ||g - g_K|| / ||g||

    g is the whole gradient and g_K the one that looks back over K steps: lags 0 to K-1. Everything
    here holds at the current weights alone: a fresh network forgets within a few steps whatever
    the data hold, so that a bias near zero proves nothing about other weights.

    Attributes:
        kind: "sliding" (every loss step looks back over K steps), "chunks" (the state is detached
            every K steps; the mean over the phases of the cut) or "window" (the forward pass, too,
            starts K steps before the loss).
        steps: the K, ascending.
        length: T, the steps of the sequence.
        measures: of each batch, by name: "" for the whole gradient, then layers and parameters.
        reach: `Flow.reach`, the largest lag whose mean contribution is still 1 % of that at lag 0;
            the median over batches.
        notes: what a reader must know.
        name: what the curves are of, "" for the whole gradient; `of` gives those of the others.
        layer: the recurrent layer that was asked about; None for all.
        signal: signal and noise by lag, of the whole gradient; None of a single pass.
        training_steps: of the training that learnability is judged for.
        batch_size: the samples of its batches; None for those of the batches seen.
        unexplained: the same of what the past says of the loss: the parts less those that the past
            of another sample gives in their place, so that what is left depends on both the past
            and what the loss asks (`retrograde.horizons.another_past` has the mathematics).
            `learnable` rests on it: the gradient itself has a signal at every lag, whatever the
            data hold. None for a single batch, and where the past cannot be replaced; `notes` say
            so.
        used: what the forward pass uses; None where that is not known.
        by_phase: of chunks, for K = 1, 2, 4, ... the bias of single phases of the cut, that of
            `x.split(K)` the last: of all K phases up to 8, else of 8 evenly spaced ones. Of the
            whole gradient, and of the first batch.
        price: what the window of bias 0.1 costs, measured; None where that is not known.
        sensitivity: for each bin of `signal.lags` log2 of the norm of the part of dL/dx of these
            lags (`Flow.by_lag("input")`), the mean over batches; None of a single pass.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.LSTM(1, 4)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(20, 3, 1))[0].sum().backward()
        >>> horizon = retrograde.decompose(recording).horizon()
        >>> len(horizon.steps), bool(horizon.bias[-1] < 1e-5), horizon.window(delta=1.0)
        (20, True, 1)

    References:
        Christopher Aicher, Nicholas J. Foti and Emily B. Fox, "Adaptively Truncating
        Backpropagation Through Time to Control Gradient Bias", UAI (2019), arXiv 1905.07473.
    """

    kind: str
    steps: tuple[int, ...]
    length: int
    measures: Mapping[str, tuple[Measures, ...]]
    reach: int
    notes: tuple[str, ...] = ()
    name: str = ""
    signal: Signal | None = None
    training_steps: int = 1
    batch_size: int | None = None
    unexplained: Signal | None = None
    used: Used | None = None
    price: Price | None = None
    by_phase: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    sensitivity: Float[Tensor, "M"] | None = None
    layer: str | None = None

    @staticmethod
    def of_one(kind: str, found: Mapping[str, Measures], length: int, reach: int) -> "Horizon":
        """That of one pass through one layer or stack, for K = 1 .. `length`."""
        named = {name: (one,) for name, one in with_layers(found).items()}
        return Horizon(kind, tuple(range(1, length + 1)), length, named, reach)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers and parameters, each of which `of` takes."""
        return tuple(name for name in self.measures if name)

    @property
    def batches(self) -> int:
        """How many batches it rests on."""
        return len(self.measures[self.name])

    def of(self, name: str) -> "Horizon":
        """That of a layer or a parameter alone.

        Raises:
            ArgumentError: for any other name.
        """
        _checks.existing("name", name, self.names)
        return replace(self, name=name)

    @property
    def bias(self) -> Float[Tensor, "K"]:
        """||g - g_K|| / ||g|| for each K, the median over batches; NaN if g is 0 in all of them."""
        return self.quantile("bias", 0.5)

    @property
    def cosine(self) -> Float[Tensor, "K"]:
        """The cosine of g_K and g, the median over batches; NaN where either is 0."""
        return self.quantile("cosine", 0.5)

    @property
    def ratio(self) -> Float[Tensor, "K"]:
        """||g_K|| / ||g||, the median over batches."""
        return self.quantile("ratio", 0.5)

    @property
    def signs(self) -> Float[Tensor, "K"]:
        """The share of entries whose sign differs in g_K and g, the median over batches."""
        return self.quantile("signs", 0.5)

    def each(self, measure: str) -> Float[Tensor, "N K"]:
        """One of "bias", "cosine", "ratio" and "signs" of each batch."""
        _checks.existing("measure", measure, MEASURES)
        found = self.measures[self.name]
        rows = [
            one.signs / one.entries if measure == "signs" else getattr(one, measure)
            for one in found
        ]
        return torch.stack(rows)

    def quantile(self, measure: str, share: float) -> Float[Tensor, "K"]:
        """A quantile of one of these measures over batches, those left out in which g is 0.

        NaN where the measure is not known in any batch.

        Raises:
            ArgumentError: for another measure, or a share that does not lie between 0 and 1.
        """
        share = _checks.number("share", share, lambda q: 0 <= q <= 1, "a number from 0 to 1")
        rows = self.each(measure)[self._counting]
        return rows.nanquantile(share, 0) if len(rows) else rows.new_full(rows.shape[1:], torch.nan)

    @property
    def _counting(self) -> Bool[Tensor, "N"]:
        """The batches in which the gradient is not 0."""
        return torch.tensor([one.whole > -inf for one in self.measures[self.name]])

    @property
    def learnable(self) -> int | None:
        """The learnability horizon, a lag: nothing older is shown to say anything of the loss.

        `unexplained.learnable` for `training_steps` of `batch_size` samples; -1 where a signal is
        excluded at every lag. None for a single batch, and where the batches cannot tell. 0 where
        the present input alone counts.
        """
        if self.unexplained is None:
            return None
        return self.unexplained.learnable(self.training_steps, self.batch_size)

    @property
    def spread(self) -> Mapping[int, float]:
        """For the K of `by_phase` the root mean square of ||g_K(phase) - g_K|| / ||g|| over phases.

        By this much the gradient depends on where the cuts fall. The mean square of the bias of a
        single phase is that of the mean, `bias`, and the square of this.
        """
        bias = dict(zip(self.steps, self.measures[""][0].bias.tolist(), strict=True))
        return {
            k: max(0.0, sum(one**2 for one in each) / len(each) - bias[k] ** 2) ** 0.5
            for k, each in self.by_phase.items()
        }

    def bias_at(self, steps: int) -> float:
        """The bias at one K, the median over batches.

        Raises:
            ArgumentError: for a K that is not among `steps`: 0, or beyond the sequence.
        """
        steps = _checks.whole("steps", steps, 1, self.length)
        if steps not in self.steps:
            raise ArgumentError(
                f"the model was not run with {steps} steps; there are "
                + ", ".join(map(str, self.steps))
            )
        return float(self.bias[self.steps.index(steps)])

    def window(self, delta: float = DELTA) -> int | None:
        """The smallest K whose bias is at most delta in at least 90 % of the batches.

        None if there is none. Batches in which the gradient is 0 do not count. With steps on a grid
        the true one may lie between the one before and this one.

        Raises:
            ArgumentError: if delta is not a number from 0.
        """
        delta = _allowed(delta)
        share = (self.each("bias")[self._counting] <= delta).double().mean(0)
        found = torch.nonzero(share >= MOST_BATCHES - 1e-9)
        return self.steps[int(found[0])] if len(found) else None

    def __repr__(self) -> str:
        of = self.name or "the whole gradient"
        batches = f", {self.batches} batches" if self.batches > 1 else ""
        return f"Horizon of {of} ({self.kind}, {in_words(self.length)}{batches})"

    def __str__(self) -> str:
        return "\n".join([repr(self), *self.summary()])

    def _repr_html_(self) -> str:
        return card(repr(self), lambda: "\n".join(self.summary()), self.chart)

    def summary(self, delta: float = DELTA) -> list[str]:
        """What it says, in a few lines; `print` shows them."""
        delta = _allowed(delta)
        window = self.window(delta)
        share = f" in {MOST_BATCHES:.0%} of the batches" if self.batches > 1 else ""
        lines = [
            f"window     {in_words(window)}: the smallest with a bias of at most {delta:g}{share}"
            if window is not None
            else f"window     none: the bias stays above {delta:g}{share}"
            if self._counting.any()
            else f"window     none: {ZERO}",
            f"reach      {self.reach} of {self.length - 1} steps",
        ]
        if self.used is not None:
            lines.append(f"used       {_lag_in_words(self.used.lag)}, by the forward pass")
        if self.unexplained is not None:
            found = self.learnable
            words = "cannot be told" if found is None else _lag_in_words(found)
            lines.append(
                f"learnable  {words}, for {self._training} and from {self.batches} batches"
            )
        return [*lines, AT_THESE_WEIGHTS, *self.notes]

    @property
    def columns(self) -> tuple["Column", ...]:
        """Used, reached and learnable side by side, a row for each bin of lags; none of one pass.

        What is not known is None.
        """
        if self.signal is None:
            return ()
        signal, used, unexplained = self.signal, self.used, self.unexplained
        asked = self.training_steps, self.batch_size
        whole = median([one.whole for one in self.measures[""] if one.whole > -inf] or [nan])
        reached = torch.exp2(signal.log2_size - whole)
        ends = [] if unexplained is None else unexplained.interval(*asked).tolist()
        learnable = [] if unexplained is None else unexplained.learnability(*asked).tolist()
        return tuple(
            Column(
                lags,
                None if used is None else float(used.by_bin[number]),
                float(reached[number]),
                learnable[number] if learnable else None,
                (ends[number][0], ends[number][1]) if ends else None,
            )
            for number, lags in enumerate(signal.lags)
        )

    def recommendation(self, delta: float = DELTA) -> str:
        """The window to choose in a sentence or two, and what a longer one could do.

        Raises:
            ArgumentError: if delta is not a number from 0.
        """
        delta = _allowed(delta)
        window = self.window(delta)
        share = f" in {MOST_BATCHES:.0%} of the batches" if self.batches > 1 else ""
        if not self._counting.any():
            return f"No window can be named: {ZERO}. {AT_THESE_WEIGHTS}"
        if window is None:
            words = f"No K up to {self.steps[-1]} has a bias of at most {delta:g}{share}."
        else:
            words = (
                f"A window of {in_words(window)} is the smallest with a bias of at most "
                f"{delta:g}{share}"
            )
            priced = self.price is not None and self.price.steps == window < self.length
            words += f"; it takes {self.price}." if priced else "."
        return " ".join([words, *self._longer(window), AT_THESE_WEIGHTS])

    def _longer(self, window: int | None) -> list[str]:
        """What a window between this one and all T steps could add, in a sentence."""
        if window is None or window >= self.length:
            length = in_words(self.length)
            return [f"What lies further back than {length} these sequences do not show."]
        between = f"windows between {window} and {self.length} steps"
        if self.signal is not None and not self.signal.products[self._beyond(window)].any():
            return [f"No loss step looks further back: {between} add nothing to this gradient."]
        if self.unexplained is None:
            return [f"Whether {between} would help, a single batch cannot tell."]
        if self.unexplained.nothing:
            return [f"Whether {between} would help cannot be told: {NOTHING_TO_LEARN}."]
        signal, asked = self.unexplained, (self.training_steps, self.batch_size)
        beyond = self._beyond(window)
        shown = torch.nonzero(signal.shown(*asked) & beyond)
        if len(shown):
            lags = signal.lags[int(shown[-1])]
            found = f"lag {lags.start}" if len(lags) == 1 else f"lags {lags.start} to {lags[-1]}"
            return [
                f"But the past at {found} says something of the loss that shows above the noise of "
                f"{self._training}: there is something for a longer window to learn."
            ]
        if bool(signal.excluded(*asked)[beyond].all()):
            return [
                f"For {self._training}, {between} cannot help: what they would add has no signal "
                "above its noise (learnability below 1)."
            ]
        return [
            f"Whether {between} would help {self._training} cannot be told from "
            f"{self.batches} batches: give more."
        ]

    def _beyond(self, window: int) -> Bool[Tensor, "M"]:
        """The bins with lags that a window leaves out."""
        assert self.signal is not None
        return torch.tensor([lags.stop > window for lags in self.signal.lags])

    @property
    def _training(self) -> str:
        assert self.signal is not None
        size = self.batch_size or self.signal.batch_size
        return f"{self.training_steps} training steps with batches of {size}"

    def to_dataframe(self) -> Any:
        """A pandas DataFrame: a row for each name, batch and K, with the measures.

        Raises:
            MissingExtraError: without pandas; the message says how to install it.
        """
        with optional("a table", "dataframe"):
            import pandas  # type: ignore[import-untyped]

        rows = []
        for name in self.measures:
            horizon = replace(self, name=name)
            columns = {m: horizon.each(m).tolist() for m in MEASURES}
            rows += [
                {"of": name, "batch": batch, "steps": k}
                | {m: columns[m][batch][at] for m in MEASURES}
                for batch in range(self.batches)
                for at, k in enumerate(self.steps)
            ]
        return pandas.DataFrame(rows)

    def chart(self, delta: float = DELTA) -> Any:
        """The bias over K, with its band over batches and the window, as an Altair chart."""
        return charts.truncation_curve(*self._drawn(delta))

    def plot(self, delta: float = DELTA, ax: Any = None) -> tuple[Any, Any]:
        """The same with Matplotlib, as (figure, axes).

        Raises:
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        return plots.truncation_curve(*self._drawn(delta), ax)

    def _drawn(
        self, delta: float
    ) -> tuple[tuple[int, ...], list[list[float]], float, int | None, str]:
        delta = _allowed(delta)
        band = [self.quantile("bias", share).tolist() for share in BAND]
        return self.steps, band, delta, self.window(delta), self.kind


def with_layers(found: Mapping[str, Measures]) -> dict[str, Measures]:
    """The whole gradient, and its layers where there are several, before the parameters."""
    layers: dict[str, list[Measures]] = {}
    for name, one in found.items():
        suffix = SUFFIX.search(name)
        position = Position.of(suffix.group()) if suffix else None
        layers.setdefault("" if position is None else str(position), []).append(one)
    several = layers if len(layers) > 1 else {}
    together = {name: Measures.together(some) for name, some in several.items() if name}
    return {"": Measures.together(list(found.values())), **together, **found}


def of_layers(found: Mapping[str, Mapping[str, Measures]]) -> dict[str, Measures]:
    """The same of several recurrent layers of a model, each by its name."""
    named = {layer: with_layers(each) for layer, each in found.items()}
    if len(named) == 1:
        return next(iter(named.values()))
    measures = {
        f"{layer}: {name}" if name else layer: one
        for layer, each in named.items()
        for name, one in each.items()
    }
    return {"": Measures.together([measures[layer] for layer in named]), **measures}


def _lag_in_words(lag: int) -> str:
    return "no lag" if lag < 0 else f"up to lag {lag}"


def _allowed(delta: object) -> float:
    """The bias that is allowed, as a number.

    Raises:
        ArgumentError: if it is none, or negative.
    """
    return _checks.number("delta", delta, lambda real: real >= 0, "a number from 0 on")
