"""One layer of a report: the numbers of its decomposition as data that outlives the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from retrograde import charts
from retrograde._optional import optional
from retrograde.cells import Position
from retrograde.decomposition import Flow, Parts
from retrograde.decomposition.lags import REACH
from retrograde.diagnosis import GateSeries
from retrograde.spectra import Spectrum

WrittenLabel = int | str | tuple[int, int] | None
Numbers = list[float] | list[list[float]]

CROSSING_NUMBERS = 2**26
"""Maximum number of numbers in the rows of `by_crossing`, 256 MiB in float32."""

CROSSING_ROWS, CROSSING_WORK = 256, 2**30
"""With more rows than this, those of `by_crossing` are merged as their lags grow: as many rows as
make up this many numbers at all steps together."""

RESOLUTIONS, COARSEST = (2, 3, 4, 6, 8, 12, 16), 2
"""To which part of themselves lags are known then."""


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


@dataclass(frozen=True)
class WrittenParts:
    """Parts as JSON has them: plain labels, sizes and shares.

    Attributes:
        parameter: null for the whole gradient.
        axes: for each axis the labels of its places, by the name of what it runs over; lags and
            steps that share a place are the first and the last of them.
        log2: log2 of the norm of each part, by place on the axes.
        share: the signed share of each part.
    """

    parameter: str | None
    axes: tuple[dict[str, tuple[WrittenLabel, ...]], ...]
    log2: Numbers
    share: Numbers

    # Read by pydantic: what has another field is no such file.
    __pydantic_config__ = {"extra": "forbid"}

    @staticmethod
    def of(parts: Parts) -> "WrittenParts":
        """The plain numbers of some parts."""
        axes = tuple(
            {name: tuple(map(_written, labels)) for name, labels in axis.items()}
            for axis in parts.axes
        )
        return WrittenParts(parts.parameter, axes, parts.log2.tolist(), parts.share.tolist())

    def read(self) -> Parts:
        """The parts that were written.

        Raises:
            ValueError: where the numbers are not as many as the labels.
        """
        axes = tuple(
            {name: tuple(map(_read, labels)) for name, labels in axis.items()} for axis in self.axes
        )
        if not all(axes) or any(len(set(map(len, axis.values()))) > 1 for axis in axes):
            raise ValueError("an axis needs names, and as many labels for each of them")
        shape = [len(next(iter(axis.values()))) for axis in axes]
        log2, share = _tensor(self.log2), _tensor(self.share)
        if not log2.numel() and not share.numel() and 0 in shape:
            log2, share = log2.reshape(shape), share.reshape(shape)
        if not list(log2.shape) == list(share.shape) == shape:
            raise ValueError(f"log2 and share must have a number for each label, shape {shape}")
        return Parts.measured(axes, self.parameter, log2, share)


class _AsJson:
    """How pydantic writes and reads parts in a report."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> Any:
        with optional("a report as JSON", "report"):
            from pydantic_core import core_schema

        plain = handler.generate_schema(WrittenParts)
        return core_schema.no_info_after_validator_function(
            WrittenParts.read,
            plain,
            serialization=core_schema.plain_serializer_function_ser_schema(
                WrittenParts.of, return_schema=plain
            ),
        )


Kept = Annotated[Parts, _AsJson]
"""Parts in a report: labels, sizes and shares, which outlive the pass."""


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


