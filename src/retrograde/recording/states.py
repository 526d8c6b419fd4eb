"""Follow states from call to call: which call continues which, and what its state reads of it."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import RLock
from weakref import ref

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from retrograde.declarations.reading import CallTensors
from retrograde.recording.calls import Call, Intermediate, ReadTerms, StateOrigin, WeightKey
from retrograde.recording.entry_maps import HOOKED, EntryMap, EntryMaps, Terms, shape_at, whole
from retrograde.recording.graph import Edge, Node
from retrograde.recording.places import CallEdges, Places, drop, is_leaf
from retrograde.recording.reads import reads_of

LATEST = 8
"""The number of latest calls of a layer among which a detached state is looked for."""


@dataclass(eq=False)
class StateTracker:
    """All recorded calls in the autograd graph; dropped when the recording ends.

    Attributes:
        weights: the tensors that layers use as weights, by their edges.
        passes: how many backward passes have ended.
        places: where each call sits in the graph.
        results: the call, and which of its results arrives at an edge.
        sites: the call whose result, or the state that entered it, arrives at an edge: where the
            search for what a state reads ends.
        maps: how tensors follow from those at the sites.
        intermediates: the tensors between a call and what continues its state, by their edges.
        users_between: the nodes that lead from a tensor to the call after, and from which calls.
        after: the calls that continue the state of each.
        read: what the state of a call reads, where that includes results of other layers.
        starting: called when a backward pass starts, those of each call; give hooks to be removed
            when it ends.
        lock: held while a call is added, a pass is observed, or what no pass needs any more is
            forgotten: several threads may run layers of one block at once.
    """

    weights: dict[Edge, WeightKey] = field(default_factory=dict)
    passes: int = 0
    places: Places = field(default_factory=Places)
    results: dict[Edge, tuple[Call, str]] = field(default_factory=dict)
    sites: dict[Edge, Call] = field(default_factory=dict)
    maps: EntryMaps = field(default_factory=EntryMaps)
    intermediates: dict[Edge, dict[Call, Intermediate]] = field(default_factory=dict)
    users_between: dict[Edge, dict[Node, set[Call]]] = field(default_factory=dict)
    after: dict[Call, list[Call]] = field(default_factory=dict)
    read: dict[Call, set[Edge]] = field(default_factory=dict)
    starting: dict[Call, list[Callable[[], list[RemovableHandle]]]] = field(default_factory=dict)
    lock: AbstractContextManager[bool] = field(default_factory=RLock)
    _hooked: dict[Node, None] = field(default_factory=dict)

    def add(self, call: Call, tensors: CallTensors, earlier: list[Call]) -> list[Node]:
        """Find the place of a new call, and the earlier call of its layer whose state it continues.

        Returns:
            The nodes of module hooks that its state passed through, found for the first time.
        """
        known = len(self._hooked)
        place = self.places.edges_of(tensors)
        if place.given:
            call.origin = self._handed_on(call, place) or self._attached(call, place)
        leaves = all(is_leaf(edge) for edge in place.given.values())
        if call.origin is None and tensors.given and leaves:
            call.origin = self._detached(call, earlier)
        if call.origin:
            before = call.origin.before
            assert before is not None
            self.after.setdefault(before, []).append(call)
            call.ragged |= before.ragged
        self.places.add(call, place)
        for name, edge in place.results.items():
            self.results[edge] = call, name
            self.sites.setdefault(edge, call)
        for entered in (*place.given.values(), *place.held) if call.origin else ():
            self.sites.setdefault(entered, call)
        return list(self._hooked)[known:] if len(self._hooked) > known else []

    def _handed_on(self, call: Call, place: CallEdges) -> StateOrigin | None:
        """The call whose very results this one was given, as in most loops; None in other cases."""
        before = None
        for name, edge in place.given.items():
            found = self.results.get(edge)
            if found is None or found[1] != name or found[0] is not (before or found[0]):
                return None
            before = found[0]
            if edge == place.x or edge in place.others:
                return None
        if before is None or before.layer != call.layer or before in self.after:
            return None
        if not call.form.stepped and not _fit(before, call, {}):
            return None
        letters = frozenset(place.given)
        return StateOrigin(ref(before), letters=letters, results=letters, same=letters)

    def _attached(self, call: Call, place: CallEdges) -> StateOrigin | None:
        """The call that this one's state was computed from, if gradients pass between them."""
        maps = {n: self.maps.to(edge, self.sites) for n, edge in place.given.items()}
        followed = {site for entry_map in maps.values() for site in entry_map.terms}
        opaque = {site for entry_map in maps.values() for site in entry_map.opaque}
        if any(self.sites[site].layer != call.layer for site in followed):
            self.read[call] = {s for each in maps.values() for s in each.nonzero(())} | opaque
        own = self._calls(followed, call.layer) or self._calls(opaque, call.layer)
        for site in () if own else {*followed, *opaque}:
            if self.sites[site].layer != call.layer:
                self.sites[site].passed_to.add(call.layer)
        if not own:
            return None
        free = [other for other in own if other not in self.after]
        if not free or (place.as_input and not _told_apart(call, place)):
            call.branches = True
            return None
        between_calls = (node for each in maps.values() for node, _ in each.between)
        self._hooked |= dict.fromkeys(n for n in between_calls if type(n).__name__ == HOOKED)
        return self._origin(call, place, free[-1], maps, opaque)

    def _origin(
        self,
        call: Call,
        place: CallEdges,
        before: Call,
        maps: Mapping[str, EntryMap],
        opaque: set[Edge],
    ) -> StateOrigin:
        """What the state of a call reads of the call that it continues.

        Args:
            call, place: the call, and where it sits in the graph.
            before: the call that it continues.
            maps: how each part of the state follows from the sites.
            opaque: the sites on which the state depends in a way that is not followed.
        """
        readable = self.readable(before)
        same = {n for n, e in place.given.items() if readable.get(e) == (False, n)}
        kept: dict[str, EntryMap] = {}
        for letter, entry_map in maps.items():
            of_call = entry_map.restricted_to(readable)
            if not of_call.terms:
                opaque |= entry_map.nonzero(())
            else:
                kept[letter] = of_call
                opaque |= entry_map.nonzero(readable)
        reads = {
            n: _terms(entry_map.terms, readable) for n, entry_map in kept.items() if n not in same
        }
        if not call.form.stepped and not _fit(before, call, reads):
            opaque |= {site for entry_map in maps.values() for site in entry_map.nonzero(())}
            kept, reads, same = {}, {}, set()
        between = self.mark(before, kept, readable)
        for letter, edge in place.given.items():
            if letter in kept and before in self.intermediates.get(edge, {}):
                between[self.intermediates[edge][before]] = letter
        letters = frozenset(kept)
        read = {readable[site] for entry_map in kept.values() for site in entry_map.terms}
        altered = [edge for edge in (place.given[n] for n in kept) if edge not in self.sites]
        inner = [edge for entry_map in kept.values() for edge in {*entry_map.between} & {*altered}]
        return StateOrigin(
            ref(before),
            terms=reads,
            letters=letters,
            results=frozenset(name for entered, name in read if not entered),
            same=frozenset(same),
            altered=frozenset(n for n in letters if place.given[n] not in self.sites),
            between=between,
            opaque=any(self.sites[site].layer == call.layer for site in opaque),
            plain=len(set(altered)) == len(altered) == len(inner),
            as_input=next(
                (
                    _intermediate(before, kept[n].terms, readable)
                    for n in place.as_input
                    if n in kept
                ),
                None,
            ),
        )

    def _calls(self, sites: Collection[Edge], layer: str) -> list[Call]:
        """The calls of a layer whose results are at these places, in order."""
        found = {self.results[e][0] for e in sites if e in self.results}
        return sorted((c for c in found if c.layer == layer), key=lambda c: self.places[c].number)

    def readable(self, before: Call) -> dict[Edge, tuple[bool, str]]:
        """What of a call the next one may read: its results, and the state that entered it."""
        place = self.places[before]
        entered = {**place.held, **{e: n for n, e in place.given.items()}} if before.origin else {}
        return {
            **{edge: (True, name) for edge, name in entered.items()},
            **{edge: (False, name) for name, edge in place.results.items()},
        }

    def mark(
        self,
        before: Call,
        maps: Mapping[str, EntryMap],
        readable: Mapping[Edge, tuple[bool, str]],
    ) -> dict[Intermediate, str]:
        """Remember the tensors and nodes between a call and what is computed from it."""
        intermediates: dict[Intermediate, str] = {}
        for entry_map in maps.values():
            for edge, terms in entry_map.between.items():
                known = self.intermediates.setdefault(edge, {})
                if before not in known:
                    known[before] = _intermediate(before, terms, readable)
                intermediates[known[before]] = ""
            for edge, nodes in entry_map.nodes.items():
                users = self.users_between.setdefault(edge, {})
                for node in nodes:
                    users.setdefault(node, set()).add(before)
        return intermediates

    def _detached(self, call: Call, earlier: list[Call]) -> StateOrigin | None:
        """The latest call that left the same state; no gradient passes between them."""
        state = call.state(call.given)
        for before in reversed(earlier[-LATEST:]):
            if before in self.after or before.batch != call.batch or not _fit(before, call, {}):
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return StateOrigin(ref(before))
        return None

    def sites_of(self, before: Call) -> dict[Edge, Intermediate]:
        """What a later call may read of this one, each as an intermediate of its own."""
        readable = self.readable(before)
        return {edge: _intermediate(before, {edge: (whole(edge),)}, readable) for edge in readable}

    @property
    def layers(self) -> set[str]:
        """The layers that were called."""
        return {call.layer for call in self.places}

    def forget(self, calls: Collection[Call], weights: Collection[WeightKey]) -> None:
        """Let go of calls that no backward pass will go through any more, and of weights."""
        gone = set(calls)
        self.places.forget(gone)
        of_call = (self.starting, self.read, self.after)
        for store in of_call:
            drop(store, gone)
        for kept, later in [*self.after.items()]:
            self.after[kept] = [call for call in later if call not in gone]
        drop(self.results, [e for e, (call, _) in [*self.results.items()] if call in gone])
        drop(self.sites, [edge for edge, call in [*self.sites.items()] if call in gone])
        for call, place in self.places.items():
            for entered in (*place.given.values(), *place.held) if call.origin else ():
                self.sites.setdefault(entered, call)
        for of_edge in self.intermediates.values():
            drop(of_edge, gone)
        for users in self.users_between.values():
            for before in users.values():
                before -= gone
            drop(users, [node for node, before in users.items() if not before])
        for of_edges in (self.intermediates, self.users_between):
            drop(of_edges, [edge for edge, found in of_edges.items() if not found])
        drop(self.weights, [e for e, key in [*self.weights.items()] if key in weights])
        self._hooked.clear()
        self.maps.forget()

    def continued(self, call: Call) -> bool:
        """Whether another call continues the state of this one."""
        return call in self.after


