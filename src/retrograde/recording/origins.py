"""Where the state of a call came from, as one backward pass went through it.

The tensors between two calls say what the state reads of the call before. Where the gradient that
came back is not the one that follows from them (a hook changed it), adjoints are not followed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from retrograde.recording.backward_pass import BackwardPass
from retrograde.recording.calls import Call, Intermediate, StateOrigin
from retrograde.recording.changes import CHANGED, COMPUTED, DETACHED, FED_BACK, REPLACED
from retrograde.recording.reads import StateRead, merged, reads_of

AGREES = 32
"""The gradient that came back from one call to another agrees with the tensors found between
them if it differs by no more than this many eps, relative to its size. A hook in between makes it
differ."""


@dataclass(frozen=True, eq=False)
class OriginInPass:
    """A `StateOrigin` in one backward pass.

    Attributes:
        call: the call.
        before: the one before it.
        origin: where its state came from.
        reads: what its state reads of the call before, as far as adjoints are followed.
        agrees: whether the gradient came back as the tensors between the calls require.
    """

    call: Call
    before: Call
    origin: StateOrigin
    reads: tuple[StateRead, ...]
    agrees: bool

    @property
    def unchanged(self) -> bool:
        """Whether the state was handed on as it was."""
        call, before = self.call, self.before
        if len(self.reads) != 1 or self.reads[0].entered or call.batch > before.batch:
            return False
        (read,) = self.reads
        own = torch.arange(read.source.numel(), device=read.source.device).view_as(read.source)
        if not bool(((read.factor == 1) & (read.source == own)).all()):
            return False
        if not self.origin.altered:
            return True
        # A sum has factors of 1 as well: whether anything was added, the numbers tell.
        return torch.equal(call.state(call.given), before.state(before.last)[: call.batch])

    @property
    def ends(self) -> bool:
        """Whether lags end there although the state depends on earlier ones."""
        return self._computed or self.call.fed_back

    @property
    def _computed(self) -> bool:
        """Whether the state was computed in a way that is not followed."""
        return self.origin.opaque or not self.agrees

    @property
    def changes(self) -> tuple[str, ...]:
        """What happened to the state before the call, as sentences."""
        fed_back = (FED_BACK,) * self.call.fed_back
        return self._changes_of_the_state + fed_back

    @property
    def _changes_of_the_state(self) -> tuple[str, ...]:
        words = [COMPUTED] if self._computed else []
        if self.unchanged:
            return tuple(words)
        factors = [read.factor for read in self.reads]
        nothing = ~torch.stack(factors).ne(0).any(0) if factors else None
        if nothing is None or bool(nothing.all()):
            return tuple(words) or (REPLACED if self.origin.letters else DETACHED,)
        if bool(nothing.any()) and not self._computed:
            words.append(REPLACED)
        carried = torch.stack(factors).sum(0)
        own = torch.arange(carried.numel(), device=carried.device).view_as(carried)
        moved = [read.entered | (read.source != own) for read in self.reads]
        scaled = (carried != 1) & (carried != 0)
        others = zip(moved, self.reads, strict=True)
        changed = bool(scaled.any()) or any(bool((o & (r.factor != 0)).any()) for o, r in others)
        if changed or not words:  # where no factor tells, something was added
            words.append(CHANGED)
        return tuple(words)


def origin_in(call: Call, backward: BackwardPass) -> OriginInPass:
    """The origin of a call's state, as the pass went through it."""
    origin = call.origin
    before = origin.before if origin else None
    assert origin is not None and before is not None
    agrees = _agrees(call, before, origin, backward)
    reads = reads_of(call, before, origin.terms)
    if not agrees:
        others = ~_mask(call, origin.altered)
        reads = [replace(read, factor=read.factor * others) for read in reads]
    unread = call.cells[0].slots.get(call.form.readout)
    if origin.same:
        factor = _mask(call, origin.same).double()
        if unread is not None:
            factor[:, unread] = 1
        own = torch.arange(factor.numel(), device=factor.device).view_as(factor)
        reads = merged([StateRead(False, own, factor)], reads)
    reads = [read for read in reads if bool(read.factor.any())]
    return OriginInPass(call, before, origin, tuple(reads), agrees)


def _mask(call: Call, letters: Collection[str]) -> Bool[Tensor, "B S"]:
    """The entries of a state that belong to some of its parts."""
    ones = {n: torch.ones_like(part) for n, part in call.given.items() if n in letters}
    return call.state(ones).bool()


def _agrees(call: Call, before: Call, origin: StateOrigin, backward: BackwardPass) -> bool:
    """Whether the gradient came back as the tensors between two calls require."""
    if not origin.altered or not origin.plain:
        return True
    totals = {
        each: backward.given.get((call, letter)) if letter else backward.between.get(each)
        for each, letter in origin.between.items()
    }
    for each in before.tails:  # the loop may have gone on after the loss of this pass
        totals.setdefault(each, backward.between.get(each))
    return gradients_agree(before, totals, backward)


def gradients_agree(
    before: Call, totals: Mapping[Intermediate, Tensor | None], backward: BackwardPass
) -> bool:
    """Whether the results of a call received what the tensors computed from them give back."""
    arrived = _pulled_back(backward.returned.get(before, {}))
    expected = _pulled_back({each: total for each, total in totals.items() if total is not None})
    size = difference = 0.0
    nothing = torch.zeros(())
    for site in {*arrived, *expected}:
        came = arrived.get(site, nothing)
        apart = came - expected.get(site, nothing)
        size += float(came.double().square().sum())
        difference += float(apart.double().square().sum())
    tolerance = AGREES * torch.finfo(before.output.dtype).eps
    return difference <= tolerance**2 * size


def _pulled_back(gradients: Mapping[Intermediate, Tensor]) -> dict[tuple[bool, str], Tensor]:
    """The gradients of tensors between calls as those of what they read of the first call."""
    found: dict[tuple[bool, str], Tensor] = {}
    for intermediate, gradient in gradients.items():
        for site, part in intermediate.pull_back(gradient).items():
            found[site] = found[site] + part if site in found else part
    return found
