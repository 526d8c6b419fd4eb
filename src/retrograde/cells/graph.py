"""The derivative of one step as a value: a graph of named nodes, its edges labelled by route.

    x, h-, c-   --weights-->   a.input, a.forget, ...   --factors-->   c, h   -->   h+, c+

`h-` and `c-` are parts of the state before the step, `h+` and `c+` those after it, `a.input` is the
pre-activation of a gate. An edge says how its target changes with its source, everything else held:
by a factor for each unit (`Diagonal`), by a block of rows of a weight matrix (`Weight`), or by a
derivative that is known only as a function (`Opaque`). The source `""` is the constant: a bias is
an edge from it, and so is every edge that was cut, for it still says how a weight acts.

A cell gives its edges, and every question is answered by one function here, for all cells:
products with the Jacobian from both sides, its split by route, the gradients of parameters; what is
left if a route is cut or scaled; several graphs as one. These functions follow the definition, edge
by edge. What runs at every step of a recursion is plan.py, which folds the edges first.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.precision import no_autocast
from retrograde.clipping.inside import AbstractInside

CONSTANT_NODE = ""
"""The source of what does not depend on the state or the input."""

Change = Callable[[Tensor], Tensor]

Factors = Mapping[str, Float[Tensor, "*L _"]]
"""What clipping policies multiply adjoints by: that of each pre-activation by its node, [*L, H];
that of a layer's whole state, and of all that goes back through its recurrent weights, by the names
that `Clip` has for them, [*L, 1]."""


@dataclass(frozen=True, eq=False, slots=True)
class Use:
    """How an edge uses a parameter: `gradient[rows] = sum_b adjoint_b (x) operand_b`.

    Attributes:
        parameter: its name.
        rows: the rows of it that act here.
        operand: what they are multiplied by, shape [*L, M]; None for a bias.
        diagonal: whether unit is multiplied by unit, as a peephole does: the gradient is then
            `sum_b adjoint_b * operand_b`.
    """

    parameter: str
    rows: slice
    operand: Float[Tensor, "*L M"] | None = None
    diagonal: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """Entries start .. stop-1 of a node of this size."""

    start: int
    stop: int
    size: int


@dataclass(frozen=True, eq=False, slots=True)
class Diagonal:
    """target += factor * source, unit by unit.

    Attributes:
        source, target: the nodes that it joins.
        factor: shape [*L, H], or [H] where all samples have the same; None for 1.
        route: its label.
        use: the parameter that the factor is, if it is one.
        at: the part of the target that it leads to; None for all of it.
    """

    source: str
    target: str
    factor: Float[Tensor, "*L H"] | None = None
    route: str = ""
    use: Use | None = None
    at: Part | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Weight:
    """target += matrix[rows] @ source.

    Attributes:
        source, target: the nodes that it joins.
        matrix: the whole weight, shape [P, M].
        rows: its rows that belong to the target.
        route: its label.
        use: the parameter that the matrix is.
        scale: what an adjoint that passes here is multiplied by, shape [*L, 1]; None for 1. The
            gradient of the weight itself is not.
    """

    source: str
    target: str
    matrix: Float[Tensor, "P M"]
    rows: slice
    route: str = ""
    use: Use | None = None
    scale: Float[Tensor, "*L _"] | None = None


class AbstractDerivative(ABC):
    """The derivative of a step that is given as a function s_k = f(parameters, x_k, s_{k-1})."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers the parameters have together."""

    @abstractmethod
    def to_state(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L S"]:
        """Adjoint rows of s_k as those of s_{k-1}."""

    @abstractmethod
    def to_input(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L I"]:
        """Adjoint rows of s_k as those of x_k."""

    @abstractmethod
    def to_parameters(self, delta: Float[Tensor, "N *L S"]) -> Mapping[str, Tensor]:
        """Adjoint rows of s_k as gradients by name, [N, *shape], summed over the samples."""

    @abstractmethod
    def each(self, change: Change) -> "AbstractDerivative":
        """The same with all that belongs to samples changed in the same way."""


@dataclass(frozen=True, eq=False, slots=True)
class Opaque:
    """Edges from every part of the state before to every part after, known as one function.

    Attributes:
        sources: the parts before, and where each lies in the function's state.
        targets: the parts after, and where each lies there.
        reads: the node that is its x.
        derivative: the function's derivative.
        routes: the label of the edge from each source to each target; the edges that were cut are
            missing.
        crossing: the labels that count as crossings of recurrent weights.
        suffix: what the names of its parameters end in.
        scales: what an adjoint that passes along a label is multiplied by.
    """

    sources: Mapping[str, slice]
    targets: Mapping[str, slice]
    reads: str
    derivative: AbstractDerivative
    routes: Mapping[tuple[str, str], str]
    crossing: frozenset[str] = frozenset()
    suffix: str = ""
    scales: Mapping[str, Float[Tensor, "*L _"]] = field(default_factory=dict)

    def groups(
        self, wanted: Callable[[str], bool] | None = None, apart: Container[str] = ()
    ) -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
        """(targets, sources, label) of the edges that are pulled back together.

        Edges that are scaled, or whose label is to be kept `apart`, come one label at a time; the
        label of all others is "".
        """
        found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for target in self.targets:
            by_label: dict[str, list[str]] = {}
            for source in self.sources:
                route = self.routes.get((source, target))
                if route is not None and (wanted is None or wanted(route)):
                    label = route if route in self.scales or route in apart else ""
                    by_label.setdefault(label, []).append(source)
            for label, sources in by_label.items():
                found.setdefault((label, tuple(sources)), []).append(target)
        return [(tuple(targets), sources, label) for (label, sources), targets in found.items()]


Edge = Diagonal | Weight | Opaque


@dataclass(frozen=True, eq=False)
class Graph:
    """The linearised step, or many of them along leading axes *L (the last of these the samples).

    Attributes:
        edges: in forward order: those into a node come before those out of it.
        before: the nodes that are parts of s_{k-1}, and where each lies in it.
        after: the nodes that are parts of s_k, and where each lies in it.
        reads: the nodes that are parts of x_k, and where each lies in it.
        scales: what the adjoint of a node is multiplied by where a policy clips it, [*L, H] or
            [*L, 1].
        clips: where policies clip, and choose such factors from the whole adjoint.

    Raises:
        ValueError: for an edge into a node that stands behind one out of it.

    Example:
        >>> import torch
        >>> from retrograde.cells import LSTM
        >>> cell = LSTM(torch.zeros(8, 3), torch.zeros(8, 2))
        >>> graph = cell.linearise(cell.step(torch.zeros(1, 3), torch.zeros(1, 4)))
        >>> [(edge.source, edge.target) for edge in graph.edges if edge.route == "carousel"]
        [('c-', 'c')]
        >>> graph.inner_routes
        ('readout',)
    """

    edges: tuple[Edge, ...]
    before: Mapping[str, slice]
    after: Mapping[str, slice]
    reads: Mapping[str, slice]
    scales: Mapping[str, Float[Tensor, "*L _"]] = field(default_factory=dict)
    clips: "tuple[Clip, ...]" = ()

    def __post_init__(self) -> None:
        left: set[str] = set()
        for edge in self.edges:
            if isinstance(edge, Opaque):
                again = left & edge.targets.keys()
                left |= {*edge.sources, edge.reads}
            else:
                again = {edge.target} if edge.target in left else set()
                left.add(edge.source)
            if again:
                raise ValueError(
                    f"the edge to {', '.join(sorted(again))} stands behind one that leaves it: "
                    "edges into a node come before those out of it"
                )

    @property
    def state_size(self) -> int:
        """S."""
        return max(int(slot.stop) for slot in self.before.values())

    @property
    def input_size(self) -> int:
        """I."""
        return max(int(slot.stop) for slot in self.reads.values())

    @cached_property
    def leaving(self) -> "dict[str, list[Edge]]":
        """The edges by the node that they leave; an opaque one by each of its sources."""
        leaving: dict[str, list[Edge]] = {}
        for edge in self.edges:
            for source in _ends(edge)[0]:
                leaving.setdefault(source, []).append(edge)
        return leaving

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that edges use; those of functions are not among them."""
        uses = (edge.use for edge in self.edges if not isinstance(edge, Opaque))
        return tuple(dict.fromkeys(use.parameter for use in uses if use is not None))

    @property
    def routes(self) -> tuple[str, ...]:
        """The labels of the edges that leave the state before; they partition the Jacobian."""
        found: dict[str, None] = {}
        for edge in self.edges:
            if isinstance(edge, Opaque):
                found |= dict.fromkeys(edge.routes.values())
            elif edge.source in self.before:
                found[edge.route] = None
        return tuple(found)

    @property
    def inner_routes(self) -> tuple[str, ...]:
        """The labels of edges that lie inside the step."""
        inner = (e for e in self.edges if not isinstance(e, Opaque))
        found = (e.route for e in inner if e.route and e.source and e.source not in self.before)
        return tuple(dict.fromkeys(found))

    @property
    def recurrent_routes(self) -> tuple[str, ...]:
        """The routes that cross recurrent weights on every way on to the state after."""
        past, through = set(self.after), set[str]()  # nodes with a way past weights, or across
        for edge in reversed(self.edges):
            if isinstance(edge, Opaque):
                continue
            if edge.target in past:
                (past if isinstance(edge, Diagonal) else through).add(edge.source)
            if edge.target in through:
                through.add(edge.source)
        crossing = dict.fromkeys(self.routes, True)
        for edge in self.edges:
            if isinstance(edge, Opaque):
                crossing |= {route: route in edge.crossing for route in edge.routes.values()}
            elif edge.source in self.before and isinstance(edge, Diagonal):
                crossing[edge.route] &= edge.target in through and edge.target not in past
        return tuple(route for route, crosses in crossing.items() if crosses)

    def depths(self, nodes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Nodes in the order in which a pull-back finds their adjoints, in groups.

        Those of one group do not depend on each other; those of a later one may on earlier ones.
        """
        depth: dict[str, int] = {}
        for edge in reversed(self.edges):
            sources, targets = _ends(edge)
            behind = max(depth.get(target, 0) + (target in nodes) for target in targets)
            for source in sources:
                depth[source] = max(depth.get(source, 0), behind)
        groups: dict[int, list[str]] = {}
        for node in nodes:
            groups.setdefault(depth.get(node, 0), []).append(node)
        return tuple(tuple(groups[level]) for level in sorted(groups))


@dataclass(frozen=True, eq=False)
class Clip:
    """Where a policy clips a layer: on its state after, its pre-activations, its recurrent routes.

    Attributes:
        policy: what chooses the factors.
        suffix: what the names of the layer end in.
        state: the nodes of the layer's state after.
        pre_activations: the nodes of its pre-activations, in the order of the weight rows.
        recurrent: its routes across recurrent weights.
    """

    policy: AbstractInside
    suffix: str
    state: tuple[str, ...]
    pre_activations: tuple[str, ...]
    recurrent: tuple[str, ...]

    @property
    def all(self) -> str:
        """The name of the factors of the whole state."""
        return "state" + self.suffix

    @property
    def crossing(self) -> str:
        """The name of the factors of all that goes back through recurrent weights."""
        return "recurrent" + self.suffix


def _ends(edge: Edge) -> tuple[Iterable[str], Iterable[str]]:
    """Sources and targets of an edge."""
    if isinstance(edge, Opaque):
        return (*edge.sources, edge.reads), edge.targets
    return (edge.source,), (edge.target,)


def weights(
    parameter: str,
    matrix: Float[Tensor, "P M"],
    source: str,
    targets: Sequence[str],
    operand: Float[Tensor, "*L M"],
    routes: Sequence[str] = (),
    blocks: range | None = None,
) -> list[Edge]:
    """The edges of a weight matrix: equal blocks of its rows, each to a target.

    Args:
        parameter: its name.
        matrix: all of it.
        source: the node that it multiplies.
        targets: the nodes that it leads to, one for each block.
        operand: the value of the source.
        routes: a label for each target; none if empty.
        blocks: which of how many blocks these are, range(first, count); all of them if None.
    """
    first, count = (0, len(targets)) if blocks is None else (blocks.start, blocks.stop)
    height = matrix.shape[0] // count
    edges: list[Edge] = []
    for number, target in enumerate(targets):
        rows = slice((first + number) * height, (first + number + 1) * height)
        route = routes[number] if routes else ""
        edges.append(Weight(source, target, matrix, rows, route, Use(parameter, rows, operand)))
    return edges


def biases(parameter: str, bias: Float[Tensor, "P"] | None, targets: Sequence[str]) -> list[Edge]:
    """The edges of a bias, a block to each target; none where it is None."""
    if bias is None:
        return []
    height = len(bias) // len(targets)
    blocks = (slice(n * height, (n + 1) * height) for n in range(len(targets)))
    return [
        Diagonal(CONSTANT_NODE, target, use=Use(parameter, rows))
        for target, rows in zip(targets, blocks, strict=True)
    ]


def cut(graph: Graph, labels: Container[str]) -> Graph:
    """The step without the derivative along some edges, which come from the constant then."""

    def of(edge: Edge) -> Edge:
        if isinstance(edge, Opaque):
            kept = {ends: route for ends, route in edge.routes.items() if route not in labels}
            return replace(edge, routes=kept)
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
        return Use(of.parameter + suffix, of.rows, of.operand, of.diagonal)

    def edge(of: Edge) -> Edge:
        if isinstance(of, Opaque):
            return replace(
                of,
                sources={node(name): slot for name, slot in of.sources.items()},
                targets={node(name): slot for name, slot in of.targets.items()},
                reads=node(of.reads),
                routes={(node(s), node(t)): label(r) for (s, t), r in of.routes.items()},
                crossing=frozenset(map(label, of.crossing)),
                suffix=of.suffix + suffix,
                scales={label(r): scale for r, scale in of.scales.items()},
            )
        source, target, route = node(of.source), node(of.target), label(of.route)
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


def jvp(
    graph: Graph,
    state: Float[Tensor, "N *L S"] | None = None,
    inputs: Float[Tensor, "N *L I"] | None = None,
) -> Float[Tensor, "N *L S"]:
    """J times each row: the change of s_k that goes with changes of s_{k-1} and of x_k."""
    changes = {
        node: rows[..., slot]
        for slots, rows in ((graph.before, state), (graph.reads, inputs))
        if rows is not None
        for node, slot in slots.items()
    }
    with no_autocast(next(iter(changes.values())).device):
        return _forwards(graph, changes, {})


def jvp_of_parameters(
    graph: Graph, parameters: Mapping[str, Float[Tensor, "..."]]
) -> Float[Tensor, "N *L S"]:
    """The change of s_k that goes with a change of each parameter alone, a row for each.

    The parameters of functions have none: of those the gradients are formed.
    """
    with no_autocast(next(iter(parameters.values())).device):
        return _forwards(graph, {}, parameters)


def _forwards(
    graph: Graph, changes: dict[str, Tensor], parameters: Mapping[str, Tensor]
) -> Float[Tensor, "N *L S"]:
    """Changes of nodes, followed along the edges to the state after."""
    done: set[str] = set()
    uses = (edge.use for edge in graph.edges if not isinstance(edge, Opaque))
    operands = (use.operand for use in uses if use is not None and use.operand is not None)
    leading = next((operand.shape[:-1] for operand in operands), ())

    def of(node: str) -> Tensor | None:
        """The change of a node to which all edges were followed."""
        if node in changes and node in graph.scales and node not in done:
            changes[node] = changes[node] * graph.scales[node]
        done.add(node)
        return changes.get(node)

    def add(node: str, more: Tensor) -> None:
        changes[node] = changes[node] + more if node in changes else more

    for edge in graph.edges:
        if isinstance(edge, Opaque):
            for target, change in _through(edge, of):
                add(target, change)
            continue
        if edge.use is not None and edge.use.parameter in parameters:
            add(edge.target, _by_parameters(edge.use, parameters, leading))
        before = of(edge.source)
        if before is not None:
            add(edge.target, _forward(edge, before))
    parts = [(slot, part) for node, slot in graph.after.items() if (part := of(node)) is not None]
    some = parts[0][1]
    total = some.new_zeros(*some.shape[:-1], graph.state_size)
    for slot, part in parts:
        total[..., slot] = part
    return total


def _forward(edge: Diagonal | Weight, change: Tensor) -> Tensor:
    factor = edge.factor if isinstance(edge, Diagonal) else edge.scale
    change = change if factor is None else change * factor
    if isinstance(edge, Weight):
        return change @ edge.matrix[edge.rows].T
    if edge.at is None:
        return change
    return torch.nn.functional.pad(change, (edge.at.start, edge.at.size - edge.at.stop))


def _by_parameters(
    use: Use, parameters: Mapping[str, Tensor], leading: Sequence[int]
) -> Float[Tensor, "N *L H"]:
    """The change of a node that goes with that of a parameter: a row of it, among rows of zeros."""
    block = parameters[use.parameter][use.rows]
    if use.operand is None:
        row = block
    else:
        row = use.operand * block if use.diagonal else use.operand @ block.T
    rows = row.new_zeros(len(parameters), *leading, row.shape[-1])
    rows[list(parameters).index(use.parameter)] = row
    return rows


def _through(
    edge: Opaque, of: Callable[[str], Tensor | None]
) -> Iterator[tuple[str, Float[Tensor, "N *L _"]]]:
    """What changes before a function make of the parts after it, by its Jacobian, row by row."""
    given = {
        node: change for node in (*edge.sources, edge.reads) if (change := of(node)) is not None
    }
    if not given:
        return
    size = max(slot.stop for slot in edge.targets.values())
    some = next(iter(given.values()))
    eye = torch.eye(size, dtype=some.dtype, device=some.device)
    eye = eye.view(size, *[1] * (some.ndim - 2), size).expand(size, *some.shape[1:-1], size)
    jacobian = edge.derivative.to_state(eye)
    for (source, target), route in edge.routes.items():
        if source in given:
            block = jacobian[edge.targets[target]][..., edge.sources[source]]
            change = torch.einsum("i...j,n...j->n...i", block, given[source])
            yield target, change * edge.scales[route] if route in edge.scales else change
    if edge.reads in given:
        jacobian = edge.derivative.to_input(eye)
        change = torch.einsum("i...j,n...j->n...i", jacobian, given[edge.reads])
        for target, slot in edge.targets.items():
            yield target, change[..., slot]
