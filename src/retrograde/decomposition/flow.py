"""Flow: one backward pass, taken apart; every decomposition is a method of it."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks, charts, plots
from retrograde._notebook import card
from retrograde.cells import AbstractCell, Cut, SideBySide, clipped, unclipped
from retrograde.clipping import AbstractInside, AbstractPolicy, chain
from retrograde.decomposition.adjoints import Adjoints
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
from retrograde.decomposition.by_input import INPUT, Inputs
from retrograde.decomposition.by_lag import Lags
from retrograde.decomposition.by_parameter import by_parameter
from retrograde.decomposition.by_phase import by_phase
from retrograde.decomposition.by_route import Routes
from retrograde.decomposition.by_unit import Units
from retrograde.decomposition.clipped import ClippedFlow, factors_at_the_end
from retrograde.decomposition.contribution import contribution
from retrograde.decomposition.labels import AbstractLabels
from retrograde.decomposition.lags import REACH, reach_of
from retrograde.decomposition.non_finite import NonFinite, first_overflow
from retrograde.decomposition.parts import Parts, together
from retrograde.decomposition.passes import Passes
from retrograde.decomposition.processes import Processes
from retrograde.decomposition.residual import Residual, void_in_words
from retrograde.decomposition.resolution import rows_for
from retrograde.decomposition.rounding import whole_gradient
from retrograde.decomposition.sizes import Sizes
from retrograde.decomposition.summary import NEAR, Summary, growth
from retrograde.decomposition.whole import Whole
from retrograde.engine import Entries, Scaled, Unrolled, with_factors
from retrograde.engine.lags import parts_by_lag
from retrograde.engine.unitwise import is_unitwise
from retrograde.errors import ArgumentError, VoidDecompositionWarning
from retrograde.recording import Recorded
from retrograde.truncation import Horizon, Measures
from retrograde.truncation.cuts import cut_every
from retrograde.truncation.horizon import ENDS
from retrograde.truncation.truncated import KINDS


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

    def __repr__(self) -> str:
        return f"Flow of {self.recorded.size_in_words}"

    def _repr_html_(self) -> str:
        return card(repr(self), lambda: str(self.summary()), self.chart)

    @cached_property
    def _whole(self) -> Whole:
        return Whole(self.recorded, self.unrolled)

    @cached_property
    def _passes(self) -> Passes:
        return Passes(self.entries, self._whole)

    @property
    def gradient(self) -> Mapping[str, Scaled]:
        """The whole gradient of each parameter, as one row [1, ...] that holds the summed loss."""
        return self._whole.gradient

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
        return self._passes.sizes

    def walked(
        self, starts: Iterable[int] = (), routes: bool = False, inputs: bool = False
    ) -> "Flow":
        """The same flow, its backward pass done: what is not finite on the way is raised here.

        Args:
            starts: first lags of bins that will be asked for; they take no pass of their own then.
                Where loss steps share blocks they are known to a sixteenth of themselves.
            routes: whether `by_route` will be asked for, likewise.
            inputs: whether `by_lag("input")` will be.

        Raises:
            NonFiniteError: if an adjoint becomes infinite or NaN within a single step.
        """
        self._passes.walk(starts, routes, inputs)
        return self

    @property
    def adjoints(self) -> Adjoints:
        """Sizes of the adjoint of the state for every loss step and use step."""
        return self._passes.adjoints

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
        passes = self._passes
        sums = passes.sums()
        if self.entries.relative:
            later = partial(passes.cancelling, sums)
            return self._whole.residual(sums, passes.grown, sizes=later)
        return self._whole.residual(sums, passes.grown, passes.cancelling(sums))

    @property
    def whole_residual(self) -> Residual:
        """The residual of the whole gradient, pulled back in one row.

        It reveals a wrong recording as well as `residual` does, at a fraction of the cost.
        """
        return self._whole.residual(self.gradient, self._passes.grown)

    @property
    def forward_agrees(self) -> bool | None:
        """Whether the forward pass, run again, ends in the state that the recorded one ended in.

        To a hundredth, or 32 rounding errors in low precision. None where that is not known.
        """
        return self._whole.forward_agrees

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
        return reach_of(self._passes.log2_by_lag())

    @property
    def half_life(self) -> float:
        """Steps in which the adjoint of the state halves; negative (doubling) if it grows."""
        rate = self._passes.rate
        return -1 / rate if rate else math.inf

    def by_time(self, parameter: str | None = None) -> Parts:
        """C[t,k] for every loss step t and use step k; axes `loss_step` and `use_step`.

        Args:
            parameter: a name, or None for the whole gradient as one vector.

        Returns:
            Parts with a row for each step at which the loss enters, or block of such steps, and a
            column for each step; -inf as log2 where k > t.

        Raises:
            ArgumentError: for a parameter that this layer does not have.

        Example:
            >>> import torch, retrograde
            >>> rnn = torch.nn.RNN(1, 2)
            >>> with retrograde.record(rnn) as recording:
            ...     rnn(torch.ones(4, 3, 1))[0][[1, 3]].sum().backward()
            >>> by_time = retrograde.decompose(recording).by_time("weight_hh_l0")
            >>> by_time.axes[0], by_time.log2.shape  # the loss enters at two steps
            ({'loss_step': (1, 3)}, torch.Size([2, 4]))
        """
        name = self._known(parameter)
        return self._passes.by_time[name] if name else self._passes.whole_by_time

    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> Parts:
        """The sum of C[t,k] over all pairs whose lag falls in a bin.

        Args:
            parameter: a name, or None for the whole gradient as one vector; "input" for dL/dx,
                whose parts [T, B, I] say how far back the loss is sensitive to what was read. (A
                layer that reads both ways reads x twice, each direction in its own order.)
            bins: "octaves" (0, 1, 2, 3-4, 5-8, ...), "every" (each lag on its own; the parts then
                take T times the memory of the gradient), or the first lag of each bin. Where rows
                are merged or stand for blocks of loss steps, first lags that are given are exact
                up to 1024, at the cost of a row for each lag up to there; those of octaves are
                exact up to 16, and known to a sixteenth of themselves, or to what `relative` says.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.

        Example:
            >>> import torch, retrograde
            >>> lstm = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(lstm) as recording:
            ...     lstm(torch.ones(6, 3, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> parts = flow.by_lag("weight_hh_l0", bins=(0, 1, 3))
            >>> parts.lags
            (range(0, 1), range(1, 3), range(3, 6))
            >>> torch.allclose(parts.parts().sum(0).float(), lstm.weight_hh_l0.grad, atol=1e-6)
            True
            >>> flow.by_lag("input").parts()[0].shape
            torch.Size([6, 3, 1])
        """
        lags = lag_bins(bins, self.steps)
        if parameter == INPUT:
            return self._passes.parts(Inputs(lags))[INPUT]
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

        A part that has made no hop (t = k) is "direct". Summed over the routes this is `by_lag`, as
        well as lags are known.

        Args:
            parameter: a name, or None for the whole gradient as one vector.
            bins: as in `by_lag`.

        Returns:
            Parts with the axes `route` and `lag`.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.

        Example:
            >>> import torch, retrograde
            >>> lstm = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(lstm) as recording:
            ...     lstm(torch.ones(6, 3, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> parts = flow.by_route("weight_hh_l0").sum("lag")
            >>> parts.labels[:3], parts.labels[-1]
            (('direct', 'recurrent.input', 'recurrent.forget'), 'carousel')
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

        Returns:
            Parts with the axes `crossing` and `lag`.

        Raises:
            ArgumentError: for an unknown parameter, bins that do not ascend from 0, or a number of
                crossings that is not a positive integer.

        Example:
            >>> import torch, retrograde
            >>> lstm = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(lstm) as recording:
            ...     lstm(torch.ones(6, 3, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> flow.by_crossing("weight_hh_l0", max_crossings=2).axes[0]
            {'crossing': ('0', '1', '2+')}

        References:
            Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9 (1997).
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
        """The parts with these labels, of one parameter or of all as one vector."""
        name = self._known(parameter)
        parts = self._passes.parts(labels)
        return parts[name] if name else together(tuple(parts.values()))

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
            A `Horizon` for K = 1 .. T. It takes one pass of T rows for each lag below
            `lags_that_count`, in the memory of one gradient beside the linearised steps.

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
        return self._passes.truncated(kind, most or self.steps)

    @property
    def lags_that_count(self) -> int:
        """The first lag from which on all parts together are below the rounding of the gradient.

        The norm of their sum is at most the sum of the norms of the contributions, which `by_time`
        has. T if that is not so at any lag, for one parameter at least. Where several loss steps
        share a row, the norm is that of their sum.
        """
        return self._passes.lags_that_count

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

        Example:
            >>> import torch, retrograde
            >>> lstm = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(lstm) as recording:
            ...     lstm(torch.ones(6, 3, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> flow.without("recurrent.output", "recurrent.forget").routes
            ('recurrent.input', 'recurrent.cell', 'carousel')
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
        """What this process tells the others of its pass, the sum of its parts, and autograd's."""
        weights, gradients = self._cell.parameters, self._whole.expected
        shapes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in weights.items())
        share = Share(
            f"{type(self._cell).__name__} with {shapes}; routes {', '.join(self.routes)}",
            {name: fingerprint(weight) for name, weight in weights.items()},
            self.steps,
            self._whole.rounding,
            self.residual,
            {name: float(torch.linalg.vector_norm(g.double())) for name, g in gradients.items()},
        )
        return share, self._passes.sums(), gradients

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
        entries = rows_for(self.recorded.direct, len(self.parameters), max_rows, relative)
        return Flow(self.recorded, self.unrolled, entries)

    def by_parameter(self) -> Parts:
        """The blocks of the gradient itself: layer by layer, gate by gate, weight by weight."""
        return by_parameter(self._cell, self._passes.sums())

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
            self._passes.rate,
            float(near),
            carousel,
            math.nan if self.entries.relative else growth(self.adjoints),
            self._passes.log2_by_lag(),
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
        return self._passes.log2_by_lag().cpu(), self.reach, self.half_life, REACH

    def contribution(self, parameter: str, t: int, k: int) -> Float[Tensor, "*R"]:
        """C[t,k] itself: the part of dL/dW that enters at step t and uses the weights at step k.

        Args:
            parameter: a name.
            t: the step at which the loss enters.
            k: the step at which the weights are used.

        Returns:
            A tensor of the parameter's shape; zeros where no loss enters at t.

        Raises:
            ArgumentError: for an unknown parameter, or steps that are not 0 <= k <= t < T.

        Example:
            >>> import torch, retrograde
            >>> lstm = torch.nn.LSTM(1, 2)
            >>> with retrograde.record(lstm) as recording:
            ...     lstm(torch.ones(6, 3, 1))[0].sum().backward()
            >>> flow = retrograde.decompose(recording)
            >>> flow.contribution("weight_hh_l0", t=5, k=3).shape
            torch.Size([8, 2])
        """
        name = self._known(parameter)
        t, k = _checks.whole("t", t, least=None), _checks.whole("k", k, least=None)
        if name is None or not 0 <= k <= t < self.steps:
            raise ArgumentError(
                f"contribution needs a parameter and steps 0 <= k <= t < {self.steps}; got "
                f"{parameter!r}, t={t}, k={k}"
            )
        return contribution(self.unrolled, self.entries.direct, name, t, k)

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
