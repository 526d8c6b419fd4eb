"""Flow: one backward pass, taken apart; every decomposition is a question put to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import charts
from retrograde.decompose import by_lag, by_time
from retrograde.decompose.adjoints import AdjointNorms, Adjoints
from retrograde.decompose.by_lag import Bins, ByLag, LagSums, lag_bins
from retrograde.decompose.by_parameter import ByParameter, by_parameter
from retrograde.decompose.by_time import ByTime, ContributionNorms, ContributionShares
from retrograde.decompose.residual import Residual, residual
from retrograde.engine import Entries, Scaled, Unrolled, fold, unroll
from retrograde.errors import ArgumentError
from retrograde.record import Recorded, Recording


@dataclass(frozen=True, eq=False)
class Flow:
    """One backward pass through one recurrent layer (or stack), taken apart.

    Made by `decompose`. Norms are returned as log2, so that nothing leaves the range; shares are
    signed and sum to 1. A parameter is named as in its module; None means all of them together.

    Attributes:
        recorded: the pass that was taken apart.
        adjoints: sizes of the adjoint of the state for every entry and use step.
        gradient: the whole gradient of each parameter, as values and exponent.
    """

    recorded: Recorded
    unrolled: Unrolled
    entries: Entries
    adjoints: Adjoints
    gradient: Mapping[str, Scaled]
    _by_time: Mapping[str, ByTime]
    _by_lag: dict[tuple[range, ...], Mapping[str, ByLag]] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, as in the module."""
        return tuple(self.gradient)

    @property
    def steps(self) -> int:
        """T, the length of the sequence."""
        return len(self.unrolled)

    @cached_property
    def residual(self) -> Residual:
        """Largest relative difference between the sum of the parts and autograd's gradient."""
        parts = {name: self.by_lag(name).scaled.total() for name in self.parameters}
        return residual(parts, self.recorded.gradients)

    @property
    def reach(self) -> int:
        """The largest lag, in steps, whose mean contribution is still 1 % of that at lag 0.

        Of all parameters together; `by_time(name).reach` is that of one.
        """
        return self.by_time().reach

    @property
    def half_life(self) -> float:
        """Steps in which the adjoint of the state halves; negative (doubling) if it grows."""
        return self.adjoints.half_life

    def by_time(self, parameter: str | None = None) -> ByTime:
        """C[t,k] for every entry step t and use step k.

        Raises:
            ArgumentError: for a parameter that this layer does not have.
        """
        name = self._known(parameter)
        return self._by_time[name] if name else self._whole_by_time

    @cached_property
    def _whole_by_time(self) -> ByTime:
        return by_time.combined(tuple(self._by_time.values()), self.gradient)

    def by_lag(self, parameter: str | None = None, bins: Bins = "octaves") -> ByLag:
        """The sum of C[t,k] over all pairs whose lag falls in a bin.

        Args:
            parameter: a name, or None for the whole gradient as one vector.
            bins: "octaves" (0, 1, 2, 3-4, 5-8, ...), "every" (each lag on its own; the parts then
                take T times the memory of the gradient), or the first lag of each bin.

        Raises:
            ArgumentError: for an unknown parameter or bins that do not ascend from 0.
        """
        name, lags = self._known(parameter), lag_bins(bins, self.steps)
        if lags not in self._by_lag:
            sums = LagSums(lags, self.unrolled.cell.parameters)
            fold(self.unrolled, self.entries, [sums])
            self._by_lag[lags] = sums.result()
        parts = self._by_lag[lags]
        return parts[name] if name else by_lag.combined(tuple(parts.values()))

    def by_parameter(self) -> ByParameter:
        """The blocks of the gradient itself: layer by layer, gate by gate, weight by weight."""
        return by_parameter(self.unrolled.cell, self.gradient)

    def chart(self) -> Any:
        """The mean contribution over lag, with reach and half-life, as an Altair chart."""
        mean = self.by_time().log2_mean_by_lag
        return charts.lag_curve(mean, self.reach, self.half_life, by_time.REACH)

    def contribution(self, parameter: str, t: int, k: int) -> Float[Tensor, "*R"]:
        """C[t,k] itself: the part of dL/dW that enters at step t and uses the weights at step k.

        Raises:
            ArgumentError: for an unknown parameter, or steps that are not 0 <= k <= t < T.
        """
        name = self._known(parameter)
        if name is None or not 0 <= k <= t < self.steps:
            raise ArgumentError(
                f"contribution needs a parameter and steps 0 <= k <= t < {self.steps}; got "
                f"{parameter!r}, t={t}, k={k}"
            )
        output = torch.zeros_like(self.entries.output)
        output[t] = self.entries.output[t]
        final = self.entries.final * (t == self.steps - 1)
        entries = Entries.of(output, final, self.entries.slot)
        if not len(entries):  # the loss does not enter at t
            return torch.zeros_like(self.unrolled.cell.parameters[name])
        before = [range(0, t - k), range(t - k, t - k + 1), range(t - k + 1, self.steps)]
        lags = tuple(lag for lag in before if lag)
        sums = LagSums(lags, self.unrolled.cell.parameters)
        fold(self.unrolled, entries, [sums])
        return sums.result()[name].parts()[lags.index(range(t - k, t - k + 1))]

    def _known(self, parameter: str | None) -> str | None:
        if parameter is not None and parameter not in self.gradient:
            raise ArgumentError(
                f"no parameter {parameter!r} in {self.recorded.name!r}; it has "
                + ", ".join(self.parameters)
            )
        return parameter


