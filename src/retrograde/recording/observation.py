"""Hook a backward pass to tell where the gradients of states and weights come from.

The gradient of a state that is handed from call to call is a sum: what the loss gives to it, and
what comes back from the call after. The two are told apart where they are added, at the nodes of
the autograd graph that use the state: a node that leads to the call after does not count, all
others belong to the loss. The same holds for every tensor in between (entry_maps.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from retrograde.recording.backward_calls import Roots
from retrograde.recording.backward_pass import BackwardPass, add
from retrograde.recording.calls import Call, Intermediate
from retrograde.recording.entry_maps import HOOKED
from retrograde.recording.graph import Edge, Node, edge_of, on_inputs, users_of
from retrograde.recording.loops import find_by_hand, find_fed_back, find_tails
from retrograde.recording.places import CallEdges
from retrograde.recording.states import StateTracker


def observe(tracker: StateTracker, roots: Roots, to: BackwardPass) -> list[RemovableHandle]:
    """Hook a backward pass that is about to begin.

    Args:
        tracker: of all recorded calls.
        roots: where the pass begins.
        to: where the gradients are kept.

    Returns:
        The hooks, to be removed when it ends.
    """
    at = [edge for edge in (edge_of(root) for root, _ in roots) if edge]
    starts, inside = [node for node, _ in at], tracker.places.inside
    seen, nodes = tracker.places.behind(at)
    places = tracker.places.concerned(nodes, tracker.after)
    reached = {call: place for call, place in places.items() if place.last & nodes}
    find_by_hand(tracker, places, roots)
    find_tails(tracker, reached, starts)
    find_fed_back(tracker, reached)
    watched = _Watched.of(tracker, seen, places)
    look = _keeping(tracker, watched, to)
    states = {*watched.states, *watched.intermediates}
    edges = states | watched.weights
    for root, gradient in roots:
        start = edge_of(root)
        if start in edges and start is not None:
            look(None, start, gradient)
    users = list(users_of(edges, starts, inside))
    beside = {node for node, used in users if any(edge in watched.weights for _, edge in used)}
    if beside:
        to.inside |= tracker.places.using(beside, tracker.weights.copy())
    for call, place in places.items():  # other recorded calls that read a state
        if not place.inputs and call.origin and len(call.origin.letters) == len(place.given):
            continue
        own = {place.given[n] for n in call.origin.letters} if call.origin else set()
        if read := {edge for edge in place.into if edge not in own} & states:
            users += users_of(read, *place.within)
    handles = [on_inputs(node, used, look) for node, used in users]
    for call in places:
        for begin in tracker.starting.get(call, ()):
            handles += begin()
    return handles


@dataclass(frozen=True, eq=False)
class _Watched:
    """The tensors of a pass whose gradients are told apart, by where these arrive.

    Attributes:
        states: results of calls that other calls may continue from.
        held: parts of the states that entered calls.
        intermediates: tensors between two calls.
        users_between: the nodes that lead from a tensor to the call after, and from which calls.
        weights: tensors that layers use as weights.
    """

    states: Mapping[Edge, tuple[Call, str]]
    held: Mapping[Edge, tuple[Call, str]]
    intermediates: Mapping[Edge, tuple[Intermediate, ...]]
    users_between: Mapping[Edge, Mapping[Node, set[Call]]]
    weights: set[Edge]

    @staticmethod
    def of(tracker: StateTracker, seen: set[Edge], places: Mapping[Call, CallEdges]) -> "_Watched":
        """Those among the tensors that a pass comes to.

        Args:
            tracker: of all recorded calls.
            seen: where gradients arrive in the pass.
            places: the calls that it may concern.
        """
        between, users = tracker.intermediates, tracker.users_between
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
        return _Watched(
            states,
            {
                edge: (call, name)
                for call, place in places.items()
                for edge, name in place.held.items()
            },
            {edge: tuple(between[edge].values()) for edge in between.keys() & seen},
            {edge: dict(users[edge]) for edge in users.keys() & seen},
            tracker.weights.copy().keys() & seen,  # another thread may compute a weight just now
        )


def _keeping(
    tracker: StateTracker, watched: _Watched, to: BackwardPass
) -> Callable[[Node, Edge, Tensor], None]:
    """What keeps the gradient that a node gives to a tensor, by where it comes from.

    A weight that is used beside the layers gets a gradient of its own. Of a state or a tensor in
    between, what a node that leads to the call after gives has come back through that call; what
    all other nodes give is the loss's.
    """
    states, held, weights = watched.states, watched.held, tracker.weights
    intermediates, users_between = watched.intermediates, watched.users_between
    sites: dict[Call, Mapping[Edge, Intermediate]] = {}

    def keep(node: Node, edge: Edge, gradient: Tensor) -> None:
        if edge in weights:
            add(to.beside, weights[edge], gradient)
            return
        onwards = users_between.get(edge, {}).get(node, set())
        returned = False
        for before in onwards:
            if before not in sites:
                sites[before] = tracker.sites_of(before)
            if edge in sites[before]:
                returned = True
                add(to.returned.setdefault(before, {}), sites[before][edge], gradient)
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
            to.problems |= dict.fromkeys(tracker.layers, why)

    return look
