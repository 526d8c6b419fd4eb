"""Steps whose Jacobian leads from each unit to itself alone, or to few others of the same place.

    delta_{k-1}[i] = sum_j F_k[i, j] * delta_k[j]          unit by unit, i and j parts of the state

Where that is so, a product of Jacobians is as small as one of them, and lags need no row each
(`retrograde.engine.unitwise`). It is read off the graph: no path from a part of the state before to
one after may pass a weight. What no step reads of the state before, as the output of a matrix
memory, takes no part: it is left after one step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import Diagonal, Opaque
from retrograde.cells.graph import Graph

Ways = dict[str, Tensor | None]
"""The nodes after the step that a node leads to, and the factor on the way; None for 1."""


@dataclass(frozen=True, eq=False)
class Group:
    """Parts of the state of the same size, unit j of each leading to unit j of any of them.

    Attributes:
        before: the nodes before the step.
        slots: where they lie in the state.
        ways: for each node before, what it leads to: the node after and the factor.
        after: the nodes after the step, in the same order.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    slots: tuple[slice, ...]
    ways: tuple[Ways, ...]

    def factors(self, shape: Sequence[int], like: Tensor) -> Float[Tensor, "n n *L H"]:
        """F of every step, with leading axes of this shape."""
        width = self.slots[0].stop - self.slots[0].start
        rows = []
        for way in self.ways:
            for node in self.after:
                factor = way.get(node, like.new_zeros(()))
                factor = like.new_ones(()) if factor is None else factor
                rows.append(factor.expand(*shape, width))
        return torch.stack(rows).view(len(self.before), -1, *shape, width)


def unitwise(graph: Graph) -> tuple[Group, ...] | None:
    """The parts of the state that steps read, in groups; None if a path passes a weight."""
    before = [node for node in graph.before if node in graph.leaving]
    by_slot = {_ends(slot): node for node, slot in graph.after.items()}
    if any(_ends(graph.before[node]) not in by_slot for node in before):
        return None
    after = [by_slot[_ends(graph.before[node])] for node in before]
    found: dict[str, Ways] = {}
    try:
        ways = [_ways(graph, node, frozenset(after), found) for node in before]
    except _Mixes:
        return None
    groups = list[list[int]]()  # numbers of nodes that lead to each other
    for number, way in enumerate(ways):
        own = {number, *(after.index(node) for node in way)}
        for group in [group for group in groups if own & set(group)]:
            own |= set(group)
            groups.remove(group)
        groups.append(sorted(own))
    sizes = [graph.before[node].stop - graph.before[node].start for node in before]
    if any(len({sizes[number] for number in group}) > 1 for group in groups):
        return None
    return tuple(
        Group(
            tuple(before[number] for number in group),
            tuple(after[number] for number in group),
            tuple(graph.before[before[number]] for number in group),
            tuple(ways[number] for number in group),
        )
        for group in groups
    )


class _Mixes(Exception):
    """A path from state to state passes a weight."""


def _ends(slot: slice) -> tuple[int, int]:
    return slot.start, slot.stop


def _ways(graph: Graph, node: str, after: frozenset[str], found: dict[str, Ways]) -> Ways:
    """Where the paths from a node end, among these nodes.

    Raises:
        _Mixes: if one of them passes anything but factors.
    """
    if node in found:
        return found[node]
    ways: Ways = {node: None} if node in after else {}
    for edge in graph.leaving.get(node, ()):
        if isinstance(edge, Opaque):
            raise _Mixes
        on = _ways(graph, edge.target, after, found)
        if on and (not isinstance(edge, Diagonal) or edge.at is not None):
            raise _Mixes
        factor = edge.factor if isinstance(edge, Diagonal) else None
        for target, more in on.items():
            way = _times(factor, more)
            if target in ways:
                other = ways[target]
                way = (1 if other is None else other) + (_one(graph) if way is None else way)
            ways[target] = way
    scale = graph.scales.get(node)
    found[node] = {target: _times(scale, way) for target, way in ways.items()}
    return found[node]


def _times(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other


def _one(graph: Graph) -> Tensor:
    """The number 1 in the data type of the step."""
    factors = (e.factor for e in graph.edges if isinstance(e, Diagonal) and e.factor is not None)
    return next(factors).new_ones(())
