"""Which call carries on the state of which, and who else uses that state.

The gradient of a state that is handed from call to call is a sum: what the loss gives to it, and
what comes back from the call after. The two are told apart where they are added, at the nodes of
the autograd graph that use the state: what lies on the way to the call after does not count, all
else is the loss.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from retrograde.record.calls import OUTPUT, Call, Link, WeightKey, data, parts_of
from retrograde.record.graph import (
    Edge,
    Node,
    Roots,
    edge_of,
    handed_through,
    nodes_between,
    on_inputs,
    through,
    users_of,
)
from retrograde.record.passes import Pass, add

LATEST = 8
"""A detached state is looked for among so many of the latest calls of its layer."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a call sits in the graph: the edges of its results and of what went into it."""

    results: Mapping[str, Edge]
    given: Mapping[str, Edge]
    x: Edge | None

    @property
    def into(self) -> list[Edge]:
        return [*self.given.values(), *([self.x] if self.x else [])]

    def behind(self, looking: Collection[Node]) -> "_Place":
        """The same, with what went into it as it was before some module hooks."""
        given = {name: through(edge, looking) for name, edge in self.given.items()}
        return _Place(self.results, given, self.x and through(self.x, looking))

    @property
    def within(self) -> tuple[list[Node], dict[Node, list[Edge]]]:
        """Where the nodes of the call itself begin, and where they end."""
        return [edge[0] for edge in self.results.values()], {edge[0]: [] for edge in self.into}


