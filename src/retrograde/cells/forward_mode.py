"""Changes of the state, the input and the parameters, carried forwards along the edges of a graph.

These functions follow the definition edge by edge, for any number of rows and steps at once.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import Diagonal, Opaque, Use, Weight
from retrograde.cells.graph import Graph
from retrograde.cells.precision import no_autocast


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
    of_parameters = dict[str, Tensor]()  # what goes with the parameters themselves, node by node
    number = {name: place for place, name in enumerate(parameters)}
    uses = (edge.use for edge in graph.edges if not isinstance(edge, Opaque))
    operands = (use.operand for use in uses if use is not None and use.operand is not None)
    leading = next((operand.shape[:-1] for operand in operands), ())

    def of(node: str) -> Tensor | None:
        """The change of a node to which all edges were followed."""
        if node in of_parameters:
            add(node, of_parameters.pop(node))
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
            row = _by_parameter(edge.use, parameters)
            if edge.target not in of_parameters:
                shape = len(parameters), *leading, row.shape[-1]
                of_parameters[edge.target] = row.new_zeros(shape)
            of_parameters[edge.target][number[edge.use.parameter]] += row
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


def _by_parameter(use: Use, parameters: Mapping[str, Tensor]) -> Float[Tensor, "*L H"]:
    """The change of a node that goes with that of a parameter; the same for all samples if [H]."""
    block = use.block(parameters[use.parameter])
    if use.operand is None:
        return block
    return use.operand * block if use.diagonal else use.operand @ block.T


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
    found = dict[str, Tensor]()
    for (source, over), route in edge.routes.items():
        if source in given:
            way = over if edge.ways else ""
            if way not in found:
                found[way] = edge.to_state(edge.derivative, eye, (way,) if edge.ways else ())
            for target in edge.targets if edge.ways else (over,):
                block = found[way][edge.targets[target]][..., edge.sources[source]]
                change = torch.einsum("i...j,n...j->n...i", block, given[source])
                yield target, change * edge.scales[route] if route in edge.scales else change
    if edge.reads in given:
        jacobian = edge.derivative.to_input(eye)
        change = torch.einsum("i...j,n...j->n...i", jacobian, given[edge.reads])
        for target, slot in edge.targets.items():
            yield target, change[..., slot]
