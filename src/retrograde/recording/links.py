"""Which call carries on the state of which, and who else uses that state.

The gradient of a state that is handed from call to call is a sum: what the loss gives to it, and
what comes back from the call after. The two are told apart where they are added, at the nodes of
the autograd graph that use the state: what lies on the way to the call after does not count, all
else is the loss. The same holds for every tensor on that way (bridges.py).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from retrograde.recording.bridges import HOOKED, Bridge, Bridges, Term, Terms, shape_at, whole
from retrograde.recording.calls import (
    Call,
    Link,
    ReadTerms,
    Way,
    WeightKey,
    data,
    parts_of,
    reads_of,
)
from retrograde.recording.graph import (
    SEARCHED,
    Edge,
    Node,
    Roots,
    edge_of,
    on_inputs,
    users_by_edge,
    users_of,
)
from retrograde.recording.passes import Pass, add

LATEST = 8
"""The number of latest calls of a layer among which a detached state is looked for."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a call sits in the graph: the edges of its results and of what went into it.

    A module with backward hooks hands on what it was given as a tensor of its own; what its caller
    holds is in `held`, by the part of the state that it is.
    """

    results: Mapping[str, Edge]
    given: Mapping[str, Edge]
    x: Edge | None

    @cached_property
    def held(self) -> dict[Edge, str]:
        found: dict[Edge, str] = {}
        for name, edge in self.given.items():
            while type(edge[0]).__name__ == HOOKED:
                edge = edge[0].next_functions[edge[1]]
                if edge[0] is not None:
                    found[edge] = name
        return found

    @property
    def into(self) -> list[Edge]:
        return [*self.given.values(), *([self.x] if self.x else [])]

    @property
    def within(self) -> tuple[list[Node], dict[Node, list[Edge]]]:
        """Where the nodes of the call itself begin, and where they end."""
        return [edge[0] for edge in self.results.values()], {edge[0]: [] for edge in self.into}


@dataclass(eq=False)
class Surroundings:
    """The graph around all recorded calls; dropped when the recording ends."""

    weights: dict[Edge, WeightKey] = field(default_factory=dict)
    _places: dict[Call, _Place] = field(default_factory=dict)
    _order: dict[Call, int] = field(default_factory=dict)
    _results: dict[Edge, tuple[Call, str]] = field(default_factory=dict)
    _sites: dict[Edge, Call] = field(default_factory=dict)
    _bridges: Bridges = field(default_factory=Bridges)
    _ways: dict[Edge, dict[Call, Way]] = field(default_factory=dict)
    _on_the_way: dict[Edge, dict[Node, set[Call]]] = field(default_factory=dict)
    _continued: set[Call] = field(default_factory=set)
    _hooked: dict[Node, None] = field(default_factory=dict)

    def add(
        self,
        call: Call,
        arguments: Mapping[str, Any],
        results: Mapping[str, Tensor],
        earlier: list[Call],
    ) -> list[Node]:
        """Find the place of a new call, and link it to the one of its layer that it carries on.

        Returns:
            The nodes of module hooks on the way that its state took, found for the first time.
        """
        known = len(self._hooked)
        given = parts_of(arguments.get("hx"))
        place = _Place(_edges(results), _edges(given), edge_of(data(arguments["input"])))
        if place.given:
            call.link = self._attached(call, place)
        elif given:
            call.link = self._detached(call, earlier)
        if call.link:
            self._continued.add(call.link.before)
            call.ragged |= call.link.before.ragged
        self._places[call] = place
        self._order[call] = len(self._order)
        self._results |= {edge: (call, name) for name, edge in place.results.items()}
        entered = (*place.given.values(), *place.held) if call.link else ()
        sites = [*place.results.values(), *entered]
        for edge in sites:
            self._sites.setdefault(edge, call)
        return list(self._hooked)[known:] if len(self._hooked) > known else []

    def _attached(self, call: Call, place: _Place) -> Link | None:
        """The link to the call that this one's state was computed from, if it is handed on."""
        bridges = {n: self._bridges.to(edge, self._sites) for n, edge in place.given.items()}
        followed = {site for bridge in bridges.values() for site in bridge.terms}
        opaque = {site for bridge in bridges.values() for site in bridge.opaque}
        own = self._calls(followed, call.layer) or self._calls(opaque, call.layer)
        for site in () if own else {*followed, *opaque}:
            if self._sites[site].layer != call.layer:
                self._sites[site].passed_to.add(call.layer)
        if not own:
            return None
        free = [other for other in own if other not in self._continued]
        if not free or place.x in set(place.given.values()):
            call.branches = True
            return None
        before = free[-1]
        registers = self._registers(before)
        on_the_way = (node for b in bridges.values() for node, _ in b.between)
        self._hooked |= dict.fromkeys(n for n in on_the_way if type(n).__name__ == HOOKED)
        same = {n for n, e in place.given.items() if registers.get(e) == (False, n)}
        kept: dict[str, Bridge] = {}
        for letter, bridge in bridges.items():
            towards = bridge.towards(registers)
            if not towards.terms:
                opaque |= bridge.nonzero(())
            else:
                kept[letter] = towards
                opaque |= bridge.nonzero(registers)
        reads = {n: _terms(bridge.terms, registers) for n, bridge in kept.items() if n not in same}
        if not call.form.stepped and not _fit(before, call, reads):
            opaque |= {site for bridge in bridges.values() for site in bridge.nonzero(())}
            kept, reads, same = {}, {}, set()
        between = self._mark(before, kept, registers)
        for letter, edge in place.given.items():
            if letter in kept and before in self._ways.get(edge, {}):
                between[self._ways[edge][before]] = letter
        letters = frozenset(kept)
        read = {registers[site] for bridge in kept.values() for site in bridge.terms}
        altered = [edge for edge in (place.given[n] for n in kept) if edge not in self._sites]
        inner = [edge for bridge in kept.values() for edge in {*bridge.between} & {*altered}]
        return Link(
            call,
            before,
            terms=reads,
            letters=letters,
            results=frozenset(name for entered, name in read if not entered),
            same=frozenset(same),
            altered=frozenset(n for n in letters if place.given[n] not in self._sites),
            between=between,
            opaque=any(self._sites[site].layer == call.layer for site in opaque),
            plain=len(set(altered)) == len(altered) == len(inner),
        )

    def _calls(self, sites: Collection[Edge], layer: str) -> list[Call]:
        """The calls of a layer whose results are at these places, in order."""
        found = {self._results[e][0] for e in sites if e in self._results}
        return sorted((c for c in found if c.layer == layer), key=lambda c: self._order[c])

    def _registers(self, before: Call) -> dict[Edge, tuple[bool, str]]:
        """What of a call the next one may read: its results, and the state that entered it."""
        place = self._places[before]
        entered = {**place.held, **{e: n for n, e in place.given.items()}} if before.link else {}
        return {
            **{edge: (True, name) for edge, name in entered.items()},
            **{edge: (False, name) for name, edge in place.results.items()},
        }

    def _mark(
        self,
        before: Call,
        bridges: Mapping[str, Bridge],
        registers: Mapping[Edge, tuple[bool, str]],
    ) -> dict[Way, str]:
        """Remember the tensors and nodes on the way from a call to what is computed from it."""
        ways: dict[Way, str] = {}
        for bridge in bridges.values():
            for edge, terms in bridge.between.items():
                known = self._ways.setdefault(edge, {})
                if before not in known:
                    known[before] = _way(before, terms, registers)
                ways[known[before]] = ""
            for edge, nodes in bridge.nodes.items():
                users = self._on_the_way.setdefault(edge, {})
                for node in nodes:
                    users.setdefault(node, set()).add(before)
        return ways

    def _detached(self, call: Call, earlier: list[Call]) -> Link | None:
        """The link to the latest call that left the same state, with nothing handed back."""
        state = call.state(call.given)
        for before in reversed(earlier[-LATEST:]):
            if before in self._continued or not _fit(before, call, {}):
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return Link(call, before)
        return None

    def _find_tails(
        self, places: Mapping[Call, _Place], roots: list[Node], inside: Mapping[Node, list[Edge]]
    ) -> None:
        """Find the states that the last calls leave: mixed as they would be for another call.

        After the last step too the loss reads `m * h_new + (1 - m) * h`, and reads it there.
        """
        last = [
            call
            for call in places
            if call.link and call.link.altered and call not in self._continued and not call.tails
        ]
        users = users_by_edge(roots, inside) if last else {}
        for call in last:
            registers = self._registers(call)
            waiting, seen = list(registers), set[Edge]()
            while waiting and len(seen) < SEARCHED:
                edge = waiting.pop()
                for node in users.get(edge, ()):
                    if node in self._on_the_way.get(edge, {}) or node in inside:
                        continue
                    for number in range(len(node._input_metadata)):
                        above = (node, number)
                        if above in seen or above in self._sites:
                            continue
                        seen.add(above)
                        bridge = self._bridges.to(above, self._sites).towards(registers)
                        read = {registers[site][0] for site in bridge.terms}
                        if len(read) == 2 and _is_state(above, bridge.terms):
                            found = self._mark(call, {"": bridge}, registers)
                            call.tails = (*call.tails, *found)
                        elif len(read) == 1:
                            waiting.append(above)

    @property
    def layers(self) -> set[str]:
        """The layers that were called."""
        return {call.layer for call in self._places}

    def goes_on(self, call: Call) -> bool:
        """Whether another call carries on the state of this one."""
        return call in self._continued

    def watch(self, roots: Roots, to: Pass) -> list[RemovableHandle]:
        """Hooks that tell a pass by which ways gradients reach states and weights."""
        places = self._places.copy()  # another thread may be calling layers
        starts = [edge[0] for edge in (edge_of(root) for root, _ in roots) if edge]
        inside = {
            edge[0]: place.into for place in places.values() for edge in place.results.values()
        }
        self._find_tails(places, starts, inside)
        ways = {edge: tuple(of.values()) for edge, of in self._ways.items()}
        on_the_way = {edge: dict(users) for edge, users in self._on_the_way.items()}
        states: dict[Edge, tuple[Call, str]] = {}
        for call, place in places.items():
            if call.form.stepped:  # its results may be used inside the call itself
                states |= {edge: (call, name) for name, edge in place.results.items()}
            if call.link:
                results = places[call.link.before].results
                states |= {results[n]: (call.link.before, n) for n in call.link.results}
        sites: dict[Call, dict[Edge, Way]] = {}
        held = {
            edge: (call, name)
            for call, place in places.items()
            for edge, name in place.held.items()
        }

        def sites_of(before: Call) -> dict[Edge, Way]:
            """What of a call a later one may read, each as a way of its own."""
            if before not in sites:
                registers = self._registers(before)
                sites[before] = {
                    edge: _way(before, {edge: (whole(edge),)}, registers) for edge in registers
                }
            return sites[before]

        def keep(node: Node, edge: Edge, gradient: Tensor) -> None:
            if edge in self.weights:
                add(to.beside, self.weights[edge], gradient)
                return
            onwards = on_the_way.get(edge, {}).get(node, set())
            returned = False
            for before in onwards:
                if edge in sites_of(before):
                    returned = True
                    add(to.returned.setdefault(before, {}), sites_of(before)[edge], gradient)
            followed = {before.layer for before in onwards}
            for way in ways.get(edge, ()):
                if way.before.layer not in followed:
                    add(to.between, way, gradient)
            if edge in states and not returned:
                add(to.entered, states[edge], gradient)
            if edge in held and onwards and type(node).__name__ != HOOKED:
                add(to.given, held[edge], gradient)

        def look(node: Node, edge: Edge, gradient: Tensor) -> None:
            try:
                keep(node, edge, gradient)
            except Exception as error:  # not into the user's backward pass
                why = f"looking at the backward pass failed, {type(error).__name__}: {error}"
                to.problems |= dict.fromkeys(self.layers, why)

        edges = {*states, *ways, *self.weights}
        for root, gradient in roots:
            edge = edge_of(root)
            if edge in edges and edge is not None:
                look(None, edge, gradient)
        users = list(users_of(edges, starts, inside))
        beside = {node for node, used in users if any(edge in self.weights for _, edge in used)}
        for place in places.values() if beside else ():
            starts, ends = place.within
            ends |= {edge[0]: [] for edge in self.weights}
            for node, used in users_of(self.weights, starts, ends):
                for _, edge in used if node in beside else ():
                    to.inside.add(self.weights[edge][0])
        for call, place in places.items():  # other recorded calls that read a state
            own = {place.given[n] for n in call.link.letters} if call.link else set()
            read = {edge for edge in place.into if edge not in own} & {*states, *ways}
            if read:
                users += users_of(read, *place.within)
        return [on_inputs(node, used, look) for node, used in users]