@dataclass(eq=False)
class Surroundings:
    """The graph around all recorded calls; dropped when the recording ends.

    Attributes:
        weights: the tensors that layers use as weights.
        looking: the nodes of module hooks through which a state was handed on, and of which layer.
    """

    weights: dict[Edge, WeightKey] = field(default_factory=dict)
    looking: dict[Node, str] = field(default_factory=dict)
    _places: dict[Call, _Place] = field(default_factory=dict)
    _results: dict[Edge, tuple[Call, str]] = field(default_factory=dict)
    _on_the_way: dict[Edge, set[Node]] = field(default_factory=dict)
    _continued: set[Call] = field(default_factory=set)

    def add(
        self,
        call: Call,
        arguments: Mapping[str, Any],
        results: Mapping[str, Tensor],
        earlier: list[Call],
    ) -> set[Node]:
        """Find the place of a new call, and link it to the one of its layer that it carries on.

        Returns:
            The nodes of module hooks through which it was handed its state, found for the first
            time.
        """
        known = set(self.looking)
        given = parts_of(arguments.get("hx"))
        place = _Place(_edges(results), _edges(given), edge_of(data(arguments["input"])))
        if place.given:
            call.link = self._attached(call, place, earlier)
        elif given:
            call.link = self._detached(call, earlier)
        if call.link:
            self._continued.add(call.link.before)
        self._places[call] = place
        self._results |= {edge: (call, name) for name, edge in place.results.items()}
        return set(self.looking) - known

    def _attached(self, call: Call, place: _Place, earlier: list[Call]) -> Link | None:
        """The link to the call that this one's state was computed from, if it is handed on."""
        behind = {letter: handed_through(edge) for letter, edge in place.given.items()}
        edges = list(behind.values())
        crossed = any(
            self._results.get(edge, (None, letter))[1] not in (letter, OUTPUT)
            for letter, edge in behind.items()
        )
        if crossed or len(set(edges)) < len(edges):  # a state for h and c, or one for the other
            return None
        sources: dict[str, set[Edge]] = {}
        on_the_way: dict[Edge, set[Node]] = {}
        looking: set[Node] = set()
        for letter, edge in place.given.items():
            sources[letter], passed, hooks = nodes_between(edge, self._results)
            looking |= hooks
            for found in sources[letter]:
                on_the_way.setdefault(found, set()).update(passed)
        calls = {self._results[edge][0] for found in sources.values() for edge in found}
        own = [other for other in calls if other in earlier]
        for other in calls if not own else ():
            if other.layer != call.layer:
                other.passed_to.add(call.layer)
        if len(own) != 1:  # a tensor may hold the states of several layers, of this one only one
            return None
        before = own[0]
        alone = before not in self._continued and place.x not in {*on_the_way, *edges}
        if not alone or not _fit(before, call):
            return None
        results = set(self._places[before].results.values())
        sources = {letter: found & results for letter, found in sources.items()}
        on_the_way = {edge: passed for edge, passed in on_the_way.items() if edge in results}
        equal = call.state(call.given) == before.state(before.last)
        attached = call.state(
            {n: torch.full_like(part, bool(sources.get(n))) for n, part in call.given.items()}
        )
        self._on_the_way |= on_the_way
        self.looking |= dict.fromkeys(looking, call.layer)
        return Link(
            before,
            equal & attached.bool(),
            {
                letter: frozenset(self._results[edge][1] for edge in found)
                for letter, found in sources.items()
                if found
            },
            frozenset(n for n, edge in behind.items() if sources[n] == {edge}),
        )

    def _detached(self, call: Call, earlier: list[Call]) -> Link | None:
        """The link to the latest call that left the same state, with nothing handed back."""
        state = call.state(call.given)
        for before in reversed(earlier[-LATEST:]):
            if before in self._continued or not _fit(before, call):
                continue
            same = (state == before.state(before.last)).all(1) & state.any(1)
            if bool(same.any()):
                return Link(before, torch.zeros_like(state, dtype=torch.bool), {}, frozenset())
        return None

    @property
    def layers(self) -> set[str]:
        """The layers that were called."""
        return {call.layer for call in self._places}

    def goes_on(self, call: Call) -> bool:
        """Whether another call carries on the state of this one."""
        return call in self._continued

    def watch(self, roots: Roots, to: Pass) -> list[RemovableHandle]:
        """Hooks that tell a pass by which ways gradients reach states and weights."""
        looking = self.looking.copy()  # another thread may be calling layers
        places = {call: place.behind(looking) for call, place in self._places.copy().items()}
        states: dict[Edge, tuple[Call, str]] = {}
        given: dict[Edge, tuple[Call, str]] = {}
        for call, place in places.items():
            if call.form.stepped:  # its results may be used inside the call itself
                states |= {edge: (call, name) for name, edge in place.results.items()}
            if call.link:
                results = places[call.link.before].results
                states |= {results[n]: (call.link.before, n) for n in call.link.results}
                given |= {place.given[n]: (call, n) for n in call.link.altered}

        def keep(node: Node, edge: Edge, gradient: Tensor) -> None:
            if edge in self.weights:
                add(to.beside, self.weights[edge], gradient)
            elif edge in given:
                add(to.entered_given, given[edge], gradient)
            elif node in self._on_the_way.get(edge, ()):
                add(to.returned, states[edge], gradient)
            else:
                add(to.entered, states[edge], gradient)

        edges = {*states, *given, *self.weights}
        for root, gradient in roots:
            edge = edge_of(root)
            edge = edge and through(edge, looking)
            if edge in edges and edge is not None:
                keep(None, edge, gradient)
        inside = {
            edge[0]: place.into for place in places.values() for edge in place.results.values()
        }
        starts = [
            through(edge, looking)[0] for edge in (edge_of(root) for root, _ in roots) if edge
        ]
        users = list(users_of(edges, starts, inside, looking))
        beside = {node for node, used in users if any(edge in self.weights for _, edge in used)}
        for place in places.values() if beside else ():
            starts, ends = place.within
            ends |= {edge[0]: [] for edge in self.weights}
            for node, used in users_of(self.weights, starts, ends, looking):
                for _, edge in used if node in beside else ():
                    to.inside.add(self.weights[edge][0])
        for call, place in places.items():  # other recorded calls that read a state
            own = set(place.given.values()) if call.link else set()
            read = {edge for edge in place.into if edge not in own} & {*states, *given}
            if read:
                users += users_of(read, *place.within, looking)
        return [on_inputs(node, places, keep) for node, places in users]


def _edges(tensors: Mapping[str, Tensor]) -> dict[str, Edge]:
    """Where the gradients of some tensors arrive, of those that get one."""
    edges = ((name, edge_of(tensor)) for name, tensor in tensors.items())
    return {name: edge for name, edge in edges if edge}


def _fit(before: Call, call: Call) -> bool:
    """Whether two calls can be one sequence: the same samples, none of which ended earlier."""
    ragged = any(one.sequence(one.x)[1] is not None for one in (before, call))
    return before.batch == call.batch and not ragged
