"""What the rules look at: one layer of a recorded pass, and everything about it that they ask."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde.cells import Elman
from retrograde.cells.gates import CONSTANT
from retrograde.cells.leaves import leaves
from retrograde.decomposition import Flow
from retrograde.decomposition.adjoints import AdjointNorms, Adjoints
from retrograde.decomposition.from_recording import unasked
from retrograde.decomposition.non_finite import NonFinite
from retrograde.decomposition.summary import NEAR
from retrograde.diagnosis.activity import Activity, Units, look
from retrograde.diagnosis.finding import NotApplicable
from retrograde.diagnosis.need import Need, need_among, need_of
from retrograde.diagnosis.run import Balance
from retrograde.diagnosis.thresholds import Threshold
from retrograde.engine import fold
from retrograde.engine.entries import BLOCK_ROWS
from retrograde.errors import ArgumentError, NonFiniteError, RetrogradeError
from retrograde.recording import Recorded, Recording
from retrograde.spectra import Radius, spectrum
from retrograde.spectra.bounds import eigenvalues

SAMPLES = 8
"""The number of samples from which a rule takes exponents."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One layer of a recorded pass.

    Attributes:
        name: the layer.
        recorded: its pass.
        flow: the pass decomposed, None where it is not finite.
        place: where it is not finite, if it is not.
        limits: the thresholds by name.
        needs_lag: the lag that the user named.
        balance: gradients beside its own, where the whole model was run.
        fixed: the lag that it needs, where that is known from another pass.
    """

    name: str
    recorded: Recorded
    flow: Flow | None
    place: NonFinite | None
    limits: Mapping[str, float]
    needs_lag: int | None = None
    balance: Balance | None = None
    fixed: Need | None = None

    @property
    def live(self) -> Flow | None:
        """The flow, if a gradient arrives at all and there is something to look back on."""
        flow = self.flow
        return flow if flow is not None and len(flow.entries) and flow.steps > 1 else None

    @property
    def why_not_live(self) -> str:
        """Why there is no gradient to follow back through time; "" if there is one."""
        if self.flow is None:
            return "its pass is not finite"
        if not len(self.flow.entries):
            return "the loss gives it no gradient"
        return "" if self.flow.steps > 1 else "its sequence has a single step"

    @property
    def void(self) -> bool:
        """Whether the parts are not those of its gradient: their residual is too large."""
        return self.flow is not None and not self.flow.residual.ok

    @property
    def replayed(self) -> bool:
        """Whether the forward pass that is looked at is the one that ran, but for rounding.

        Parts that add up to the gradient prove it; else the state that the pass ended in.
        """
        agrees = self.flow is not None and bool(self.flow.forward_agrees)
        return self.flow is not None and (not self.void or self.sensitive or agrees)

    @property
    def sensitive(self) -> bool:
        """Whether nothing but rounding makes its parts void."""
        return self.flow is not None and self.flow.residual.sensitive

    @property
    def far_unknown(self) -> bool:
        """Whether the gradient may reach further than can be seen: its parts are void or end."""
        return self.flow is not None and (self.void or self.flow.reach_is_lower_bound)

    @cached_property
    def need(self) -> Need:
        """The lag that it needs."""
        if self.fixed is not None:
            return self.fixed
        limits = self.limits
        return need_of(
            self.recorded, self.needs_lag, limits["season_correlation"], limits["reach_fraction"]
        )

    @cached_property
    def longest_lag(self) -> int:
        """The longest lag that this pass can show: detached states and early losses shorten it."""
        assert self.flow is not None
        lags = self.flow.adjoints.lags[self.flow.adjoints.log2.isfinite()]
        return int(lags.max()) if lags.numel() else 0

    @cached_property
    def _look(self) -> tuple[list[Activity], list[Units]]:
        if self.flow is None:
            return [], []
        return look(self.recorded, self.flow.unrolled, self.limits["saturated_slope"])

    @property
    def activities(self) -> list[Activity]:
        """Every gate of every layer."""
        return self._look[0]

    @property
    def known(self) -> list[Activity]:
        """Those of the gates that have a role, so that it is known what being saturated means."""
        return [activity for activity in self.activities if activity.gate.role is not None]

    @property
    def unknown_gates(self) -> list[str]:
        """The gates of which it is not known how they are activated, or what they are there for."""
        judged = {activity.name for activity in self.known}
        return [
            gate.name + leaf.route_suffix
            for leaf in leaves(self.recorded.cell)
            for gate in leaf.cell.activations
            if gate.activation != CONSTANT and gate.name + leaf.route_suffix not in judged
        ]

    @property
    def units(self) -> list[Units]:
        """The outputs of every layer."""
        return self._look[1]

    @cached_property
    def growth(self) -> tuple[float, int]:
        """How far the mean adjoint rises above that at lag 0, in powers of two, and at what lag."""
        assert self.flow is not None
        return peak(self.flow.adjoints)

    @cached_property
    def growth_without(self) -> dict[str, float]:
        """The same growth without each route, by route; NaN where nothing comes back then."""
        assert self.flow is not None
        return {route: peak(_adjoints(self.flow.without(route)))[0] for route in self.flow.routes}

    @cached_property
    def radii(self) -> tuple[Radius, ...] | NotApplicable:
        """Spectral radius and leading exponent of each layer of a plain recurrence.

        From a few samples. There are none for gated cells, whose several matrices have no such
        rule, nor where a state was detached or a sample ends before the others, nor for a sequence
        so short that it has no transient: the iteration starts in a random direction, not the
        leading one.
        """
        if self.live is None:
            return NotApplicable(self.why_not_live)
        if not self._plain:
            return NotApplicable("it is not known to be a plain recurrence")
        try:
            found = spectrum(self.recorded.part(SAMPLES), n=1)
        except ArgumentError as error:
            return NotApplicable(f"it has no exponents: {error}")
        if not found.transient:
            return NotApplicable("its sequence is too short for a leading exponent")
        return found.radii

    @cached_property
    def spectral_radius(self) -> float | None:
        """The largest spectral radius of a plain recurrence's weights; None for gated cells."""
        if not self._plain:
            return None
        return max(float(values[0].abs()) for values in eigenvalues(self.recorded.cell).values())

    @property
    def _plain(self) -> bool:
        return all(isinstance(leaf.cell, Elman) for leaf in leaves(self.recorded.cell))