def _way(before: Call, terms: Terms, registers: Mapping[Edge, tuple[bool, str]]) -> Way:
    """A tensor between two calls, without the graph that it was found in."""
    return Way(before, _terms(terms, registers))


def _is_state(edge: Edge, terms: Terms) -> bool:
    """Whether a tensor is a mix of states, and not a collection of them: it has their shape."""
    return all(shape_at(edge) == shape_at(site) for site in terms)


def _terms(
    terms: Terms, registers: Mapping[Edge, tuple[bool, str]]
) -> tuple[tuple[bool, str, tuple[int, ...], Term], ...]:
    """The same by what is read of a call, in place of where that is in the graph."""
    return tuple(
        (*registers[site], shape_at(site), term) for site, each in terms.items() for term in each
    )


def _edges(tensors: Mapping[str, Tensor]) -> dict[str, Edge]:
    """Where the gradients of some tensors arrive, of those that get one."""
    edges = ((name, edge_of(tensor)) for name, tensor in tensors.items())
    return {name: edge for name, edge in edges if edge}


def _fit(before: Call, call: Call, terms: Mapping[str, ReadTerms]) -> bool:
    """Whether two calls can be one sequence.

    No state may read outputs of earlier steps. Samples that end at steps of their own must stay in
    their places. In a stack that reads both ways each layer is pulled back by itself, so that a
    unit can read itself alone.
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
