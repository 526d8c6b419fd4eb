"""The derivative of one step as a value: a graph of named nodes, its edges labelled by route.

    x, h-, c-   --weights-->   a.input, a.forget, ...   --factors-->   c, h   -->   h+, c+

`h-` and `c-` are parts of the state before the step, `h+` and `c+` those after it, `a.input` is the
pre-activation of a gate. A cell gives its edges (edges.py), and what follows from them stands once,
for all cells: the routes and their classes here, products with the Jacobian from both sides in
forward_mode.py and reverse_mode.py, a graph with edges cut, scaled, renamed or joined to another's
in rewiring.py. What runs at every step of a recursion is a plan (plan.py), which folds the edges
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import Diagonal, Edge, Opaque, ends
from retrograde.clipping.inside import AbstractInside

PRE_ACTIVATION = "a."
"""What the node of a gate's pre-activation begins with; the name of the gate follows."""


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
                    f"the edge to {', '.join(sorted(again))} comes after one that leaves it: edges "
                    "into a node must come before those out of it"
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
            for source in ends(edge)[0]:
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

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        """The gates to whose pre-activations the rows of a parameter lead, in order of the rows.

        None if some rows lead past all gates, as those of a projection of the output do.
        """
        uses = [
            (edge.use.rows.start, edge.target)
            for edge in self.edges
            if not isinstance(edge, Opaque) and edge.use and edge.use.parameter == parameter
        ]
        found = [self._first_gates(target) for _, target in sorted(uses)]
        return tuple(gate for gates in found for gate in gates) if all(found) else ()

    def columns(self, parameter: str) -> bool:
        """Whether the rows of a parameter are the columns of its tensor."""
        uses = (edge.use for edge in self.edges if not isinstance(edge, Opaque))
        return any(use.columns for use in uses if use and use.parameter == parameter)

    def _first_gates(self, node: str) -> tuple[str, ...]:
        """The gates whose pre-activations are the first on the ways on from a node."""
        if node.startswith(PRE_ACTIVATION):
            return (node.removeprefix(PRE_ACTIVATION),)
        on = (target for edge in self.leaving.get(node, ()) for target in ends(edge)[1])
        return tuple(dict.fromkeys(gate for target in on for gate in self._first_gates(target)))

    def depths(self, nodes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Nodes in the order in which a pull-back finds their adjoints, in groups.

        Those of one group do not depend on each other; those of a later one may on earlier ones.
        """
        depth: dict[str, int] = {}
        for edge in reversed(self.edges):
            sources, targets = ends(edge)
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
