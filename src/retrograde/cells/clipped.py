"""A cell with a policy of `retrograde.clipping` inside its back-propagation.

It runs as before. The pull-back of the whole adjoint chooses the factors by which the policy clips
it, and hands them out; pulled back with these factors, every part of the adjoint is clipped as the
whole was, and the parts still sum to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from retrograde.cells.base import (
    AbstractCell,
    AbstractLayer,
    CellAdjoint,
    CellStep,
    Edge,
    Factors,
    damped,
    is_cell,
)
from retrograde.cells.carrying import Carrying
from retrograde.cells.composite import AbstractComposite
from retrograde.cells.cut import Cut
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
        >>> from retrograde.clipping import PreActivationValue
        >>> plain = Elman(torch.ones(1, 1), torch.full((1, 1), 2.0), activation="identity")
        >>> cell = Clipped(plain, PreActivationValue(1.0))
        >>> step = cell.linearise(cell.step(torch.ones(1, 1), torch.zeros(1, 1)))
        >>> cell.pull_back(step, torch.full((1, 1, 1), 3.0)).previous()  # not 6
        tensor([[[2.]]])
    """

    policy: AbstractInside

    def __post_init__(self) -> None:
        is_cell(self.cell)
        is_inside(self.policy)
        if self._on_gates and not isinstance(self.cell, AbstractLayer):
            raise ArgumentError(
                f"{self.policy!r} acts on pre-activations, and those of {type(self.cell).__name__} "
                "are not known; StateNorm acts on any cell's state"
            )

    def linearise(self, step: CellStep, cut: frozenset[str] = frozenset()) -> CellStep:
        return replace(self.cell.linearise(step, cut), cut=cut)

    def pull_back(self, step: CellStep, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
        """Pull rows of adjoints back; where the step has no factors yet, choose them.

        They are chosen from the sum of the rows, which then has to be the whole adjoint.
        """
        if not step.factors:
            step = self._chosen(step, delta.sum(0, keepdim=True))
        factors = step.factors
        if "state" in factors:
            delta = delta * factors["state"]
        pulled = self.cell.pull_back(step, delta)
        if "recurrent" in factors:
            edges = (part for edge in pulled.edges for part in self._told_apart(edge))
            pulled = replace(pulled, edges=tuple(self._damped(e, factors) for e in edges))
        return replace(pulled, factors=Factors(factors))

    def _told_apart(self, edge: Edge) -> Iterable[Edge]:
        """The edge itself, or its routes where only some of them cross recurrent weights."""
        crossing = [route in self.recurrent_routes for route in edge.routes]
        return edge.split().values() if any(crossing) and not all(crossing) else (edge,)

    def _damped(self, edge: Edge, factors: Mapping[str, Tensor]) -> Edge:
        crosses = edge.routes[0] in self.recurrent_routes
        return damped(edge, factors["recurrent"]) if crosses else edge

    def _chosen(self, step: CellStep, whole: Float[Tensor, "1 B S"]) -> CellStep:
        """The step with the factors by which the policy clips an adjoint."""
        factors: dict[str, Tensor] = {}
        state, recurrent = self.policy.on_state(whole[0]), self.policy.on_recurrent(whole[0])
        if state is not None:
            factors["state"], whole = state, whole * state
        if recurrent is not None:
            factors["recurrent"] = recurrent
        step = replace(step, factors=factors)
        return self._with_gates(step, whole) if self._on_gates else step

    def _with_gates(self, step: CellStep, whole: Float[Tensor, "1 B S"]) -> CellStep:
        """The step with the factors of its pre-activations too, group by group as they are found.

        Only these have a part in the derivatives of the step.
        """
        layer = self.cell
        assert isinstance(layer, AbstractLayer)
        names = layer.pre_activations
        for group in layer.adjoint_order:
            (use,) = layer.pull_back(step, whole).uses["weight_ih"]
            da = use.adjoint.dense[0].unflatten(-1, (len(names), -1))  # type: ignore[no-untyped-call]
            if len(group) < len(names):
                da = da[:, [names.index(gate) for gate in group]]
            factor = self.policy.on_pre_activation(da)
            if factor is not None:
                chosen = dict(zip(group, factor.unbind(1), strict=True))
                step = self.linearise(replace(step, factors={**step.factors, **chosen}), step.cut)
        return step

    @cached_property
    def _on_gates(self) -> bool:
        """Whether the policy acts on pre-activations."""
        some = next(iter(self.parameters.values())).new_zeros(1, 1, 1)
        return self.policy.on_pre_activation(some) is not None


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
