"""Follow states from call to call: which call continues which, and what else uses that state.

The gradient of a state that is handed from call to call is a sum: what the loss gives to it, and
what comes back from the call after. The two are told apart where they are added, at the nodes of
the autograd graph that use the state: a node that leads to the call after does not count, all
others belong to the loss. The same holds for every tensor in between (entry_maps.py).
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import RLock
from weakref import ref

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from retrograde.declarations.reading import CallTensors
from retrograde.recording.backward_pass import BackwardPass, add
from retrograde.recording.calls import Call, Intermediate, ReadTerms, StateOrigin, WeightKey
from retrograde.recording.entry_maps import (
    HOOKED,
    EntryMap,
    EntryMaps,
    Terms,
    shape_at,
    whole,
)
from retrograde.recording.graph import (
    SEARCHED,
    Edge,
    Node,
    depends_on,
    edge_of,
    on_inputs,
    users_by_edge,
    users_of,
)
from retrograde.recording.interception import Roots
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
        starting: called when a backward pass starts, those of each call; give hooks to be removed
            when it ends.
        lock: held while a call is added, a pass observed, or what no pass needs any more forgotten:
            several threads may do so at once, with other layers of one block.
    """

    weights: dict[Edge, WeightKey] = field(default_factory=dict)
    passes: int = 0
    _places: Places = field(default_factory=Places)
    _results: dict[Edge, tuple[Call, str]] = field(default_factory=dict)
    _sites: dict[Edge, Call] = field(default_factory=dict)
    _maps: EntryMaps = field(default_factory=EntryMaps)
    _intermediates: dict[Edge, dict[Call, Intermediate]] = field(default_factory=dict)
    _users_between: dict[Edge, dict[Node, set[Call]]] = field(default_factory=dict)
    _after: dict[Call, list[Call]] = field(default_factory=dict)
    _hooked: dict[Node, None] = field(default_factory=dict)
    _read: dict[Call, set[Edge]] = field(default_factory=dict)
    starting: dict[Call, list[Callable[[], list[RemovableHandle]]]] = field(default_factory=dict)
    lock: AbstractContextManager[bool] = field(default_factory=RLock)

    def add(
        self,
        call: Call,
        tensors: CallTensors,
        earlier: list[Call],
    ) -> list[Node]:
        """Find the place of a new call, and the earlier call of its layer whose state it continues.

        Returns:
            The nodes of module hooks that its state passed through, found for the first time.
        """
        known = len(self._hooked)
        place = self._places.edges_of(tensors)
        if place.given:
            call.origin = self._handed_on(call, place) or self._attached(call, place)
        leaves = all(is_leaf(edge) for edge in place.given.values())
        if call.origin is None and tensors.given and leaves:
            call.origin = self._detached(call, earlier)
        if call.origin:
            before = call.origin.before
            assert before is not None
            self._after.setdefault(before, []).append(call)
            call.ragged |= before.ragged
        self._places.add(call, place)
        for name, edge in place.results.items():
            self._results[edge] = call, name
            self._sites.setdefault(edge, call)
        for entered in (*place.given.values(), *place.held) if call.origin else ():
            self._sites.setdefault(entered, call)
        return list(self._hooked)[known:] if len(self._hooked) > known else []

    def _handed_on(self, call: Call, place: CallEdges) -> StateOrigin | None:
        """The call whose very results this one was given, as in most loops; None in other cases."""
        before = None
        for name, edge in place.given.items():
            found = self._results.get(edge)
            if found is None or found[1] != name or found[0] is not (before or found[0]):
                return None
            before = found[0]
            if edge == place.x or edge in place.others:
                return None
        if before is None or before.layer != call.layer or before in self._after:
            return None
        if not call.form.stepped and not _fit(before, call, {}):
            return None
        letters = frozenset(place.given)
        return StateOrigin(ref(before), letters=letters, results=letters, same=letters)

    def _attached(self, call: Call, place: CallEdges) -> StateOrigin | None:
        """The call that this one's state was computed from, if gradients pass between them."""
        maps = {n: self._maps.to(edge, self._sites) for n, edge in place.given.items()}
        followed = {site for entry_map in maps.values() for site in entry_map.terms}
        opaque = {site for entry_map in maps.values() for site in entry_map.opaque}
        if any(self._sites[site].layer != call.layer for site in followed):
            self._read[call] = {s for each in maps.values() for s in each.nonzero(())} | opaque
        own = self._calls(followed, call.layer) or self._calls(opaque, call.layer)
        for site in () if own else {*followed, *opaque}:
            if self._sites[site].layer != call.layer:
                self._sites[site].passed_to.add(call.layer)
        if not own:
            return None
        free = [other for other in own if other not in self._after]
        also = [n for n, edge in place.given.items() if edge in place.inputs]
        if not free or (also and not _told_apart(call, place)):
            call.branches = True
            return None
        before = free[-1]
        readable = self._readable(before)
        between_calls = (node for each in maps.values() for node, _ in each.between)
        self._hooked |= dict.fromkeys(n for n in between_calls if type(n).__name__ == HOOKED)
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
        between = self._mark(before, kept, readable)
        for letter, edge in place.given.items():
            if letter in kept and before in self._intermediates.get(edge, {}):
                between[self._intermediates[edge][before]] = letter
        letters = frozenset(kept)
        read = {readable[site] for entry_map in kept.values() for site in entry_map.terms}
        altered = [edge for edge in (place.given[n] for n in kept) if edge not in self._sites]
        inner = [edge for entry_map in kept.values() for edge in {*entry_map.between} & {*altered}]
        return StateOrigin(
            ref(before),
            terms=reads,
            letters=letters,
            results=frozenset(name for entered, name in read if not entered),
            same=frozenset(same),
            altered=frozenset(n for n in letters if place.given[n] not in self._sites),
            between=between,
            opaque=any(self._sites[site].layer == call.layer for site in opaque),
            plain=len(set(altered)) == len(altered) == len(inner),
            as_input=next(
                (_intermediate(before, kept[n].terms, readable) for n in also if n in kept), None
            ),
        )

    def _calls(self, sites: Collection[Edge], layer: str) -> list[Call]:
        """The calls of a layer whose results are at these places, in order."""
        found = {self._results[e][0] for e in sites if e in self._results}
        return sorted((c for c in found if c.layer == layer), key=lambda c: self._places[c].number)

    def _readable(self, before: Call) -> dict[Edge, tuple[bool, str]]:
        """What of a call the next one may read: its results, and the state that entered it."""
        place = self._places[before]
        entered = {**place.held, **{e: n for n, e in place.given.items()}} if before.origin else {}
        return {
            **{edge: (True, name) for edge, name in entered.items()},
            **{edge: (False, name) for name, edge in place.results.items()},
        }

    def _mark(
        self,
        before: Call,
        maps: Mapping[str, EntryMap],
        readable: Mapping[Edge, tuple[bool, str]],
    ) -> dict[Intermediate, str]:
        """Remember the tensors and nodes between a call and what is computed from it."""
        intermediates: dict[Intermediate, str] = {}
        for entry_map in maps.values():
            for edge, terms in entry_map.between.items():
                known = self._intermediates.setdefault(edge, {})
                if before not in known:
                    known[before] = _intermediate(before, terms, readable)
                intermediates[known[before]] = ""
            for edge, nodes in entry_map.nodes.items():
                users = self._users_between.setdefault(edge, {})
                for node in nodes:
                    users.setdefault(node, set()).add(before)
        return intermediates

    def _detached(self, call: Call, earlier: list[Call]) -> StateOrigin | None:
        """The latest call that left the same state; no gradient passes between them."""
        state = call.state(call.given)
        for before in reversed(earlier[-LATEST:]):
            if before in self._after or before.batch != call.batch or not _fit(before, call, {}):
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return StateOrigin(ref(before))
        return None

    def _find_by_hand(self, places: Mapping[Call, CallEdges], roots: Roots) -> None:
        """Find the calls at whose state the pass starts, where the next call began with a leaf.

        What has come back to such a leaf the loop hands on, as in `state.backward(leaf.grad)`.
        """
        leaves = {
            call.origin.before
            for call, place in places.items()
            if call.origin and place.given and not call.origin.letters
        }
        for edge in (edge_of(root) for root, _ in roots):
            if edge in self._results:
                call, name = self._results[edge]
                call.by_hand |= call in leaves and name in call.last

    def _find_tails(
        self,
        places: Mapping[Call, CallEdges],
        roots: list[Node],
        inside: Mapping[Node, list[Edge]],
    ) -> None:
        """Find the states that the last calls leave, mixed as they would be for another call.

        The loss reads `m * h_new + (1 - m) * h` after the last step as well.
        """
        last = [
            call
            for call in places
            if call.origin and call.origin.altered and call not in self._after and not call.tails
        ]
        users = users_by_edge(roots, inside) if last else {}
        for call in last:
            readable = self._readable(call)
            waiting, seen = list(readable), set[Edge]()
            while waiting and len(seen) < SEARCHED:
                edge = waiting.pop()
                for node in users.get(edge, ()):
                    if node in self._users_between.get(edge, {}) or node in inside:
                        continue
                    for number in range(len(node._input_metadata)):
                        above = (node, number)
                        if above in seen or above in self._sites:
                            continue
                        seen.add(above)
                        entry_map = self._maps.to(above, self._sites).restricted_to(readable)
                        read = {readable[site][0] for site in entry_map.terms}
                        if len(read) == 2 and _is_state(above, entry_map.terms):
                            found = self._mark(call, {"": entry_map}, readable)
                            call.tails = (*call.tails, *found)
                        elif len(read) == 1:
                            waiting.append(above)

    def _find_fed_back(self, places: Mapping[Call, CallEdges]) -> None:
        """Find the calls that read what was computed from earlier results of their layer."""
        by_layer: dict[str, list[Call]] = {}
        for call in places:
            by_layer.setdefault(call.layer, []).append(call)
        of_call: dict[Node, list[Edge]] = {}
        for calls in by_layer.values():
            reading = [call for call in calls if places[call].inputs]
            if len(calls) == 1 or not reading:
                continue
            of_call = of_call or {
                edge[0]: [*place.inputs, *self._read.get(call, place.given.values())]
                for call, place in places.items()
                for edge in place.results.values()
            }
            own = {edge[0] for call in calls for edge in places[call].results.values()}
            known: dict[Node, bool] = dict.fromkeys(own, True)
            for call in reading:
                for edge in places[call].inputs:
                    call.fed_back |= self._reads_any(edge, known, of_call)

    def _reads_any(
        self, edge: Edge, known: dict[Node, bool], of_call: Mapping[Node, list[Edge]]
    ) -> bool:
        """Whether a tensor was computed from what `known` says True of, entry by entry."""
        if not depends_on(edge[0], known, of_call):
            return False
        entry_map = self._maps.to(edge, self._sites)
        sites = entry_map.nonzero(()) | entry_map.opaque
        return not sites or any(depends_on(site[0], known, of_call) for site in sites)

    @property
    def layers(self) -> set[str]:
        """The layers that were called."""
        return {call.layer for call in self._places}

    def forget(self, calls: Collection[Call], weights: Collection[WeightKey]) -> None:
        """Let go of calls that no backward pass will go through any more, and of weights."""
        gone = set(calls)
        self._places.forget(gone)
        of_call = (self.starting, self._read, self._after)
        for store in of_call:
            drop(store, gone)
        for kept, later in [*self._after.items()]:
            self._after[kept] = [call for call in later if call not in gone]
        drop(self._results, [e for e, (call, _) in [*self._results.items()] if call in gone])
        drop(self._sites, [edge for edge, call in [*self._sites.items()] if call in gone])
        for call, place in self._places.items():
            for entered in (*place.given.values(), *place.held) if call.origin else ():
                self._sites.setdefault(entered, call)
        for of_edge in self._intermediates.values():
            drop(of_edge, gone)
        for users in self._users_between.values():
            for before in users.values():
                before -= gone
            drop(users, [node for node, before in users.items() if not before])
        for of_edges in (self._intermediates, self._users_between):
            drop(of_edges, [edge for edge, found in of_edges.items() if not found])
        drop(self.weights, [e for e, key in [*self.weights.items()] if key in weights])
        self._hooked.clear()
        self._maps.forget()

    def continued(self, call: Call) -> bool:
        """Whether another call continues the state of this one."""
        return call in self._after

    def observe(self, roots: Roots, to: BackwardPass) -> list[RemovableHandle]:
        """Hook a backward pass to tell where the gradients of states and weights come from."""
        at = [edge for edge in (edge_of(root) for root, _ in roots) if edge]
        starts, inside = [node for node, _ in at], self._places.inside
        seen, nodes = self._places.behind(at)
        places = self._places.concerned(nodes, self._after)
        reached = {call: place for call, place in places.items() if place.last & nodes}
        self._find_by_hand(places, roots)
        self._find_tails(reached, starts, inside)
        self._find_fed_back(reached)
        between = ((edge, self._intermediates.get(edge)) for edge in seen)
        intermediates = {edge: tuple(found.values()) for edge, found in between if found}
        using = ((edge, self._users_between.get(edge)) for edge in seen)
        users_between = {edge: dict(users) for edge, users in using if users}
        weights = {edge for edge in seen if edge in self.weights}
        states: dict[Edge, tuple[Call, str]] = {}
        for call, place in places.items():
            if call.form.transparent:  # its results may be used inside the call itself
                for name, edge in place.results.items():
                    states[edge] = call, name
            elif call.origin:
                before = call.origin.before
                if before is not None and before in places:
                    results = places[before].results
                    states |= {results[n]: (before, n) for n in call.origin.results}
        sites: dict[Call, dict[Edge, Intermediate]] = {}
        held = {
            edge: (call, name)
            for call, place in places.items()
            for edge, name in place.held.items()
        }

        def sites_of(before: Call) -> dict[Edge, Intermediate]:
            """What a later call may read of this one, each as an intermediate of its own."""
            if before not in sites:
                readable = self._readable(before)
                sites[before] = {
                    edge: _intermediate(before, {edge: (whole(edge),)}, readable)
                    for edge in readable
                }
            return sites[before]

        def keep(node: Node, edge: Edge, gradient: Tensor) -> None:
            if edge in self.weights:
                add(to.beside, self.weights[edge], gradient)
                return
            onwards = users_between.get(edge, {}).get(node, set())
            returned = False
            for before in onwards:
                if edge in sites_of(before):
                    returned = True
                    add(to.returned.setdefault(before, {}), sites_of(before)[edge], gradient)
            followed = {before.layer for before in onwards}
            for intermediate in intermediates.get(edge, ()):
                if intermediate.before.layer not in followed:
                    add(to.between, intermediate, gradient)
            if edge in states and not returned:
                add(to.entered, states[edge], gradient)
            if edge in held and onwards and type(node).__name__ != HOOKED:
                add(to.given, held[edge], gradient)

        def look(node: Node, edge: Edge, gradient: Tensor) -> None:
            try:
                keep(node, edge, gradient)
            except Exception as error:  # not into the user's backward pass
                why = f"observing the backward pass failed, {type(error).__name__}: {error}"
                to.problems |= dict.fromkeys(self.layers, why)

        edges = {*states, *intermediates, *weights}
        for root, gradient in roots:
            start = edge_of(root)
            if start in edges and start is not None:
                look(None, start, gradient)
        users = list(users_of(edges, starts, inside))
        beside = {node for node, used in users if any(edge in weights for _, edge in used)}
        if beside:
            to.inside |= self._places.using(beside, self.weights.copy())
        for call, place in places.items():  # other recorded calls that read a state
            if not place.inputs and call.origin and len(call.origin.letters) == len(place.given):
                continue
            own = {place.given[n] for n in call.origin.letters} if call.origin else set()
            read = {edge for edge in place.into if edge not in own} & {*states, *intermediates}
            if read:
                users += users_of(read, *place.within)
        handles = [on_inputs(node, used, look) for node, used in users]
        for call in places:
            for begin in self.starting.get(call, ()):
                handles += begin()
        return handles


def _intermediate(
    before: Call, terms: Terms, readable: Mapping[Edge, tuple[bool, str]]
) -> Intermediate:
    """A tensor between two calls, without the graph that it was found in."""
    return Intermediate(before, _terms(terms, readable))


def _told_apart(call: Call, place: CallEdges) -> bool:
    """Whether the derivative of a call tells what comes back to its input, which is its state."""
    alone = not {*place.others} & {*place.given.values()}
    return alone and call.form.plain and isinstance(call.x, Tensor) and call.steps is None


def _is_state(edge: Edge, terms: Terms) -> bool:
    """Whether a tensor is a mix of states, and not a collection of them: it has their shape."""
    return all(shape_at(edge) == shape_at(site) for site in terms)


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
