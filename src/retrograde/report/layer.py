"""One layer of a report: the numbers of its decomposition as data that outlives the model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from retrograde import charts
from retrograde.cells import Position
from retrograde.decomposition import Flow
from retrograde.decomposition.lags import REACH
from retrograde.diagnosis import GateSeries
from retrograde.report.crossings import by_crossing
from retrograde.report.directions import Directions
from retrograde.report.growth import NeededLag
from retrograde.report.written_parts import Kept


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
            log2_mean_by_lag=tuple(by_time.log2_mean_by_lag.tolist()),
            log2_adjoint_by_lag=tuple(flow.adjoints.log2_growth_by_lag.tolist()),
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
        mean = torch.tensor(self.log2_mean_by_lag, dtype=torch.float64)
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


def _gate(series: GateSeries) -> str:
    return series.gate or series.name


def _gates(series: Sequence[GateSeries]) -> int:
    """How many different gates there are; a stack has each of them in every layer."""
    return len(set(map(_gate, series)))
