"""A cell with a policy of `retrograde.clipping` inside its back-propagation.

It runs as before. While the whole adjoint passes back the policy looks at it, node by node, and
chooses factors (`ClippedPass`). Multiplied by these (`rewiring.scaled`), every part of the adjoint
is clipped as the whole was, and the parts still sum to it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import AbstractCell, AbstractLayer, CellStep, is_cell
from retrograde.cells.carrying import Carrying
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.cut import Cut
from retrograde.cells.edges import AbstractDerivative, Diagonal, Opaque, Weight
from retrograde.cells.graph import Clip, Graph
from retrograde.cells.keras import KerasCell
from retrograde.cells.wrapped import AbstractWrapped
from retrograde.clipping.inside import AbstractInside
from retrograde.clipping.policies import is_inside
from retrograde.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Clipped(AbstractWrapped):
    """A layer whose adjoints are clipped at every step.

    Args:
        cell: the layer that runs.
        policy: what clips.

    Raises:
        ArgumentError: for a policy on pre-activations and a cell of which they are not known.

    Example:
        >>> import torch
        >>> from retrograde.cells import Clipped, Elman
        >>> from retrograde.cells.clipped import ClippedPass
        >>> from retrograde.clipping import PreActivationValue
        >>> plain = Elman(torch.ones(1, 1), torch.full((1, 1), 2.0), activation="identity")
        >>> cell = Clipped(plain, PreActivationValue(1.0))
        >>> graph = cell.linearise(cell.step(torch.ones(1, 1), torch.zeros(1, 1)))
        >>> ClippedPass(graph, torch.full((1, 1), 3.0)).previous()  # not 6
        tensor([[2.]])
    """

    policy: AbstractInside

    def __post_init__(self) -> None:
        is_cell(self.cell)
        is_inside(self.policy)
        if self._on_gates and not isinstance(self._layer, AbstractLayer):
            raise ArgumentError(
                f"{self.policy!r} acts on pre-activations, but those of {type(self.cell).__name__} "
                "are not known; use StateNorm, which acts on any cell's state"
            )

    def linearise(self, step: CellStep) -> Graph:
        graph, layer = self.cell.linearise(step), self._layer
        nodes: tuple[str, ...] = ()
        if self._on_gates:
            assert isinstance(layer, AbstractLayer)
            nodes = layer.gate_nodes
        clip = Clip(self.policy, "", tuple(graph.after), nodes, layer.recurrent_routes)
        return replace(graph, clips=(*graph.clips, clip))

    @property
    def _layer(self) -> AbstractCell:
        """The cell, of one of Keras that in torch's layout."""
        return self.cell.cell if isinstance(self.cell, KerasCell) else self.cell

    @cached_property
    def _on_gates(self) -> bool:
        """Whether the policy acts on pre-activations."""
        some = next(iter(self.parameters.values())).new_zeros(1, 1, 1)
        return self.policy.on_pre_activation(some) is not None


