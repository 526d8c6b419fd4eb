"""Which calls make up one sequence in a backward pass, and what the loss gives to each of them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrograde.recording.calls import OUTPUT, Call, Link, Read, Way, merged
from retrograde.recording.passes import Pass

AGREES = 32
"""Ways between two calls are what they look like if the gradient that came back along them agrees
within this many eps, relative to its size. A hook on the way makes it disagree."""

DETACHED = "the state was detached before {}: nothing comes back from there"
REPLACED = "parts of the state were replaced before {}: nothing comes back to them"
CHANGED = (
    "the state was changed between calls before {} (masked, scaled, reordered, added to): "
    "adjoints pass through the change"
)
COMPUTED = (
    "the state before {} is computed from the one before in a way that adjoints are not followed "
    "through (a linear map, a norm, a network, a hook, states of several earlier calls): what "
    "comes back through it counts as given by the loss, and lags end there"
)
BRANCHED = (
    "a run starts at {} from a state that another call carries on or reads as its input: what "
    "comes back to that state counts as given by the loss, and lags end there"
)


@dataclass(frozen=True, eq=False)
class Span:
    """A call as a part of a sequence.

    Attributes:
        call: the call.
        by_output: what the loss gives to its output, in the layout of the output; None if nothing.
        by_state: what the loss gives to its last state, [B, S].
        by_entered: what it gives past the call to the state that entered it, [B, S].
        reads: what the state that it started from reads of the call before; None for the first
            call, and where the state was simply handed on.
        how: what became of the state before the call, in words with a place for the step.
        ends: lags end there, although the state depends on earlier ones.
    """

    call: Call
    by_output: Tensor | None
    by_state: Float[Tensor, "B S"]
    by_entered: Float[Tensor, "B S"]
    reads: tuple[Read, ...] | None
    how: tuple[str, ...] = ()
    ends: bool = False


def chains_of(calls: list[Call], brought: Pass) -> tuple[list[list[Span]], list[str]]:
    """The sequences in a pass, and what there is to say of them."""
    there, after = set(calls), dict[Call, Call]()
    outside = 0
    for call in calls:
        if call.link and call.link.before in there:
            after[call.link.before] = call
        outside += call.link is not None and call.link.before not in there
    later = set(after.values())
    chains = []
    for call in calls:
        if call not in later:
            chain = [call]
            while chain[-1] in after:
                chain.append(after[chain[-1]])
            chains.append(_spans(chain, brought))
    notes = [note for chain in chains for note in _borders_in_words(chain)]
    for layer in sorted(set().union(*(call.passed_to for call in calls))):
        notes.append(
            f"the state passes on to {layer!r}: what comes back from there counts as given by the "
            "loss"
        )
    if outside:
        notes.append(
            "the initial state was carried in from a call outside this backward pass: nothing "
            "comes back from before step 0"
        )
    return chains, notes


def _spans(chain: list[Call], brought: Pass) -> list[Span]:
    """The calls of a sequence, with what the loss gives to each."""
    given = [_Given(call) for call in chain]
    links = [_followed(call, brought) for call in chain[1:]]
    for number, own in enumerate(given):
        after = links[number] if number < len(links) else None
        own.collect(after, brought)
    for number in range(len(chain) - 1, 0, -1):
        given[number].pass_early(given[number - 1], links[number - 1])
    first = given[0].span(None, (BRANCHED,) if chain[0].branches else (), chain[0].branches)
    return [first, *(own.following(link) for own, link in zip(given[1:], links, strict=True))]


@dataclass(frozen=True, eq=False)
class _Followed:
    """A link in one pass.

    Attributes:
        call: the call that carries a state on.
        link: where it came from.
        reads: what its state reads of the call before, as far as adjoints are followed.
        agrees: whether the gradient came back along the ways between the calls as it must have.
    """

    call: Call
    link: Link
    reads: tuple[Read, ...]
    agrees: bool

    @property
    def simply(self) -> bool:
        """Whether the state was handed on as it is."""
        call, before = self.call, self.link.before
        if len(self.reads) != 1 or self.reads[0].entered or call.batch > before.batch:
            return False
        (read,) = self.reads
        own = torch.arange(read.source.numel(), device=read.source.device).view_as(read.source)
        if not bool(((read.factor == 1) & (read.source == own)).all()):
            return False
        if not self.link.altered:
            return True
        # A sum has factors of 1 as well: whether anything was added, the numbers tell.
        return torch.equal(call.state(call.given), before.state(before.last)[: call.batch])

    @property
    def ends(self) -> bool:
        """Whether lags end there although the state depends on earlier ones."""
        return self.link.opaque or not self.agrees

    @property
    def how(self) -> tuple[str, ...]:
        """What became of the state before the call, in words."""
        words = [COMPUTED] if self.ends else []
        if self.simply:
            return tuple(words)
        factors = [read.factor for read in self.reads]
        nothing = ~torch.stack(factors).ne(0).any(0) if factors else None
        if nothing is None or bool(nothing.all()):
            return tuple(words) or (REPLACED if self.link.letters else DETACHED,)
        if bool(nothing.any()) and not self.ends:
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


def _followed(call: Call, brought: Pass) -> _Followed:
    """The link of a call, as the pass went through it."""
    link = call.link
    assert link is not None
    agrees = _agrees(call, link, brought)
    reads = list(link.reads)
    if not agrees:
        others = ~_mask(call, link.altered)
        reads = [replace(read, factor=read.factor * others) for read in reads]
    if link.same:
        factor = _mask(call, link.same).double()
        own = torch.arange(factor.numel(), device=factor.device).view_as(factor)
        reads = merged([Read(False, own, factor)], reads)
    reads = [read for read in reads if bool(read.factor.any())]
    return _Followed(call, link, tuple(reads), agrees)


def _mask(call: Call, letters: Collection[str]) -> Bool[Tensor, "B S"]:
    """The entries of a state that belong to some of its parts."""
    ones = {n: torch.ones_like(part) for n, part in call.given.items() if n in letters}
    return call.state(ones).bool()


def _agrees(call: Call, link: Link, brought: Pass) -> bool:
    """Whether the gradient came back along the ways between two calls as it must have."""
    if not link.altered or not link.plain:
        return True
    totals = {
        way: brought.given.get((call, letter)) if letter else brought.between.get(way)
        for way, letter in link.between.items()
    }
    for way in link.before.tails:  # the loop may have gone on after a pass that the loss ended
        totals.setdefault(way, brought.between.get(way))
    return _came_back(link.before, totals, brought)


def _came_back(before: Call, totals: Mapping[Way, Tensor | None], brought: Pass) -> bool:
    """Whether the results of a call received what tensors computed from them give back."""
    arrived, expected = _Given(before), _Given(before)
    for way, gradient in brought.returned.get(before, {}).items():
        arrived.add(way, gradient)
    for way, total in totals.items():
        if total is not None:
            expected.add(way, total)
    return arrived.near(expected, AGREES * torch.finfo(before.output.dtype).eps)


class _Given:
    """What the loss gives to the results of one call, and past it to the state that entered it."""

    def __init__(self, call: Call):
        self._call = call
        self._parts: dict[tuple[str, str], Tensor] = {}

    def _put(self, where: str, name: str, gradient: Tensor) -> None:
        key = (where, name)
        self._parts[key] = self._parts[key] + gradient if key in self._parts else gradient

    def add(self, way: Way, gradient: Tensor) -> None:
        """What the loss gives to a tensor on the way to a later call."""
        for (entered, name), part in way.pull_back(gradient).items():
            self._put(("late" if way.later else "early") if entered else "result", name, part)

    def collect(self, after: _Followed | None, brought: Pass) -> None:
        """All that it gives, without what comes back from the call after."""
        call, link = self._call, after.link if after else None
        shared = set(call.cells[0].slots) if call.form.stepped else link.results if link else set()
        for name in (OUTPUT, *call.cells[0].slots):
            store = brought.entered if name in shared else brought.arrived
            if (call, name) in store:
                self._put("result", name, store[call, name])
        ways = dict.fromkeys((*(link.between if link else ()), *call.tails))
        follows = (
            after.agrees
            if after
            else _came_back(call, {way: brought.between.get(way) for way in ways}, brought)
        )
        if follows:
            found = {way: brought.between[way] for way in ways if way in brought.between}
        else:  # a hook changed what came back: all of that counts, by whichever way it came
            found = brought.returned.get(call, {})
        for way, gradient in found.items():
            self.add(way, gradient)

    def pass_early(self, before: "_Given", link: _Followed) -> None:
        """What is given to the state that entered the call, the loss has read a step earlier."""
        early = self._of("early")
        if not early:
            return
        vector = self._call.state(early)
        for read in link.reads:
            part = (vector * read.factor.to(vector.dtype)).flatten()
            state = vector.new_zeros(before._call.batch * before._call.state_size)
            state = state.index_add_(0, read.source.flatten(), part)
            before._put("entered" if read.entered else "state", "", state.view(-1, vector.shape[1]))

    def near(self, other: "_Given", tolerance: float) -> bool:
        """Whether two sums are the same up to rounding."""
        size = difference = 0.0
        mine, theirs = self._by_site(), other._by_site()
        for site in {*mine, *theirs}:
            some, others = mine.get(site), theirs.get(site)
            size += 0.0 if some is None else float(some.double().square().sum())
            apart = others if some is None else some if others is None else some - others
            assert apart is not None
            difference += float(apart.double().square().sum())
        return difference <= tolerance**2 * size

    def _by_site(self) -> dict[tuple[bool, str], Tensor]:
        """The sums, of whichever step."""
        found: dict[tuple[bool, str], Tensor] = {}
        for (where, name), part in self._parts.items():
            key = (where != "result", name)
            found[key] = found[key] + part if key in found else part
        return found

    def following(self, link: _Followed) -> Span:
        """The call as one that carries on a state."""
        return self.span(None if link.simply else link.reads, link.how, link.ends)

    def span(self, reads: tuple[Read, ...] | None, how: tuple[str, ...], ends: bool) -> Span:
        """The call as a part of its sequence."""
        call = self._call
        results = {n: call.as_returned(n, part) for n, part in self._of("result").items()}
        output = results.pop(OUTPUT, None)
        state = call.state(results) + self._parts.get(("state", ""), 0)
        entered = call.state(self._of("late")) + self._parts.get(("entered", ""), 0)
        return Span(call, output, state, entered, reads, how, ends)

    def _of(self, where: str) -> dict[str, Tensor]:
        return {name: part for (place, name), part in self._parts.items() if place == where}


def _borders_in_words(chain: list[Span]) -> list[str]:
    """One sentence for each kind of border in a sequence."""
    kinds: dict[str, list[int]] = {}
    for step, span in by_step(chain):
        for how in span.how:
            kinds.setdefault(how, []).append(step)
    return [kind.format(_steps(steps)) for kind, steps in kinds.items()]


def by_step(chain: list[Span]) -> Iterator[tuple[int, Span]]:
    """The calls of a sequence, each with its first step."""
    step = 0
    for span in chain:
        yield step, span
        step += len(span.call.sequence(span.call.x)[0])


def _steps(steps: list[int], shown: int = 5) -> str:
    named = ", ".join(map(str, steps[:shown]))
    more = f" and {len(steps) - shown} more" if len(steps) > shown else ""
    return f"step{'s' if len(steps) > 1 else ''} {named}{more}"