@dataclass(frozen=True)
class Layer:
    """What a report knows of one decomposed layer.

    Attributes:
        name: what to call it.
        steps, batch: T and B of the pass.
        entries: how many steps the loss enters at.
        reach, half_life: in steps; a negative half-life is a doubling.
        residual, residual_note: how far the parts are, in sum, from autograd's own gradient.
        growth: largest increase of log2 of the adjoint's norm from a step to the step before.
        share_near, share_carousel: signed shares of lags 0-10, and of what arrives by the carousel
            in its last hop.
        gradient_norm: L2 norm of the layer's gradient.
        beyond: signed share of the lags from the horizon on, where the report has a horizon.
        log2_mean_by_lag: log2 of the mean norm of the contributions at each lag.
        log2_adjoint_by_lag: log2 of the mean norm of the adjoint at each lag, over that of the same
            entries at lag 0.
        by_time, by_lag, by_octave, by_parameter, by_route, by_crossing: the gradient taken apart,
            as `Parts` without the parts themselves: by time pooled where the sequence is long, by
            lag in the groups of the table and in octaves; routes and crossings are None for a cell
            without a carousel, where they tell nothing.
        gate_series: the gates over time.
        figures: further figures for its row of the table, by column title.
        directions: its spectrum, where that was asked for.
        void: whether the residual is larger than the precision of the pass allows; the parts are
            then those of another gradient, and none of the numbers above holds.
        residual_bound: how large the residual might be.
        reach_is_lower_bound: whether the gradient may reach further than can be followed.

    Example:
        >>> import torch, retrograde
        >>> report = retrograde.diagnose(
        ...     torch.nn.GRU(2, 4), torch.ones(20, 3, 2), lambda model, x: model(x)[0].sum()
        ... )
        >>> layer = report.layers[0]
        >>> layer.name, layer.steps, layer.batch, layer.void
        ('GRU', 20, 3, False)
    """

    name: str
    steps: int
    batch: int
    entries: int
    reach: int
    half_life: float
    residual: float
    residual_note: str
    growth: float
    share_near: float
    share_carousel: float
    gradient_norm: float
    beyond: float | None
    log2_mean_by_lag: tuple[float, ...]
    log2_adjoint_by_lag: tuple[float, ...]
    by_time: Kept
    by_lag: Kept
    by_octave: Kept
    by_parameter: Kept
    by_route: Kept | None
    by_crossing: Kept | None
    gate_series: tuple[GateSeries, ...] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    directions: Directions | None = None
    void: bool = False
    residual_bound: float = math.inf
    reach_is_lower_bound: bool = False

    @property
    def seen(self) -> bool:
        """Whether there is a gradient to look back on, and its parts hold."""
        return not self.void and self.entries > 0 and self.steps > 1

    def __repr__(self) -> str:
        return f"Layer {self.name!r}: {self.steps} steps, reach {self.reach}"

    @property
    def courses(self) -> tuple[GateSeries, ...]:
        """`gate_series` under its earlier name, until 0.2."""
        return self.gate_series

    @staticmethod
    def of(
        name: str,
        flow: Flow,
        bins: Sequence[int],
        horizon: NeededLag | None = None,
        gate_series: Sequence[GateSeries] = (),
        figures: Mapping[str, str] | None = None,
        directions: Directions | None = None,
    ) -> "Layer":
        """Put the questions of a report to a flow.

        Args:
            name: what to call it.
            flow: the decomposition.
            bins: the first lag of each group of lags.
            horizon: the lag that matters, if there is one.
            gate_series: its gates over time.
            figures: further figures for its row of the table.
            directions: its spectrum.
        """
        lags = flow.by_lag(bins=[start for start in bins if start < max(1, flow.steps)])
        by_time, whole = flow.by_time(), flow.by_lag(bins=(0,))
        summary = flow.summary()
        inside = horizon is not None and 0 < horizon.lag < flow.steps
        far = flow.by_lag(bins=(0, horizon.lag)) if horizon and inside else None
        route = flow.by_route() if has_carousel(flow) else None
        return Layer(
            name=name,
            steps=flow.steps,
            batch=flow.unrolled.x.shape[1],
            entries=len(flow.entries),
            reach=flow.reach,
            half_life=flow.half_life,
            residual=float(flow.residual),
            residual_note=flow.residual.note,
            growth=summary.growth,
            share_near=summary.near,
            share_carousel=summary.carousel,
            gradient_norm=float(whole.norm[0]),
            beyond=float(far.share[1]) if far else None,
            log2_mean_by_lag=_row(by_time.log2_mean_by_lag),
            log2_adjoint_by_lag=_row(flow.adjoints.log2_growth_by_lag),
            by_time=by_time.pooled(),
            by_lag=lags.sizes(),
            by_octave=flow.by_lag().sizes(),
            by_parameter=flow.by_parameter().sizes(),
            by_route=route.sizes() if route else None,
            by_crossing=by_crossing(flow).sizes() if route else None,
            gate_series=tuple(gate_series),
            figures=dict(figures or {}),
            directions=directions,
            void=not flow.residual.ok,
            residual_bound=flow.residual.bound,
            reach_is_lower_bound=flow.reach_is_lower_bound,
        )

    def chart(self) -> Any:
        """The mean contribution over lag, with reach and half-life, as an Altair chart."""
        mean = _tensor(self.log2_mean_by_lag)
        return charts.lag_curve(mean, self.reach, self.half_life, REACH)

    def adjoint_chart(self) -> Any:
        """The mean norm of the adjoint over lag, as an Altair chart."""
        return charts.adjoint_curve(self.log2_adjoint_by_lag, self.half_life)

    def gates_chart(self, gate: str | None = None, position: Position | None = None) -> Any:
        """The gates over time, all or one of them, as an Altair chart; None if there are none.

        Args:
            gate: the one to show, in every layer and direction.
            position: the layer and direction to show it of.
        """
        series = self._series(gate, position)
        return series and charts.gates_over_time(
            [each.name for each in series],
            [each.steps for each in series],
            [each.low for each in series],
            [each.median for each in series],
            [each.high for each in series],
            _gates(series),
        )

    def saturation_chart(self, gate: str | None = None, position: Position | None = None) -> Any:
        """The saturated share of the gates over time, arguments as of `gates_chart`."""
        series = self._series(gate, position)
        return series and charts.saturation_over_time(
            [each.name for each in series],
            [each.steps for each in series],
            [each.saturated for each in series],
            _gates(series),
        )

    def _series(self, gate: str | None, position: Position | None) -> tuple[GateSeries, ...] | None:
        """Those of a gate, everywhere or at a position; all where there are none of it."""
        everywhere = tuple(c for c in self.gate_series if gate in (c.name, _gate(c)))
        here = tuple(each for each in everywhere if each.position == position)
        return (here if position is not None else ()) or everywhere or self.gate_series or None