def peak(adjoints: Adjoints) -> tuple[float, int]:
    """How far the mean adjoint rises above that at lag 0, in powers of two, and at what lag."""
    rise = adjoints.log2_growth_by_lag
    known = torch.nonzero(rise[1:].isfinite()).squeeze(1) + 1
    if not len(known):
        return math.nan, 0
    lag = int(known[rise[known].argmax()])
    return float(rise[lag]), lag


def subjects(
    recording: Recording,
    limits: Sequence[Threshold],
    needs_lag: int | None,
    layer: str | None,
    balance: Mapping[str, Balance] | None = None,
    fixed: Need | None = None,
) -> tuple[dict[str, Subject], list[RetrogradeError]]:
    """Every recorded layer as a subject, and why some are none."""
    if layer is not None:
        _checks.instance("layer", layer, str, "the name of a layer")
    if layer is not None and layer not in recording.refused:
        _checks.existing("layer", layer, recording)
    found: dict[str, Subject] = {}
    errors: list[RetrogradeError] = []
    values = {row.name: row.value for row in limits}
    for name in recording if layer is None else (layer,):
        try:
            recorded = recording[name]
            subject = Subject(name, recorded, None, None, values, needs_lag)
            subject = replace(subject, balance=(balance or {}).get(name), fixed=fixed)
            try:
                # What is not finite is found here.
                flow = unasked(recorded)
                if flow.entries.relative:  # rules ask for tables by loss step and use step
                    flow = flow.with_rows(BLOCK_ROWS)
                carousel = set(flow.routes) != set(recorded.cell.recurrent_routes)
                flow.walked(_lags_to_come(subject), routes=carousel)
                found[name] = replace(subject, flow=flow, place=flow.non_finite)
            except NonFiniteError as error:
                if not isinstance(error.place, NonFinite):
                    raise
                found[name] = replace(subject, place=error.place)
        except RetrogradeError as error:
            errors.append(error)
    if needs_lag is not None and fixed is None:
        layers = {name: each.recorded for name, each in found.items()}
        for name in recording if layer is not None else ():
            with suppress(RetrogradeError):
                layers.setdefault(name, recording[name])
        last = next(iter(balance or ()), None)
        for name, subject in found.items():
            found[name] = replace(subject, fixed=need_among(layers, name, needs_lag, last))
    return found, errors


def _lags_to_come(subject: Subject) -> set[int]:
    """Where the bins begin that rules, experiments and the report will ask for."""
    steps = len(subject.recorded.x)
    return {NEAR, subject.need.lag, steps // 2, *(half_octaves(steps) if steps >= LONG else ())}


def half_octaves(steps: int) -> list[int]:
    """Lags on a scale of half powers of two, from 0."""
    found = [0, 1]
    while (following := max(found[-1] + 1, int(2 ** (len(found) / 2)))) < steps:
        found.append(following)
    return found


LONG = 256
"""Shorter sequences cost little, and less than looking for a window of them."""


def _adjoints(flow: Flow) -> Adjoints:
    """The adjoint norms alone, which cost less than a whole decomposition."""
    norms = AdjointNorms(flow.entries, flow.steps)
    fold(flow.unrolled, flow.entries, [norms])
    return norms.result()


def share_beyond(flow: Flow, lag: int) -> Float[Tensor, ""]:
    """Signed share of all lags from this one on."""
    return flow.by_lag(bins=(0, lag)).share[1]