class ClippedPass:
    """One step of a clipped graph pulled back, its policies choosing the factors on the way.

        adjoint(source) = scale * sum over its edges of edge^T adjoint(target)

    The adjoint of every node is found when it is asked for; a policy looks at it then.

    Args:
        graph: the step, or many along a first axis.
        delta: the whole adjoint of the state after.
        step: which of many steps; None for the only one.

    Attributes:
        factors: what was chosen, by pre-activation and, for each layer, for its state after and all
            that goes back through its recurrent weights: what `scaled` takes.
    """

    def __init__(self, graph: Graph, delta: Float[Tensor, "B S"], step: int | None = None):
        self.factors: dict[str, Tensor] = {}
        self._graph, self._delta, self._step = graph, delta, step
        self._by_node, self._by_route = dict[str, Tensor](), dict[str, Tensor]()
        self._found: dict[str, Tensor | None] = {}
        self._functions: dict[int, AbstractDerivative] = {}
        self._waiting: dict[str, tuple[Clip, tuple[str, ...]]] = {}
        for clip in graph.clips:
            for group in (clip.state, *graph.depths(clip.pre_activations)):
                self._waiting |= dict.fromkeys(group, (clip, group))

    def previous(self) -> Float[Tensor, "B S"]:
        """The adjoint of the state before; afterwards all factors are chosen."""
        total = torch.zeros_like(self._delta)
        for node in tuple(self._waiting):  # gradients are clipped too where nothing goes on back
            self._of(node)
        for node, slot in self._graph.before.items():
            part = self._arriving(node)
            if part is not None:
                total[..., slot] = part
        return total

    def _of(self, node: str) -> Float[Tensor, "B _"] | None:
        """The adjoint of a node; None where nothing comes back to it."""
        if node in self._waiting:
            self._choose(*self._waiting[node])
        if node not in self._found:
            found = self._arriving(node)
            for scale in (self._here(self._graph.scales.get(node)), self._by_node.get(node)):
                found = found if found is None or scale is None else found * scale
            self._found[node] = found
        return self._found[node]

    def _here(self, value: Tensor | None) -> Tensor | None:
        """What holds for all steps at this one."""
        if value is None or value.ndim == 1 or self._step is None:
            return value
        return value[self._step]

    def _arriving(self, node: str) -> Tensor | None:
        """What the edges of a node bring back to it, before it is scaled."""
        parts = []
        if node in self._graph.after:
            parts.append(self._delta[..., self._graph.after[node]])
        for edge in self._graph.leaving.get(node, ()):
            if isinstance(edge, Opaque):
                parts += self._through(edge, node)
                continue
            adjoint = self._of(edge.target)
            if adjoint is not None:
                parts.append(self._back(edge, adjoint))
        return sum(parts[1:], parts[0]) if parts else None

    def _back(self, edge: Diagonal | Weight, adjoint: Tensor) -> Tensor:
        if isinstance(edge, Weight):
            adjoint, factor = adjoint @ edge.matrix[edge.rows], self._here(edge.scale)
        else:
            at, factor = edge.at, self._here(edge.factor)
            adjoint = adjoint if at is None else adjoint[..., at.start : at.stop]
        for scale in (factor, self._by_route.get(edge.route)):
            adjoint = adjoint if scale is None else adjoint * scale
        return adjoint

    def _through(self, edge: Opaque, node: str) -> Iterator[Tensor]:
        if id(edge) not in self._functions:
            at = self._step
            whole = edge.derivative
            here = whole if at is None else whole.each(lambda value: value[at])
            self._functions[id(edge)] = here
        derivative = self._functions[id(edge)]
        if node == edge.reads:
            yield derivative.to_input(self._rows(edge, edge.targets))[0]
            return
        for targets, sources, label in edge.groups(apart=self._by_route):
            if node in sources:
                delta = self._rows(edge, edge.rows(targets))
                part = edge.to_state(derivative, delta, targets)[0][..., edge.sources[node]]
                for scale in (self._here(edge.scales.get(label)), self._by_route.get(label)):
                    part = part if scale is None else part * scale
                yield part

    def _rows(self, edge: Opaque, targets: Iterable[str]) -> Float[Tensor, "1 B S"]:
        """The adjoint of a function's state, as far as it comes to these parts of it."""
        size = max(slot.stop for slot in edge.targets.values())
        rows = self._delta.new_zeros(1, *self._delta.shape[:-1], size)
        for target in targets:
            adjoint = self._of(target)
            if adjoint is not None:
                rows[0][..., edge.targets[target]] = adjoint
        return rows

    def _choose(self, clip: Clip, group: tuple[str, ...]) -> None:
        """Have a policy look at nodes whose adjoints do not depend on each other."""
        found = {node: adjoint for node in group if (adjoint := self._arriving(node)) is not None}
        for node in group:
            del self._waiting[node]
        if not found:  # every way on was cut
            return
        arriving = list(found.values())
        if group == clip.state:
            whole = torch.cat(arriving, -1)
            scale = clip.policy.on_state(whole)
            if scale is not None:
                self.factors[clip.all] = scale
                self._by_node |= dict.fromkeys(group, scale)
                whole = whole * scale
            scale = clip.policy.on_recurrent(whole)
            if scale is not None:
                self.factors[clip.crossing] = scale
                self._by_route |= dict.fromkeys(clip.recurrent, scale)
            return
        factors = clip.policy.on_pre_activation(torch.stack(arriving, -2))
        if factors is not None:
            chosen = dict(zip(found, factors.unbind(-2), strict=True))
            self.factors |= chosen
            self._by_node |= chosen


def clipped(cell: AbstractCell, policy: AbstractInside) -> AbstractCell:
    """The cell with a policy in the back-propagation of each of its layers; cut routes stay so.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, clipped, policy_of
        >>> from retrograde.clipping import StateNorm
        >>> policy_of(clipped(GRU(torch.zeros(6, 3), torch.zeros(6, 2)), StateNorm(1.0)))
        StateNorm(max_norm=1.0)
    """
    is_cell(cell)
    if isinstance(cell, Cut | Carrying):
        return replace(cell, cell=clipped(cell.cell, policy))
    if isinstance(cell, AbstractComposite):
        return replace(cell, layers=tuple(clipped(layer, policy) for layer in cell.layers))  # type: ignore[type-var]
    return Clipped(cell, policy)


def unclipped(cell: AbstractCell) -> AbstractCell:
    """The cell without any policy in its back-propagation; the very cell if there is none.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, clipped, policy_of, unclipped
        >>> from retrograde.clipping import StateNorm
        >>> cell = clipped(GRU(torch.zeros(6, 3), torch.zeros(6, 2)), StateNorm(1.0))
        >>> policy_of(unclipped(cell)) is None
        True
    """
    is_cell(cell)
    if isinstance(cell, Clipped):
        return cell.cell
    if isinstance(cell, AbstractWrapped):
        inner = unclipped(cell.cell)
        return cell if inner is cell.cell else replace(cell, cell=inner)
    if isinstance(cell, AbstractComposite):
        layers = tuple(map(unclipped, cell.layers))
        same = all(a is b for a, b in zip(layers, cell.layers, strict=True))
        return cell if same else replace(cell, layers=layers)  # type: ignore[type-var]
    return cell


def policy_of(cell: AbstractCell) -> AbstractInside | None:
    """What clips in the back-propagation of a cell, or of the layers inside it.

    Example:
        >>> import torch
        >>> from retrograde.cells import GRU, policy_of
        >>> policy_of(GRU(torch.zeros(6, 3), torch.zeros(6, 2))) is None
        True
    """
    is_cell(cell)
    if isinstance(cell, Clipped):
        return cell.policy
    if isinstance(cell, AbstractWrapped):
        return policy_of(cell.cell)
    if isinstance(cell, AbstractComposite):
        return next(filter(None, map(policy_of, cell.layers)), None)
    return None