def has_carousel(flow: Flow) -> bool:
    """Whether there are routes that cross no recurrent weights, so that routes tell a story."""
    return set(flow.routes) != set(flow.unrolled.cell.recurrent_routes)


def by_crossing(flow: Flow) -> Parts:
    """The gradient by number of crossings, in fewer rows where memory or time would not do.

    The lags of the parts are octaves: where there are many loss steps, rows that are known to a
    part of their lag answer that as well as rows of single steps do.
    """
    numbers = 9 * flow.unrolled.x.shape[1] * flow.unrolled.cell.state_size  # of a row at a step
    most = max(1, CROSSING_NUMBERS // numbers)
    if len(flow.entries) > CROSSING_ROWS:
        most = min(most, CROSSING_WORK // (numbers * flow.steps))
    if len(flow.entries) <= most:
        return flow.by_crossing(max_crossings=8)
    finest = max((r for r in RESOLUTIONS if rows_at(r, flow.steps) <= most), default=COARSEST)
    return flow.with_rows(relative=finest).by_crossing(max_crossings=8)


def rows_at(relative: int, steps: int) -> float:
    """About how many rows there are where lags are known to 1/relative of themselves."""
    return relative * (1 + math.log2(max(2.0, steps / relative)))


def _written(label: Any) -> WrittenLabel:
    return (label.start, label.stop - 1) if isinstance(label, range) else label


def _read(label: WrittenLabel) -> Any:
    return range(label[0], label[1] + 1) if isinstance(label, tuple) else label


def _row(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _gate(series: GateSeries) -> str:
    return series.gate or series.name


def _gates(series: Sequence[GateSeries]) -> int:
    """How many different gates there are; a stack has each of them in every layer."""
    return len(set(map(_gate, series)))