def _intermediate(
    before: Call, terms: Terms, readable: Mapping[Edge, tuple[bool, str]]
) -> Intermediate:
    """A tensor between two calls, without the graph that it was found in."""
    return Intermediate(before, _terms(terms, readable))


def _told_apart(call: Call, place: CallEdges) -> bool:
    """Whether the derivative of a call tells what comes back to its input, which is its state."""
    alone = not {*place.others} & {*place.given.values()}
    return alone and call.form.plain and isinstance(call.x, Tensor) and call.steps is None


def _terms(terms: Terms, readable: Mapping[Edge, tuple[bool, str]]) -> ReadTerms:
    """The same by what is read of a call, in place of where that is in the graph."""
    return tuple(
        (*readable[site], shape_at(site), term) for site, each in terms.items() for term in each
    )


def _fit(before: Call, call: Call, terms: Mapping[str, ReadTerms]) -> bool:
    """Whether two calls can be one sequence.

    No state may read outputs of earlier steps. Samples that end at steps of their own must stay in
    their places. In a bidirectional stack each layer is pulled back by itself, so that a unit can
    only read itself.
    """
    ragged = before.ragged or call.ragged
    if ragged and before.batch != call.batch:
        return False
    reads = reads_of(call, before, terms)
    size = call.state_size
    sample = torch.arange(call.batch, device=call.output.device).unsqueeze(1)
    unit = torch.arange(size, device=sample.device)
    alone = call.form.directions == 2 and call.form.layers > 1
    for read in reads:
        used = read.factor != 0
        if bool((used & (read.source < 0)).any()):
            return False
        if ragged and bool((used & (read.source // size != sample)).any()):
            return False
        if alone and (read.entered or bool((used & (read.source % size != unit)).any())):
            return False
    return True
