"""Graphs made of graphs: routes cut, adjoints scaled, layers renamed and joined."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import CONSTANT_NODE, Diagonal, Edge, Opaque, Use, Weight
from retrograde.cells.graph import Clip, Graph

Factors = Mapping[str, Float[Tensor, "*L _"]]
"""What clipping policies multiply adjoints by: that of each pre-activation by its node, [*L, H];
that of a layer's whole state, and of all that goes back through its recurrent weights, by the names
that `Clip` has for them, [*L, 1]."""


def cut(graph: Graph, labels: Container[str]) -> Graph:
    """The step without the derivative along some edges, which come from the constant then."""

    def of(edge: Edge) -> Edge:
        if isinstance(edge, Opaque):
            kept = {ends: route for ends, route in edge.routes.items() if route not in labels}
            return replace(edge, routes=kept, complete=edge.complete and kept == edge.routes)
        return replace(edge, source=CONSTANT_NODE) if edge.route in labels else edge

    return replace(graph, edges=tuple(map(of, graph.edges)))


def scaled(graph: Graph, factors: Factors) -> Graph:
    """The step with the adjoints multiplied by what its policies chose."""
    by_node, by_route = dict(graph.scales), dict[str, Tensor]()
    for clip in graph.clips:
        nodes = {node: factors[node] for node in clip.pre_activations if node in factors}
        if clip.all in factors:
            nodes |= dict.fromkeys(clip.state, factors[clip.all])
        for node, factor in nodes.items():
            by_node[node] = by_node[node] * factor if node in by_node else factor
        if clip.crossing in factors:
            by_route |= dict.fromkeys(clip.recurrent, factors[clip.crossing])

    def of(edge: Edge) -> Edge:
        if isinstance(edge, Opaque):
            return replace(edge, scales={**edge.scales, **_some(by_route, edge.routes.values())})
        if edge.route not in by_route or edge.source not in graph.before:
            return edge
        factor = by_route[edge.route]
        if isinstance(edge, Weight):
            return replace(edge, scale=factor if edge.scale is None else edge.scale * factor)
        return replace(edge, factor=factor if edge.factor is None else edge.factor * factor)

    return replace(graph, edges=tuple(map(of, graph.edges)), scales=by_node, clips=())


def _some(named: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    return {name: named[name] for name in wanted if name in named}


def moved(slot: slice, offset: int) -> slice:
    """The same entries where all begin later."""
    return slice(slot.start + offset, slot.stop + offset)


def renamed(graph: Graph, suffix: str, route_suffix: str, state: int, inputs: int) -> Graph:
    """The step of a layer inside a larger cell.

    Args:
        graph: the layer's.
        suffix: what its nodes and parameters end in there.
        route_suffix: what its labels end in there.
        state: where its part of the state begins.
        inputs: where its part of x begins.
    """

    def node(name: str) -> str:
        return name and name + suffix

    def label(name: str) -> str:
        return name and name + route_suffix

    def use(of: Use | None) -> Use | None:
        if of is None:
            return None
        return Use(of.parameter + suffix, of.rows, of.operand, of.diagonal, of.columns)

    def edge(of: Edge) -> Edge:
        if isinstance(of, Opaque):
            return replace(
                of,
                sources={node(name): slot for name, slot in of.sources.items()},
                targets={node(name): slot for name, slot in of.targets.items()},
                reads=node(of.reads),
                routes={
                    (node(s), t if of.ways else node(t)): label(r)
                    for (s, t), r in of.routes.items()
                },
                crossing=frozenset(map(label, of.crossing)),
                suffix=of.suffix + suffix,
                scales={label(r): scale for r, scale in of.scales.items()},
            )
        source, target = of.source and of.source + suffix, of.target + suffix
        route = of.route and of.route + route_suffix  # written out, as there are many
        if isinstance(of, Diagonal):
            return Diagonal(source, target, of.factor, route, use(of.use), of.at)
        return Weight(source, target, of.matrix, of.rows, route, use(of.use), of.scale)

    def all_moved(slots: Mapping[str, slice], offset: int) -> dict[str, slice]:
        return {node(name): moved(slot, offset) for name, slot in slots.items()}

    return Graph(
        edges=tuple(map(edge, graph.edges)),
        before=all_moved(graph.before, state),
        after=all_moved(graph.after, state),
        reads=all_moved(graph.reads, inputs),
        scales={node(name): scale for name, scale in graph.scales.items()},
        clips=tuple(
            Clip(
                clip.policy,
                clip.suffix + suffix,
                tuple(map(node, clip.state)),
                tuple(map(node, clip.pre_activations)),
                tuple(map(label, clip.recurrent)),
            )
            for clip in graph.clips
        ),
    )


def joined(graphs: Sequence[Graph], links: Sequence[Sequence[Edge]]) -> Graph:
    """Several graphs as one, the edges that lead on from the first n of them behind the n-th."""
    edges: list[Edge] = []
    for graph, on in zip(graphs, links, strict=True):
        edges += [*graph.edges, *on]
    return Graph(
        edges=tuple(edges),
        before={name: slot for graph in graphs for name, slot in graph.before.items()},
        after={name: slot for graph in graphs for name, slot in graph.after.items()},
        reads={name: slot for graph in graphs for name, slot in graph.reads.items()},
        scales={name: scale for graph in graphs for name, scale in graph.scales.items()},
        clips=tuple(clip for graph in graphs for clip in graph.clips),
    )
