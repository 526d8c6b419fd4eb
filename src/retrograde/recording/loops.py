"""What the loop around the calls of a layer does with its state, beside handing it on.

A loop may start a backward pass at a state by hand, mix the last state with the one before, or read
its own outputs. That is found when a backward pass begins, in the graph that it will go through.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from retrograde.recording.backward_calls import Roots
from retrograde.recording.calls import Call, Intermediate
from retrograde.recording.entry_maps import Terms, shape_at
from retrograde.recording.graph import SEARCHED, Edge, Node, depends_on, edge_of, users_by_edge
from retrograde.recording.places import CallEdges
from retrograde.recording.states import StateTracker


def find_by_hand(tracker: StateTracker, places: Mapping[Call, CallEdges], roots: Roots) -> None:
    """Find the calls at whose state the pass starts, where the next call began with a leaf.

    What has come back to such a leaf the loop hands on, as in `state.backward(leaf.grad)`.
    """
    leaves = {
        call.origin.before
        for call, place in places.items()
        if call.origin and place.given and not call.origin.letters
    }
    for edge in (edge_of(root) for root, _ in roots):
        if edge in tracker.results:
            call, name = tracker.results[edge]
            call.by_hand |= call in leaves and name in call.last


def find_tails(
    tracker: StateTracker, places: Mapping[Call, CallEdges], starts: Iterable[Node]
) -> None:
    """Find the states that the last calls leave, mixed as they would be for another call.

    The loss reads `m * h_new + (1 - m) * h` after the last step as well.
    """
    last = [
        call
        for call in places
        if call.origin and call.origin.altered and call not in tracker.after and not call.tails
    ]
    users = users_by_edge(starts, tracker.places.inside) if last else {}
    for call in last:
        call.tails = tuple(_tails_of(call, tracker, users))


def _tails_of(
    call: Call, tracker: StateTracker, users: Mapping[Edge, Sequence[Node]]
) -> Iterator[Intermediate]:
    """The tensors that are mixed of the results of a call and of the state that entered it.

    Args:
        call: the call.
        tracker: of all calls.
        users: the nodes that use each tensor of the graph.
    """
    readable = tracker.readable(call)
    waiting, seen = list(readable), set[Edge]()
    while waiting and len(seen) < SEARCHED:
        edge = waiting.pop()
        for node in users.get(edge, ()):
            if node in tracker.users_between.get(edge, {}) or node in tracker.places.inside:
                continue
            for number in range(len(node._input_metadata)):
                above = (node, number)
                if above in seen or above in tracker.sites:
                    continue
                seen.add(above)
                entry_map = tracker.maps.to(above, tracker.sites).restricted_to(readable)
                read = {readable[site][0] for site in entry_map.terms}
                if len(read) == 2 and _is_state(above, entry_map.terms):
                    yield from tracker.mark(call, {"": entry_map}, readable)
                elif len(read) == 1:
                    waiting.append(above)


def _is_state(edge: Edge, terms: Terms) -> bool:
    """Whether a tensor is a mix of states, and not a collection of them: it has their shape."""
    return all(shape_at(edge) == shape_at(site) for site in terms)


def find_fed_back(tracker: StateTracker, places: Mapping[Call, CallEdges]) -> None:
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
            edge[0]: [*place.inputs, *tracker.read.get(call, place.given.values())]
            for call, place in places.items()
            for edge in place.results.values()
        }
        own = {edge[0] for call in calls for edge in places[call].results.values()}
        known: dict[Node, bool] = dict.fromkeys(own, True)
        for call in reading:
            for edge in places[call].inputs:
                call.fed_back |= _reads_any(tracker, edge, known, of_call)


def _reads_any(
    tracker: StateTracker, edge: Edge, known: dict[Node, bool], of_call: Mapping[Node, list[Edge]]
) -> bool:
    """Whether a tensor was computed from what `known` says True of, entry by entry."""
    if not depends_on(edge[0], known, of_call):
        return False
    entry_map = tracker.maps.to(edge, tracker.sites)
    sites = entry_map.nonzero(()) | entry_map.opaque
    return not sites or any(depends_on(site[0], known, of_call) for site in sites)