def decompose(recording: Recording | Recorded, *, max_rows: int | None = None) -> Flow:
    """Take a recorded backward pass apart, exactly.

        C[t,k] = da_k (x) u_k   with   delta_{k-1} = J_k^T delta_k,   started by dL/dh_t alone

    Args:
        recording: what `record` recorded, if it holds one layer; else one of its values,
            `recording["encoder.lstm"]`.
        max_rows: how many rows the entry steps may take up. By default each of up to 1024 entry
            steps has its own; more share 512 rows in blocks of neighbouring steps. Sums over
            entries stay exact, only lags are then known to the width of a block.

    Returns:
        The `Flow`. Its losses are the ones that ran: a mean over the batch gives small numbers, a
        sum large ones.

    Raises:
        ArgumentError: if the recording holds several layers.
        NonFiniteError: if a NaN or an infinity was recorded, with the first place it is seen.

    Example:
        >>> import torch, retrograde
        >>> model = torch.nn.RNN(1, 2)
        >>> with retrograde.record(model) as recording:
        ...     model(torch.ones(5, 1, 1))[0].sum().backward()
        >>> retrograde.decompose(recording).by_lag("weight_hh_l0").lags
        (range(0, 1), range(1, 2), range(2, 3), range(3, 5))
    """
    recorded = recording if isinstance(recording, Recorded) else recording.only()
    recorded.check_finite()
    unrolled = unroll(recorded.cell, recorded.x, recorded.initial)
    recorded.check_states(unrolled.states)
    slot = recorded.cell.output
    entries = Entries.of(recorded.output_adjoint, recorded.final_adjoint, slot, max_rows)
    parameters, steps = recorded.cell.parameters, len(unrolled)

    # The gradient as a whole comes first, from a single row that holds the summed loss.
    everything = (range(0, max(1, steps)),)
    whole = LagSums(everything, parameters)
    one_row = Entries.of(recorded.output_adjoint, recorded.final_adjoint, slot, max_rows=1)
    fold(unrolled, one_row, [whole])
    gradient = {name: lag.scaled for name, lag in whole.result().items()}

    norms = ContributionNorms(entries, steps, parameters)
    shares = ContributionShares(entries, steps, gradient)
    adjoints = AdjointNorms(entries, steps)
    octaves = lag_bins("octaves", steps)
    sums = LagSums(octaves, parameters)
    fold(unrolled, entries, [norms, shares, adjoints, sums])
    return Flow(
        recorded,
        unrolled,
        entries,
        adjoints.result(),
        gradient,
        by_time.tables_by_time(entries, norms, shares),
        {octaves: sums.result()},
    )
