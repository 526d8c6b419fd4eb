"""Where recorded calls sit in the autograd graph, and which of them a backward pass concerns.

Calls are looked up at the nodes that a pass comes to, so that a pass costs the same however many
there were before it. Calls and nodes are held, so that none can be taken for another one.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from torch import Tensor

from retrograde.declarations.reading import CallTensors
from retrograde.recording.calls import Call, WeightKey, data
from retrograde.recording.entry_maps import HOOKED
from retrograde.recording.graph import Edge, Node, edge_of, edges_behind, users_of


@dataclass(frozen=True, eq=False)
class CallEdges:
    """Where a call sits in the graph: the edges of its results and of what went into it.

    A module with backward hooks hands on what it was given as a tensor of its own; what its caller
    holds is in `held`, by the part of the state that it is. `number` counts the calls.
    """

    number: int
    results: Mapping[str, Edge]
    given: Mapping[str, Edge]
    x: Edge | None
    others: tuple[Edge, ...]

    @property
    def inputs(self) -> tuple[Edge, ...]:
        return self.others if self.x is None else (self.x, *self.others)

    @cached_property
    def held(self) -> dict[Edge, str]:
        found: dict[Edge, str] = {}
        for name, edge in self.given.items():
            while type(edge[0]).__name__ == HOOKED:
                edge = edge[0].next_functions[edge[1]]
                if edge[0] is not None:
                    found[edge] = name
        return found

    @cached_property
    def as_input(self) -> tuple[str, ...]:
        """The parts of the state that are the input, too."""
        return tuple(name for name, edge in self.given.items() if edge in self.inputs)

    @property
    def into(self) -> list[Edge]:
        return [*self.given.values(), *self.inputs]

    @property
    def last(self) -> set[Node]:
        """The last nodes of the call."""
        return {edge[0] for edge in self.results.values()}

    @property
    def near(self) -> set[Node]:
        """The nodes of which a pass that may concern this call goes through at least one.

        A leaf that it read is none of them: all calls may read one, and it is nobody's state.
        """
        read = {edge[0] for edge in (*self.into, *self.held) if not is_leaf(edge)}
        return read | self.last

    @property
    def within(self) -> tuple[list[Node], dict[Node, list[Edge]]]:
        """Where the nodes of the call itself begin, and where they end."""
        return [edge[0] for edge in self.results.values()], {edge[0]: [] for edge in self.into}


@dataclass(eq=False)
class Places:
    """All recorded calls by their nodes. Another thread may add calls at any time.

    Attributes:
        inside: the last nodes of each call, with the edges of what went into it.
    """

    inside: dict[Node, list[Edge]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)
    _edges: dict[Call, CallEdges] = field(default_factory=dict)
    _near: dict[Node, list[Call]] = field(default_factory=dict)
    _open: set[Node] = field(default_factory=set)
    _use_weights: dict[Node, set[str]] = field(default_factory=dict)
    _searched: set[Call] = field(default_factory=set)

    def __iter__(self) -> Iterator[Call]:
        return iter(self._edges)

    def __getitem__(self, call: Call) -> CallEdges:
        return self._edges[call]

    def items(self) -> list[tuple[Call, CallEdges]]:
        """All calls, in order."""
        return [*self._edges.items()]

    def edges_of(self, tensors: CallTensors) -> CallEdges:
        """Those of a new call, which is not added yet."""
        return CallEdges(
            next(self._numbers),
            _edges(tensors.results),
            _edges(tensors.given),
            edge_of(data(tensors.x)),
            tuple(edge for edge in map(edge_of, tensors.others) if edge),
        )

    def add(self, call: Call, edges: CallEdges) -> None:
        """Add a call."""
        self._edges[call] = edges
        for node in edges.near:
            self._near.setdefault(node, []).append(call)
        self._enter(call, edges)

    def _enter(self, call: Call, edges: CallEdges) -> None:
        for node in edges.last:
            self.inside[node] = edges.into
            if call.form.transparent:
                self._open.add(node)

    def forget(self, gone: Collection[Call]) -> None:
        """Let go of calls."""
        for node in {n for call in gone if call in self._edges for n in self._edges[call].near}:
            near = [call for call in self._near.pop(node, ()) if call not in gone]
            if near:
                self._near[node] = near
            self.inside.pop(node, None)
            self._open.discard(node)
        drop(self._edges, gone)
        for call, edges in self.items():
            self._enter(call, edges)
        self._use_weights.clear()
        self._searched.clear()

    def behind(self, roots: Iterable[Edge]) -> tuple[set[Edge], set[Node]]:
        """The edges and nodes that a pass comes to.

        What is inside a call is left out, unless its results may be used there.
        """
        return edges_behind(roots, self.inside, self._open)

    def concerned(
        self, nodes: Iterable[Node], after: Mapping[Call, Iterable[Call]]
    ) -> dict[Call, CallEdges]:
        """The calls that a pass through some nodes may concern, in order.

        Args:
            nodes: the nodes.
            after: the calls that go on from each, which the pass may concern without coming there.
        """
        near = {call for node in nodes for call in self._near.get(node, ())}
        near |= {later for call in near for later in after.get(call, ())}
        there = ((call, self._edges.get(call)) for call in near)
        found = [(call, edges) for call, edges in there if edges is not None]
        return dict(sorted(found, key=lambda each: each[1].number))

    def using(self, nodes: Iterable[Node], weights: Mapping[Edge, WeightKey]) -> set[str]:
        """The layers inside whose calls some nodes use weights. A call is searched only once."""
        for call, edges in self.items():
            if call in self._searched:
                continue
            self._searched.add(call)
            starts, ends = edges.within
            ends |= {edge[0]: [] for edge in weights}
            for node, used in users_of(weights, starts, ends):
                layers = {weights[edge][0] for _, edge in used}
                self._use_weights.setdefault(node, set()).update(layers)
        return {layer for node in nodes for layer in self._use_weights.get(node, ())}


def drop(store: dict[Any, Any], keys: Iterable[object]) -> None:
    """Take some keys out, if they are there."""
    for key in keys:
        store.pop(key, None)


def is_leaf(edge: Edge) -> bool:
    """Whether gradients end at a tensor: nothing that it was computed from gets one."""
    return type(edge[0]).__name__ == "AccumulateGrad"


def _edges(tensors: Mapping[str, Tensor]) -> dict[str, Edge]:
    """Where the gradients of some tensors arrive, of those that get one."""
    edges = ((name, edge_of(tensor)) for name, tensor in tensors.items())
    return {name: edge for name, edge in edges if edge}
