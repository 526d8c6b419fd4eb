"""Flow: one backward pass, taken apart; every decomposition is a method of it."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks, charts, plots
from retrograde._notebook import card
from retrograde.cells import AbstractCell, Cut, SideBySide, clipped, unclipped
from retrograde.clipping import AbstractInside, AbstractPolicy, chain
from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.decomposition.all_reduced import (
    AbstractPass,
    AllReduced,
    Share,
    all_reduced,
    fingerprint,
)
from retrograde.decomposition.at_lags import NormsAtLags, norms_at_lags
from retrograde.decomposition.bins import Bins, lag_bins
from retrograde.decomposition.by_crossing import Crossings
from retrograde.decomposition.by_input import INPUT, by_input
from retrograde.decomposition.by_lag import Lags, LagSums
from retrograde.decomposition.by_parameter import by_parameter
from retrograde.decomposition.by_phase import by_phase
from retrograde.decomposition.by_route import Routes, RouteSums
from retrograde.decomposition.by_time import ContributionNorms, ContributionShares, parts_by_time
from retrograde.decomposition.by_unit import Units
from retrograde.decomposition.clipped import ClippedFlow, factors_at_the_end
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.lags import REACH, mean_by_lag, reach_of
from retrograde.decomposition.non_finite import NonFinite, first_overflow
from retrograde.decomposition.parts import Parts, together
from retrograde.decomposition.processes import Processes
from retrograde.decomposition.replay import ends_as_recorded, replay
from retrograde.decomposition.residual import Allowance, Residual, residual
from retrograde.decomposition.rounding import moved_by_rounding, whole_gradient
from retrograde.decomposition.rows import log2_of_sum, near
from retrograde.decomposition.sizes import STATE, LagSizes, Sizes
from retrograde.decomposition.summary import NEAR, Summary, growth
from retrograde.engine import Entries, Scaled, Unrolled, fold, with_factors
from retrograde.engine.entries import BLOCK_ROWS, FULL_ROWS
from retrograde.engine.lags import parts_by_lag
from retrograde.engine.unitwise import is_unitwise
from retrograde.errors import ArgumentError, VoidDecompositionWarning
from retrograde.recording import Recorded, Recording
from retrograde.recording.recorded import the_one
from retrograde.truncation import Horizon, Measures
from retrograde.truncation.cuts import cut_every
from retrograde.truncation.horizon import ENDS
from retrograde.truncation.truncated import KINDS, Truncation

LOW = 2.0**-10
"""The rounding error from which on a precision is low: that of float16."""


RELATIVE = 16
"""Lags are known to this part of themselves where rows are merged and the caller did not say."""

TABLES = 2**31
"""Rows are merged by default where the tables by loss step and use step take more bytes."""

SEED = 0
"""Seed of the random signs of companion rows."""


@dataclass(frozen=True, eq=False)
class Flow(AbstractPass):
    """One backward pass through one recurrent layer (or stack), taken apart.

    Made by `decompose`. Norms are returned as log2, so that nothing leaves the range; shares are
    signed and sum to 1. A parameter is named as in its module; None means all of them together.

    Attributes:
        recorded: the pass that was taken apart.
        unrolled: the cell, its inputs and its states.
        entries: where the loss enters.

    Example:
        >>> import torch, retrograde
        >>> lstm = torch.nn.LSTM(2, 3)
        >>> with retrograde.record(lstm) as recording:
        ...     lstm(torch.ones(20, 4, 2))[0][-1].sum().backward()
        >>> flow = retrograde.decompose(recording)
        >>> flow.steps, flow.parameters[:2], "carousel" in flow.routes
        (20, ('weight_ih_l0', 'weight_hh_l0'), True)
        >>> parts = flow.by_lag("weight_hh_l0").parts()  # they sum to the gradient
        >>> torch.allclose(sum(parts).float(), lstm.weight_hh_l0.grad, atol=1e-6)
        True
    """

    recorded: Recorded
    unrolled: Unrolled
    entries: Entries
    _found: dict[AbstractLabels, Mapping[str, Parts]] = field(default_factory=dict)
    _starts: set[int] = field(default_factory=set)
    _ahead: set[AbstractLabels] = field(default_factory=set)
    _truncated: dict[tuple[str, int], Mapping[str, Measures]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Flow of {self.recorded.size_in_words}"

    def _repr_html_(self) -> str:
        return card(repr(self), lambda: str(self.summary()), self.chart)

    @cached_property
    def gradient(self) -> Mapping[str, Scaled]:
        """The whole gradient of each parameter, as one row [1, ...] that holds the summed loss."""
        return whole_gradient(self.unrolled, self.recorded.direct)

    @cached_property
    def _tables(self) -> tuple[Mapping[str, Parts], Adjoints]:
        """What most questions need, from a single pass."""
        if self.entries.relative:
            raise ArgumentError(
                "rows were merged as their lags grew, so that there is no number for every loss "
                "step and use step. Use flow.sizes, or decompose(recording, max_rows=...)"
            )
        norms = ContributionNorms(self.entries, self.steps, self.parameters)
        known = self._autograds
        shares = ContributionShares(self.entries, self.steps, known or self.gradient)
        adjoints = AdjointNorms(self.entries, self.steps)
        octaves = lag_bins("octaves", self.steps)
        starts = self._starts.union(each.start for each in octaves)
        lags = Lags(lag_bins(sorted(starts), self.steps))
        sums = LagSums(lags.lags, self._cell)
        apart = is_unitwise(self.unrolled)  # their lags need no pass of rows
        routes = {
            labels: RouteSums(labels.lags, self._cell, self.entries)
            for labels in self._ahead
            if isinstance(labels, Routes)
        }
        folds = [norms, shares, adjoints, *(() if apart else (sums,)), *routes.values()]
        fold(self.unrolled, self.entries, folds)
        by_lag = lags.parts(self.unrolled, self.entries) if apart else sums.result()
        self._found.update((labels, found.result()) for labels, found in routes.items())
        self._found[lags] = by_lag
        whole = {name: parts.scaled.total() for name, parts in by_lag.items()}
        if known and not all(near(known[name], whole[name]) for name in known):
            shares = ContributionShares(self.entries, self.steps, whole)
            fold(self.unrolled, self.entries, [shares])
        parts = parts_by_time(self.unrolled, self.entries, whole, norms, shares)
        return parts, adjoints.result()

    @property
    def _octaves(self) -> Lags:
        """The bins that are summed in the first pass where rows are merged."""
        octaves = lag_bins("octaves", self.steps)
        return Lags(lag_bins(sorted(self._starts.union(b.start for b in octaves)), self.steps))

    @cached_property
    def _of_lags(self) -> Sizes:
        """Sizes where rows are merged, whose companions take several times the work of sums."""
        found, lags = LagSizes(self.entries, self.steps, self.parameters), self._octaves
        sums = LagSums(lags.lags, self._cell)
        missing = lags not in self._found and not is_unitwise(self.unrolled)
        folds = [found, *((sums,) if missing else ())]
        fold(self.unrolled, self.entries, folds, torch.Generator().manual_seed(SEED))
        if missing:
            self._found[lags] = sums.result()
        return found.result()

    @property
    def sizes(self) -> Sizes:
        """Root mean squares of the contributions by lag, where rows are merged as lags grow.

        Raises:
            ArgumentError: where they are not; `by_time` has every contribution there.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.RNN(1, 2)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(200, 1, 1))[0].sum().backward()
            >>> sizes = retrograde.decompose(recording, relative=8).sizes
            >>> sizes.lags[7:10], sizes.lags[-1]
            ((range(7, 8), range(8, 9), range(9, 10)), range(192, 200))
        """
        if not self.entries.relative:
            raise ArgumentError(
                "every loss step or block of them has a row of its own here: by_time has its "
                "contributions. Sizes by lag are found by decompose(recording, relative=16)"
            )
        return self._of_lags

    @property
    def _log2_by_lag(self) -> Float[Tensor, "T"]:
        """log2 of the mean contribution at each lag; root mean squares where rows are merged."""
        if self.entries.relative:
            return self._of_lags.log2_by_lag()
        return self.by_time().log2_mean_by_lag

    @property
    def _autograds(self) -> Mapping[str, Scaled]:
        """Autograd's gradient, which saves a pass for our own; empty where it is less precise."""
        given, dtype = self.recorded.gradients, self.entries.direct.dtype
        if not self._compares_with_autograd or self._rounding > torch.finfo(dtype).eps:
            return {}
        if any(name not in given or not given[name].isfinite().all() for name in self.parameters):
            return {}
        return {name: Scaled.of(given[name].to(dtype).unsqueeze(0)) for name in self.parameters}

    def walked(self, starts: Iterable[int] = (), routes: bool = False) -> "Flow":
        """The same flow, its backward pass done: what is not finite on the way is raised here.

        Args:
            starts: first lags of bins that will be asked for; they take no pass of their own then.
            routes: whether `by_route` will be asked for, likewise.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        if routes and not self.entries.relative:
            self._ahead.add(Routes(lag_bins("octaves", self.steps)))
        self._starts.update(starts)
        _ = self._of_lags if self.entries.relative else self._tables
        return self

    @property
    def adjoints(self) -> Adjoints:
        """Sizes of the adjoint of the state for every loss step and use step."""
        return self._tables[1]

    @property
    def _cell(self) -> AbstractCell:
        return self.unrolled.cell

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, as in the module."""
        return tuple(self._cell.parameters)

    @property
    def routes(self) -> tuple[str, ...]:
        """The routes from one step's state to the step before, which partition the Jacobian."""
        return self._cell.routes

    @property
    def steps(self) -> int:
        """T, the length of the sequence."""
        return len(self.unrolled)

    @cached_property
    def residual(self) -> Residual:
        """Largest relative difference between the sum of the parts and autograd's gradient.

        `residual.ok` is False where it is larger than the precision of the pass allows: the parts
        are then not those of this gradient, and `residual.note` names the likely reason.

        Autograd cannot cut routes, and knows nothing of a part of the samples: what `without`
        returns, and what a `Recorded.part` leads to, is compared with its own gradient, pulled
        back in one row.
        """
        if not self.entries.relative:
            _ = self._tables  # the pass for the sizes of all pairs has the sums as well
        parts = self._summed

        def cancelling() -> dict[str, float]:
            sizes = {name: self._log2_of_sizes(name) for name in parts}
            return {
                name: float(torch.exp2(size - parts[name].log2_norms()))
                for name, size in sizes.items()
            }

        if self.entries.relative:
            return self._compared(parts, {}, cancelling)
        return self._compared(parts, cancelling())

    def _log2_of_sizes(self, name: str) -> float:
        """log2 of the sum of the norms of all contributions, or of a bound for it."""
        if self.entries.relative:
            return self._of_lags.log2_of_sum(name)
        return float(log2_of_sum(self.by_time(name).log2.flatten()))

    @property
    def _summed(self) -> Mapping[str, Scaled]:
        """The sum of the parts of each parameter, as one row."""
        return {name: self.by_lag(name).scaled.total() for name in self.parameters}

    @property
    def whole_residual(self) -> Residual:
        """The same of the gradient pulled back in one row, for those who need no more than that.

        It shows a wrong recording as well as `residual` does, at a fraction of the cost.
        """
        return self._compared(self.gradient, {})

    def _compared(
        self,
        parts: Mapping[str, Scaled],
        cancelling: Mapping[str, float],
        sizes: Callable[[], Mapping[str, float]] | None = None,
    ) -> Residual:
        """The residual of some parts, and whether the precision of the pass allows it."""
        against = self.recorded.against
        if not self._compares_with_autograd:
            against = "its own gradient, pulled back in one row,"
        allowance = Allowance(
            self._rounding,
            self.steps,
            cancelling,
            lambda: self._moved_by_rounding,
            self._likely_reason,
            sizes,
        )
        return residual(parts, self._compared_with, allowance, against)

    @property
    def _compared_with(self) -> Mapping[str, Tensor]:
        """The gradients that the parts should sum to."""
        if self._compares_with_autograd:
            return self.recorded.gradients
        return {name: row.plain().squeeze(0) for name, row in self.gradient.items()}

    @property
    def _compares_with_autograd(self) -> bool:
        return self._cell is self.recorded.cell and bool(self.recorded.gradients)

    @property
    def _rounding(self) -> float:
        """The coarsest rounding error in what the parts are compared with, and in the parts."""
        if self._compares_with_autograd:
            return rounding_of(self.recorded)
        return float(torch.finfo(self.entries.direct.dtype).eps)

    @cached_property
    def _moved_by_rounding(self) -> Mapping[str, float]:
        return moved_by_rounding(replace(self.recorded, cell=self._cell), self._rounding)

    @cached_property
    def forward_agrees(self) -> bool | None:
        """Whether the forward pass, run again, ends in the state that the recorded one ended in.

        To a hundredth, or 32 rounding errors in low precision. None where that is not known.
        """
        return ends_as_recorded(self.recorded, self.unrolled, self._rounding)

    def _likely_reason(self, off: Mapping[str, float], sensitive: bool) -> str:
        """Why the parts may not add up to the gradient, in words."""
        if sensitive:
            grown = self._grown
            amplified = (
                f"the pass amplifies rounding errors as it does the adjoint, by 2^{grown:.0f}"
                if grown >= 1
                else "its contributions cancel, or its units are saturated"
            )
            return (
                f"rounding alone decides this gradient: {amplified}. A model in float64 may give "
                "numbers that mean something"
            )
        if self.forward_agrees is False:
            return (
                "the forward pass, run again with the recorded weights, ends in another state: "
                "weights were changed in between, or the layer does more than its class"
            )
        if self.recorded.against:
            return (
                f"the cell does not do what led to {self.recorded.against}: its step differs, or "
                "its pull-back is not the derivative of its step"
            )
        reasons = (
            f"only the gradient of {', '.join(off)} differs, so the adjoints are right: a hook "
            "on the weight changes it, or a part of it does not come through the layer"
            if len(off) < len(self.parameters)
            else "a hook that changes gradients on their way back, an operation in the backward "
            "pass that is not the derivative, or weights that changed between the passes"
        )
        if self._rounding >= LOW:
            reasons += "; or low precision, for example underflow. Compare with float32"
        return reasons

    @property
    def _grown(self) -> float:
        """How far the adjoint grows above what it was at lag 0, in powers of two."""
        if self.entries.relative:
            log2 = self._of_lags.log2[STATE]
            grows = log2 - log2[0]
        else:
            grows = self.adjoints.log2_growth_by_lag
        return float(grows[grows.isfinite()].max()) if bool(grows.isfinite().any()) else 0.0

    @property
    def reach_is_lower_bound(self) -> bool:
        """Whether lags end at steps where the gradient goes on (`recorded.lags_end`).

        There the state, or the input, was computed from the state before by something that the
        recursion does not pass. What comes back counts as given by the loss, so that the gradient
        may reach further.
        """
        return bool(self.recorded.lags_end)

    @property
    def lags_end(self) -> bool:
        """Whether lags end inside the layer: at some steps, or below a layer that reads both ways.

        Such a layer reads the outputs below it over the whole sequence, and what it sends back to
        them counts as given by the loss.
        """
        stacked = isinstance(self._cell, SideBySide) and len(self._cell.layers) > 2
        return self.reach_is_lower_bound or stacked

    @cached_property
    def non_finite(self) -> NonFinite | None:
        """Where autograd's own backward pass left the range of its data type; None if it did not.

        The decomposition itself never does. What is not finite in weights, inputs, states or loss
        is an error when the flow is made, with the same description as its `place`.
        """
        return first_overflow(self.recorded, self.unrolled)

    @property
    def reach(self) -> int:
        """The largest lag, in steps, whose mean contribution is still 1 % of that at lag 0.

        Of all parameters together; `by_time(name).reach` is that of one. With
        `reach_is_lower_bound` the gradient may reach further than that. Where rows are merged it is
        the root mean square that is compared, and `sizes.reach(name)` is that of one parameter.
        """
        return reach_of(self._log2_by_lag)

    @property
    def half_life(self) -> float:
        """Steps in which the adjoint of the state halves; negative (doubling) if it grows."""
        if not self.entries.relative:
            return self.adjoints.half_life
        rate = self._of_lags.rate
        return -1 / rate if rate else math.inf

    def by_time(self, parameter: str | None = None) -> Parts:
        """C[t,k] for every loss step t and use step k; axes `loss_step` and `use_step`.

        Raises:
            ArgumentError: for a parameter that this layer does not have.
        """
        name = self._known(parameter)
        return self._tables[0][name] if name else self._whole_by_time

    @cached_property
    def _whole_by_time(self) -> Parts:
        return together(tuple(self._tables[0].values()))

    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The sum of C[t,k] over all pairs whose lag falls in a bin.

        Args:
            parameter: a name, or None for the whole gradient as one vector; "input" for dL/dx,
                whose parts [T, B, I] say how far back the loss is sensitive to what was read. (A
                layer that reads both ways reads x twice, each direction in its own order.)
            bins: "octaves" (0, 1, 2, 3-4, 5-8, ...), "every" (each lag on its own; the parts then
                take T times the memory of the gradient), or the first lag of each bin. Where rows
                are merged, first lags that are given are exact up to 1024, at the cost of a row
                for each lag up to there; those of octaves are known as lags are.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.
        """
        lags = lag_bins(bins, self.steps)
        if parameter == INPUT:
            return by_input(self.unrolled, self._with_edges(lags), lags)
        return self._by(Lags(lags), parameter)

    def norms_at_lags(self) -> NormsAtLags:
        """The norms of single contributions C[k + lag, k] for lags 0, 1, 2, 3, 5, 9, 17, ...

        For a linear recurrence, where each lag costs one pass over the steps, at any length.
        `by_time` has every lag, and for more than 1024 steps sums over neighbouring loss steps.

        Raises:
            ArgumentError: for a layer in which paths from step to step cross weights.
        """
        if not is_unitwise(self.unrolled):
            raise ArgumentError(
                "norms at lags are known of linear recurrences of one layer; in "
                f"{self.recorded.name!r} paths from step to step cross weights. by_time has the "
                "norms of every pair"
            )
        return norms_at_lags(self.unrolled, self.entries)

    def by_route(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts by lag, split by the route of the last hop, the one that arrives at step k.

        A part that has made no hop (t = k) is "direct". Summed over the routes this is `by_lag`.

        Args:
            parameter: a name, or None for the whole gradient as one vector.
            bins: as in `by_lag`.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.
        """
        return self._by(Routes(lag_bins(bins, self.steps)), parameter)

    def by_crossing(
        self, parameter: str | None = None, max_crossings: int = 8, bins: Bins = "octaves"
    ) -> Parts:
        """The parts by lag, split by how often their paths crossed recurrent weights.

            v(n)_{k-1} = A^T v(n)_k + R^T v(n-1)_k      sum over n = the adjoint

        0 crossings are the carousel alone (with peepholes, and what leaks through them): the
        gradient that the truncated backward pass of Hochreiter and Schmidhuber (1997) keeps.

        Args:
            parameter: a name, or None for the whole gradient as one vector.
            max_crossings: the last part holds the paths with this many crossings and more; time and
                memory grow in proportion.
            bins: as in `by_lag`.

        Raises:
            ArgumentError: for an unknown parameter, bins that do not ascend from 0, or a number of
                crossings that is not a positive integer.
        """
        lags = lag_bins(bins, self.steps)
        return self._by(Crossings(lags, _checks.whole("max_crossings", max_crossings)), parameter)

    def by_unit(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The parts by lag, split by the unit of the state through which they come back to step k.

            C[t,k;j] = what step k makes of e_j e_j^T delta_k      sum over j = C[t,k]

        with delta_k the adjoint of s_k and e_j the unit vector along its component j: which hidden
        units carry the gradient back, and over which lags. Units are those of the state after the
        step that uses the weights. In a cell whose step is pointwise (RNN, LSTM, GRU) the part of
        unit j in a weight lies in the rows of that unit, one in each gate; what is new there is the
        split by lag, and by h and c.

        A layer with S units, P weights and M bins has S M parts of P numbers each, and takes about
        S times as long as `by_lag`. Where all parts are more than 2^24 numbers, they are measured
        some at a time, in as many passes, and not kept.

        Args:
            parameter: a name, or None for the whole gradient as one vector.
            bins: as in `by_lag`.

        Returns:
            Parts with an axis of `state` ("h" or "c", with the layer in a stack) and `unit` (its
            number there), and the axis `lag`; `.sum("state")` adds h_j and c_j.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(5, 1, 1))[0].sum().backward()
            >>> parts = retrograde.decompose(recording).by_unit("weight_hh_l0", bins=(0, 3))
            >>> parts
            Parts(weight_hh_l0 by state and unit [4] and lag [2])
            >>> far = parts.sum("state").select(lag=3)
            >>> far.axes
            ({'unit': (0, 1)},)
        """
        return self._by(Units(lag_bins(bins, self.steps)), parameter)

    def _by(self, labels: AbstractLabels, parameter: str | None) -> Parts:
        """The parts with these labels, from the pass that sorts by them or one made before."""
        name = self._known(parameter)
        if self.entries.relative and isinstance(labels, Lags):
            octaves = self._octaves  # whose pass has most bins
            if octaves.divides(labels) and self._with_edges(labels.lags) is self.entries:
                if octaves not in self._found:
                    self._found[octaves] = octaves.parts(self.unrolled, self.entries)
        if labels not in self._found:
            rows = self._rows_for(labels)
            finer = [each for each in self._found if isinstance(each, Lags)]
            known = [
                each
                for each in finer
                if isinstance(labels, Lags) and each.divides(labels) and rows is self.entries
            ]
            self._found[labels] = (
                known[0].joined(self._found[known[0]], labels)
                if known and isinstance(labels, Lags)
                else labels.parts(self.unrolled, rows)
            )
        parts = self._found[labels]
        return parts[name] if name else together(tuple(parts.values()))

    def _rows_for(self, labels: AbstractLabels) -> Entries:
        """The rows in which a question is answered."""
        return self._with_edges(labels.lags) if isinstance(labels, Lags) else self.entries

    def _with_edges(self, lags: tuple[range, ...]) -> Entries:
        """The rows that tell bins exactly; merged ones do for octaves, which are many."""
        relative, edge = self.entries.relative, lags[-1].start
        if not relative or edge <= relative or lags == lag_bins("octaves", self.steps):
            return self.entries
        edge = max(bin_.start for bin_ in lags if bin_.start <= FULL_ROWS)
        return replace(self.entries, exact=edge)

    def horizon(self, kind: str = "sliding") -> Horizon:
        """What truncated back-propagation would leave of this gradient, for every K at once.

            sliding:  g_K = sum_{l<K} g_l               every loss step looks back over K steps
            chunks:   g_K = sum_{l<K} (1 - l/K) g_l     the state is detached every K steps

        with g_l the part of lag l (`by_lag(bins="every")`). The second is the mean over the K
        phases that such a cut can have; where the loss enters at several steps it is that of one
        backward pass of their sum.

        What comes back to a step through the layer's own input, in a decoder that reads its own
        outputs, is no hop of the recurrence: it counts as given by the loss, and no K cuts it
        (`retrograde.horizon` notes it).

        Args:
            kind: "sliding" or "chunks". A window that is shorter in the forward pass too needs the
                model: `retrograde.horizon(model, batches, loss_fn, kind="window")`.

        Returns:
            A `Horizon` for K = 1 .. T. It takes a pass of T rows for each lag up to that from
            which on nothing counts (`lags_that_count`), in the memory of one gradient beside the
            linearised steps.

        Raises:
            ArgumentError: for another kind.
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.

        Example:
            >>> import torch, retrograde
            >>> model = torch.nn.GRU(1, 4)
            >>> with retrograde.record(model) as recording:
            ...     model(torch.ones(20, 3, 1))[0].sum().backward()
            >>> horizon = retrograde.decompose(recording).horizon()
            >>> horizon.window(delta=2.0), horizon.bias.shape
            (1, torch.Size([20]))
        """
        if kind == "window":
            raise ArgumentError(
                'kind="window" runs the model on shorter inputs: use retrograde.horizon(model, '
                "batches, loss_fn, kind='window')"
            )
        kind = _checks.one_of("kind", kind, KINDS)
        found = Horizon.of_one(kind, self.truncated(kind), self.steps, self.reach)
        found = replace(found, notes=(ENDS,) if self.lags_end else ())
        if kind == "sliding":
            return found
        return replace(found, by_phase=by_phase(self.gradient, self.steps, self.in_chunks))

    def in_chunks(self, steps: int, phase: int) -> Mapping[str, Scaled]:
        """The gradient, each parameter as one row, with the state detached every so many steps.

        Args:
            steps: K.
            phase: the step before which the first cut falls, from 1 to K; without one if it is T or
                more.
        """
        return whole_gradient(cut_every(self.unrolled, steps, phase), self.entries.direct)

    def truncated(self, kind: str, most: int | None = None) -> Mapping[str, Measures]:
        """What is left of the gradient of each parameter for K = 1 .. `most`, T if None."""
        key = kind, most or self.steps
        if key not in self._truncated:
            truncation, count = Truncation(kind, self.gradient), self.lags_that_count
            truncation.take(parts_by_lag(self.unrolled, self.entries.direct, count))
            self._truncated[key] = truncation.result(key[1])
        return self._truncated[key]

    @cached_property
    def lags_that_count(self) -> int:
        """The first lag from which on all parts together are below the rounding of the gradient.

        The norm of their sum is at most the sum of the norms of the contributions, which `by_time`
        has. T if that is not so at any lag, for one parameter at least. Where several loss steps
        share a row, the norm is that of their sum.
        """
        counts = 1
        for name in self.parameters:
            if self.entries.relative:
                sums = self._of_lags.log2_by_lag(name)
            else:
                parts = self._tables[0][name]
                sums = mean_by_lag(parts.log2, parts.lags)
            sums = sums + math.log2(max(1, len(self.entries)))
            beyond = torch.logcumsumexp(sums.flip(0) * math.log(2), 0).flip(0) / math.log(2)
            eps = math.log2(torch.finfo(self.entries.direct.dtype).eps)
            whole = float(self.gradient[name].log2_norms())
            counts = max(counts, int((beyond > whole + eps).sum()))
        return counts

    def lag_by_lag(self) -> Iterator[Mapping[str, Scaled]]:
        """The part of each lag, one after the other: a row [1, ...] for each parameter.

        Together they are `by_lag(bins="every")`, in the memory of one of them.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        return parts_by_lag(self.unrolled, self.entries.direct)

    def without(self, *routes: str) -> "Flow":
        """The same pass with some routes cut everywhere: the gradient that would be left.

        Args:
            routes: names among `routes`, or an edge inside a step: "readout" (c_k to h_k) and
                "peephole.output" (c_k to o_k) of an LSTM.

        Returns:
            A `Flow` of the same pass, to which every question can be put. Its `residual` compares
            the parts with their own sum pulled back in one row.

        Raises:
            ArgumentError: for an unknown route; the message lists those of this cell.
        """
        cell = Cut(self._cell, frozenset(_checks.names("routes", routes)))
        return Flow(self.recorded, replace(self.unrolled, cell=cell), self.entries)

    @property
    def unclipped(self) -> "Flow":
        """The true gradient, where the pass was recorded with a policy inside back-propagation."""
        cell = unclipped(self._cell)
        if cell is self._cell:
            return self
        return Flow(self.recorded, replace(self.unrolled, cell=cell, factors=()), self.entries)

    def clipped(self, *policies: AbstractInside | AbstractPolicy) -> "ClippedFlow[Flow]":
        """What clipping makes of the gradient: its parts, before and after.

        Policies inside back-propagation act first, then those at the end, which see this layer
        alone: the norm of its gradient, not that of a whole model. In a stack that reads both ways,
        what a layer hands down to the one below was recorded unclipped. `HDetach` draws from
        torch's generator.

        Args:
            policies: of `retrograde.clipping`, in the order in which they act; none at all for the
                policy that the pass was recorded with.

        Raises:
            ArgumentError: for what is no policy, one that looks back at earlier steps, or none at
                all where nothing was clipped.
            NonFiniteError: if the adjoint leaves the range in spite of the policy.

        Example:
            >>> import torch, retrograde
            >>> from retrograde.clipping import PreActivationValue
            >>> rnn = torch.nn.RNN(1, 1, bias=False)
            >>> _ = torch.nn.init.zeros_(rnn.weight_hh_l0)
            >>> with retrograde.record(rnn) as recording:
            ...     loss = rnn(torch.ones(3, 1, 1))[0].flatten() @ torch.tensor([10, -9.5, -0.4])
            ...     loss.backward()
            >>> clipped = retrograde.decompose(recording).clipped(PreActivationValue(0.1))
            >>> round(clipped.cosine("weight_ih_l0"), 6)  # the clipped gradient leads uphill
            -1.0
        """
        before = self.unclipped
        inside = [policy for policy in policies if isinstance(policy, AbstractInside)]
        at_the_end = [policy for policy in policies if not isinstance(policy, AbstractInside)]
        if not policies and before is self:
            raise ArgumentError(
                "this pass was recorded without a policy inside back-propagation: name one, as in "
                "flow.clipped(retrograde.clipping.PreActivationValue(1.0))"
            )
        after = before if policies else self
        if inside:
            cell = clipped(before._cell, chain(*inside))
            unrolled = with_factors(replace(before.unrolled, cell=cell), self.recorded.direct)
            after = Flow(self.recorded, unrolled, self.entries)
        factors: dict[str, Tensor] = {}
        if at_the_end:
            weights = self._cell.parameters
            factors = factors_at_the_end(chain(*at_the_end), weights, after.gradient)
        return ClippedFlow(before, after, factors)

    def all_reduce(self, group: Any = None) -> "AllReduced[Flow]":
        """The passes of all processes of a data-parallel run as one, summed exactly.

            parts = 1/W sum over ranks r of parts_r        W processes

        Parts are taken to the largest exponent that any process has, then their values are summed
        by `torch.distributed`. The mean is what `DistributedDataParallel` makes of the gradients.
        Where the loss is a mean over as many samples in each process, it is the gradient of the
        whole batch.

        A collective operation: all processes must call it, and put the same questions, in the same
        order. One that fails, a different model or question is an error in every process.

        Args:
            group: the process group, None for the default one.

        Returns:
            What answers `by_lag`, `by_route`, `by_crossing` and `horizon` for all processes
            together. Its `residual` compares the averaged parts with the averaged gradient of
            autograd.

        Raises:
            ArgumentError: without an initialised process group, for a group that is none, and if
                the layer or its weights differ between processes.
            RecordingError: if another process fails.

        Warns:
            VoidDecompositionWarning: if the residual is larger than the precision allows.

        Example:
            >>> import torch, retrograde
            >>> def train_step(model, x):  # run by torchrun, the model in DistributedDataParallel
            ...     with retrograde.record(model) as recording:
            ...         model(x).square().mean().backward()
            ...     flow = retrograde.decompose(recording).all_reduce()
            ...     return flow.by_lag("weight_hh_l0").share  # of the whole batch, on every rank
        """
        processes = Processes(group)
        reduced = all_reduced(self, processes, self._share)
        if not reduced.residual.ok:
            words = void_in_words(self.recorded.name, reduced.residual)
            warnings.warn(words, VoidDecompositionWarning, stacklevel=2)
        return reduced

    def _share(self) -> tuple[Share, Mapping[str, Scaled], Mapping[str, Tensor]]:
        """What the other processes are to know of this pass, its sum and what that should be."""
        weights, gradients = self._cell.parameters, self._compared_with
        shapes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in weights.items())
        share = Share(
            f"{type(self._cell).__name__} with {shapes}; routes {', '.join(self.routes)}",
            {name: fingerprint(weight) for name, weight in weights.items()},
            self.steps,
            self._rounding,
            self.residual,
            {name: float(torch.linalg.vector_norm(g.double())) for name, g in gradients.items()},
        )
        return share, self._summed, gradients

    def with_rows(self, max_rows: int | None = None, relative: int | None = None) -> "Flow":
        """The same pass with its loss steps in other rows: coarser lags, less memory.

        Args:
            max_rows, relative: as in `decompose`.

        Raises:
            ArgumentError: unless one of them is given, and is a positive integer.
        """
        if (max_rows is None) == (relative is None):
            raise ArgumentError(
                f"give max_rows or relative; got max_rows={max_rows} and relative={relative}"
            )
        direct = self.recorded.direct
        if relative is not None:
            return Flow(self.recorded, self.unrolled, Entries.merging(direct, relative))
        return Flow(self.recorded, self.unrolled, Entries.of(direct, max_rows))

    def by_parameter(self) -> Parts:
        """The blocks of the gradient itself: layer by layer, gate by gate, weight by weight."""
        return by_parameter(self._cell, self._summed)

    def summary(self) -> Summary:
        """The few numbers that say most, as `Monitor` logs them; `print` shows them in five lines.

        Example:
            >>> import torch, retrograde
            >>> rnn = torch.nn.RNN(2, 3)
            >>> with retrograde.record(rnn) as recording:
            ...     rnn(torch.ones(20, 4, 2))[0][-1].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> flow.summary().reach == flow.reach
            True
        """
        near = self.by_lag(bins=(0, NEAR) if self.steps > NEAR else (0,)).share[0]
        carousel = math.nan
        if set(self.routes) != set(self._cell.recurrent_routes):
            routes = self.by_route()
            others = {"direct", *self._cell.recurrent_routes}
            kept = [route for route in routes.labels if route not in others]
            carousel = float(routes.select(route=kept).share.sum())
        return Summary(
            self.reach,
            self._of_lags.rate if self.entries.relative else self.adjoints.rate,
            float(near),
            carousel,
            math.nan if self.entries.relative else growth(self.adjoints),
            self._log2_by_lag,
        )

    def chart(self) -> Any:
        """The mean contribution over lag, with reach and half-life, as an Altair chart."""
        return charts.lag_curve(*self._lag_curve)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The same with Matplotlib, as (figure, axes).

        Args:
            ax: the axes to draw on; new ones if None.

        Raises:
            MissingExtraError: without matplotlib; the message says how to install it.
        """
        return plots.lag_curve(*self._lag_curve, ax)

    @property
    def _lag_curve(self) -> tuple[Tensor, int, float, float]:
        return self._log2_by_lag.cpu(), self.reach, self.half_life, REACH

    def contribution(self, parameter: str, t: int, k: int) -> Float[Tensor, "*R"]:
        """C[t,k] itself: the part of dL/dW that enters at step t and uses the weights at step k.

        Raises:
            ArgumentError: for an unknown parameter, or steps that are not 0 <= k <= t < T.
        """
        name = self._known(parameter)
        t, k = _checks.whole("t", t, least=None), _checks.whole("k", k, least=None)
        if name is None or not 0 <= k <= t < self.steps:
            raise ArgumentError(
                f"contribution needs a parameter and steps 0 <= k <= t < {self.steps}; got "
                f"{parameter!r}, t={t}, k={k}"
            )
        direct = torch.zeros_like(self.entries.direct)
        direct[t] = self.entries.direct[t]
        entries = Entries.of(direct)
        if not len(entries):  # the loss does not enter at t
            return torch.zeros_like(self._cell.parameters[name])
        before = [range(0, t - k), range(t - k, t - k + 1), range(t - k + 1, self.steps)]
        lags = tuple(lag for lag in before if lag)
        sums = LagSums(lags, self._cell)
        fold(self.unrolled, entries, [sums])
        return sums.result()[name].parts()[lags.index(range(t - k, t - k + 1))]

    def names(self, parameter: str | None = None) -> tuple[str, ...]:
        """One parameter, or all of them for None.

        Raises:
            ArgumentError: for a parameter that this layer does not have.
        """
        name = self._known(parameter)
        return self.parameters if name is None else (name,)

    def _known(self, parameter: str | None) -> str | None:
        if parameter is not None and parameter not in self.parameters:
            raise ArgumentError(
                f"no parameter {_checks.shown(parameter)} in {self.recorded.name!r}; it has "
                + ", ".join(self.parameters)
            )
        return parameter


def decompose(
    recording: Recording | Recorded, *, max_rows: int | None = None, relative: int | None = None
) -> Flow:
    """Take a recorded backward pass apart, exactly.

        C[t,k] = da_k (x) u_k   with   delta_{k-1} = J_k^T delta_k,   started by dL/dh_t alone

    Args:
        recording: what `record` recorded, if it holds one layer; else one of its values,
            `recording["encoder.lstm"]`.
        max_rows: how many rows the loss steps may take up. By default each of up to 1024 loss
            steps has its own; more share 512 rows in blocks of neighbouring steps. Sums over
            loss steps stay exact, only lags are then known to the width of a block.
        relative: merge the rows of neighbouring loss steps as their lag grows, so that lags up to
            this number are exact and those beyond are known to 1/relative of themselves: about
            `relative * log2(T / relative)` rows, however long the sequence. Sums stay exact;
            instead of `by_time` there are `sizes` by lag. So by default (16) where the tables of
            `by_time` would take more than 2 GiB; `flow.entries.relative` says it.

    Returns:
        The `Flow`. Its losses are the ones that ran: a mean over the batch gives small numbers, a
        sum large ones.

    Raises:
        ArgumentError: if the recording holds several layers, for anything that is no recording, and
            for a `max_rows` or `relative` that is not a positive integer, or both of them.
        NonFiniteError: if a NaN or an infinity was recorded, with the first place (step, layer,
            gate, route) and the growth that led there, in words and as its `place`.

    Warns:
        VoidDecompositionWarning: if the residual is larger than the precision of the pass allows
            (see `Residual`), with the likely reason.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.RNN(1, 2)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(5, 1, 1))[0].sum().backward()
        >>> retrograde.decompose(recording).by_lag("weight_hh_l0").lags
        (range(0, 1), range(1, 2), range(2, 3), range(3, 5))
    """
    recorded, max_rows = the_one(recording), _checks.optional_whole("max_rows", max_rows)
    relative = _checks.optional_whole("relative", relative)
    if max_rows is not None and relative is not None:
        raise ArgumentError(
            f"give max_rows or relative, not both; got max_rows={max_rows} and relative={relative}"
        )
    flow = unasked(recorded, max_rows, relative)
    if not flow.residual.ok:  # the pass runs here, so that its errors are raised here
        warnings.warn(
            void_in_words(recorded.name, flow.residual), VoidDecompositionWarning, stacklevel=2
        )
    return flow


def rounding_of(recorded: Recorded) -> float:
    """The coarsest rounding error in a pass, its gradients and its analysis."""
    kinds = {value.dtype for value in (recorded.direct, *recorded.gradients.values())}
    return max(recorded.rounding or 0.0, *(torch.finfo(kind).eps for kind in kinds))


def unasked(recorded: Recorded, max_rows: int | None = None, relative: int | None = None) -> Flow:
    """The `Flow` of a recording to which no question was put yet, its residual neither."""
    direct, tables = recorded.direct, 2 * len(recorded.cell.parameters) + 2
    if max_rows is None and relative is None:
        if 8 * tables * len(direct) * min(len(direct), BLOCK_ROWS) > TABLES:
            relative = RELATIVE
    entries = Entries.merging(direct, relative) if relative else Entries.of(direct, max_rows)
    return Flow(recorded, replay(recorded), entries)


def void_in_words(name: str, found: Residual) -> str:
    """What is wrong with the decomposition of a layer that is void."""
    return (
        f"{name!r}: the parts do not add up to {found.against}: the residual is "
        f"{float(found):.1e}, and the precision of the pass allows {found.bound:.1e}. What rests "
        f"on them is void. The likely reason: {found.note}"
    )
