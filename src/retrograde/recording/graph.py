"""The autograd graph: where gradients arrive, which nodes use a tensor, and hooks that only look.

Nothing is added to the graph and nothing in it is changed, so that gradients stay the same to the
last bit. Nodes are inspected, and hooks on them only observe.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

Node = Any
"""A node of the autograd graph, torch.autograd.graph.Node."""

Edge = tuple[Node, int]
"""One output of a node: the place where the gradient of one tensor arrives."""

SEARCHED = 256
"""The maximum number of nodes visited between the state given to a call and an earlier result."""


def edge_of(tensor: Any) -> Edge | None:
    """Where the gradient of a tensor arrives; None if it gets none."""
    if isinstance(tensor, GradientEdge):
        return tensor.node, tensor.output_nr
    if not isinstance(tensor, Tensor) or not tensor.requires_grad:
        return None
    node = tensor.grad_fn or torch.autograd.graph.get_gradient_edge(tensor).node
    return node, tensor.output_nr


def base_of(tensor: Tensor) -> Tensor:
    """The tensor of which this one is a view of all entries; else the tensor itself.

    An operation in place gives the view a new node in place of its own, where nothing arrives any
    more. The node of what it is a view of stays.
    """
    base = tensor._base
    if base is None or not base.requires_grad or not base.is_contiguous():
        return tensor
    return base if base.numel() == tensor.numel() else tensor


def on_changes(node: Node, changed: Callable[[], None]) -> list[RemovableHandle]:
    """Call `changed` when a hook on a module changes the gradient that passes its node.

    Call this after the hooks of the module are registered, so that their effect is seen.
    """
    came: list[Tensor | None] = []

    def arrives(gradients: tuple[Tensor | None, ...]) -> None:
        came[:] = (None if g is None else g.detach().clone() for g in gradients)

    def leaves(gradients: tuple[Tensor | None, ...], _: Any) -> None:
        pairs = zip(came, gradients, strict=False)
        if not all(a is None or (b is not None and same_numbers(a, b)) for a, b in pairs):
            changed()
        came.clear()

    return [node.register_prehook(arrives), node.register_hook(leaves)]


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places."""
    return torch.equal(one, other) or torch.allclose(one, other, 0, 0, equal_nan=True)


def edges_behind(
    roots: Iterable[Edge], inside: Mapping[Node, Iterable[Edge]], open_to: Container[Node]
) -> tuple[set[Edge], set[Node]]:
    """The edges and nodes that a backward pass comes to.

    Args:
        roots: where it starts.
        inside: the last nodes of each recorded call, with the edges of what went into it. What
            lies between belongs to the layer and is skipped.
        open_to: those of these nodes behind which nothing is skipped.
    """
    edges = set(roots)
    waiting = [node for node, _ in edges]
    nodes = set(waiting)
    while waiting:
        node = waiting.pop()
        following = inside.get(node, node.next_functions)
        for edge in (*following, *node.next_functions) if node in open_to else following:
            if edge[0] is None:
                continue
            edges.add(edge)
            if edge[0] not in nodes:
                nodes.add(edge[0])
                waiting.append(edge[0])
    return edges, nodes


def users_of(
    edges: Collection[Edge],
    roots: Iterable[Node],
    inside: Mapping[Node, Iterable[Edge]],
) -> Iterator[tuple[Node, list[tuple[int, Edge]]]]:
    """The nodes that use some tensors, and as which of their inputs.

    Args:
        edges: the tensors.
        roots: where the backward pass starts.
        inside: the last nodes of each recorded call, with the edges of what went into it. What
            lies between belongs to the layer and is skipped.
    """
    waiting = [node for node in roots if node is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node in inside:
            following = inside[node]
        else:
            following = node.next_functions
            used = [(place, edge) for place, edge in enumerate(following) if edge in edges]
            if used:
                yield node, used
        for after, _ in following:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)


def users_by_edge(
    roots: Iterable[Node], inside: Mapping[Node, Iterable[Edge]]
) -> dict[Edge, list[Node]]:
    """The nodes that use each tensor of a graph, except for those inside recorded calls."""
    waiting = [node for node in roots if node is not None]
    seen, users = set(waiting), dict[Edge, list[Node]]()
    while waiting:
        node = waiting.pop()
        for edge in inside.get(node, node.next_functions):
            if edge[0] is None:
                continue
            if node not in inside:
                users.setdefault(edge, []).append(node)
            if edge[0] not in seen:
                seen.add(edge[0])
                waiting.append(edge[0])
    return users


def depends_on(node: Node, known: dict[Node, bool], inside: Mapping[Node, Iterable[Edge]]) -> bool:
    """Whether a node was computed from one of those that `known` says True of.

    Args:
        node: the node.
        known: what is known already, which grows.
        inside: the last nodes of each recorded call, with the edges of what went into it.
    """
    waiting = [(node, False)]
    while waiting:
        each, done = waiting.pop()
        if each in known and not done:
            continue
        before = [edge[0] for edge in inside.get(each, each.next_functions) if edge[0] is not None]
        if done:
            known[each] = any(known[other] for other in before)
        else:
            known[each] = False  # until those before it are known
            waiting.append((each, True))
            waiting += ((other, False) for other in before)
    return known[node]


def on_inputs(
    node: Node, places: list[tuple[int, Edge]], keep: Callable[[Node, Edge, Tensor], None]
) -> RemovableHandle:
    """Call `keep` with what a node gives to some of its inputs when it runs."""

    def look(to_inputs: tuple[Tensor | None, ...], _: Any) -> None:
        for place, edge in places:
            gradient = to_inputs[place]
            if gradient is not None:
                keep(node, edge, gradient)

    handle: RemovableHandle = node.register_hook(look)
    return handle
