"""Rows of adjoints pulled back through a step, to the state before, the input and parameters."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from retrograde.cells.edges import AbstractDerivative
from retrograde.cells.graph import Graph
from retrograde.cells.plan import Plan
from retrograde.cells.program import Frame, Program


@dataclass(frozen=True, eq=False)
class FormedGradients:
    """Gradients of several parameters that are no outer products: one function gives them formed.

    `pull` maps n adjoint rows [n, B, S] to gradients [n, *shape] by name, `size` counts the numbers
    that one row gives. Nothing is pulled back before it is asked for.
    """

    delta: Float[Tensor, "N B S"]
    derivative: AbstractDerivative
    suffix: str

    def pull(self, delta: Float[Tensor, "_ B S"]) -> dict[str, Float[Tensor, "..."]]:
        """The gradients of these rows, by name."""
        found = self.derivative.to_parameters(delta)
        return {name + self.suffix: gradient for name, gradient in found.items()}

    def blocks(self, most: int) -> Iterator[tuple[slice, Mapping[str, Float[Tensor, "..."]]]]:
        """All rows and their gradients, few enough at a time that these are `most` numbers."""
        rows = max(1, most // self.derivative.size)
        if rows >= len(self.delta):
            yield slice(0, len(self.delta)), self._at_once
            return
        for first in range(0, len(self.delta), rows):
            some = slice(first, min(first + rows, len(self.delta)))
            yield some, self.pull(self.delta[some])

    @cached_property
    def _at_once(self) -> Mapping[str, Float[Tensor, "..."]]:
        """Kept, as sizes and shares both ask for it."""
        return self.pull(self.delta)


@dataclass(frozen=True, eq=False)
class Uses:
    """Adjoints side by side [N, B, P], and what gradients are their products with.

    Attributes:
        adjoint: da, shape [N, B, P].
        operands: (parameter, first of its rows, operand [B, M] or None) of each use; with an
            operand the gradient of rows first .. first+P-1 is sum_b da_b (x) operand_b, else
            sum_b da_b.
        columns: the parameters whose rows are the columns of their tensors.
    """

    adjoint: Float[Tensor, "N B P"]
    operands: tuple[tuple[str, int, Float[Tensor, "B _"] | None], ...]
    columns: frozenset[str] = frozenset()


class CellAdjoint:
    """The pull-back of N adjoint rows through one step, everything still unsummed over rows.

    Nothing is computed before it is asked for; `pull_back` makes one.

    Args:
        plan: that of the linearised step.
        delta: rows of adjoints of the state after, [N, B, S].
        steps: which of many steps are pulled through as if they were samples of one; None for the
            only step of a graph.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman, pull_back
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> graph = cell.linearise(cell.step(torch.ones(4, 1), torch.zeros(4, 1)))
        >>> pull_back(graph, torch.ones(3, 4, 1)).previous().shape  # 3 rows, 4 samples
        torch.Size([3, 4, 1])
    """

    def __init__(self, plan: Plan, delta: Float[Tensor, "N B S"], steps: range | None = None):
        self._plan, self.delta, self._steps = plan, delta, steps

    def _frame(self, program: Program) -> Frame:
        steps = self._steps
        return program.whole() if steps is None else program.merged(steps.start, steps.stop)

    def previous(self) -> Float[Tensor, "N B S"]:
        """Adjoint of s_{k-1}: J_k^T delta, the sum over all routes."""
        return self._plan.back.run(self._frame(self._plan.back), self.delta)[0]

    def along(self, routes: Container[str]) -> Float[Tensor, "N B S"]:
        """The part of it that comes along these routes."""
        program = self._plan.split(routes.__contains__)
        return program.run(self._frame(program), self.delta)[0]

    def by_route(self) -> dict[str, Float[Tensor, "N B S"]]:
        """The same split by route; the parts sum to it."""
        program = self._plan.by_route
        parts = program.run(self._frame(program), self.delta)
        return dict(zip(self._plan.graph.routes, parts, strict=True))

    def input(self) -> Float[Tensor, "N B I"]:
        """Adjoint of x_k."""
        return self._plan.to_input.run(self._frame(self._plan.to_input), self.delta)[0]

    def previous_into(self, out: Float[Tensor, "N B S"]) -> None:
        """`previous()` written to a tensor, and in the same walk what `uses` and `formed` give."""
        self.__dict__["_kept"] = self._keep(self._plan.back_and_uses, [out])

    @cached_property
    def _kept(self) -> tuple[tuple[Uses, ...], tuple[FormedGradients, ...]]:
        return self._keep(self._plan.to_uses, [])

    def _keep(
        self, program: Program, results: Sequence[Float[Tensor, "N B S"]]
    ) -> tuple[tuple[Uses, ...], tuple[FormedGradients, ...]]:
        frame = self._frame(program)
        together, rows = program.kept(frame, self.delta, results)
        uses = []
        for (_, named), (adjoint, operands) in zip(self._plan.uses, together, strict=True):
            given = iter(operands)
            uses.append(
                Uses(
                    adjoint,
                    tuple(
                        (use.parameter, first, None if use.diagonal else next(given))
                        for use, first in named
                    ),
                    frozenset(use.parameter for use, _ in named if use.columns),
                )
            )
        formed = [
            FormedGradients(delta, derivative, edge.suffix)
            for (delta, derivative), edge in zip(rows, self._plan.functions, strict=True)
        ]
        return tuple(uses), tuple(formed)

    def of_rows(self, some: slice) -> "CellAdjoint":
        """That of some of the rows, with what gradients follow from worked out for all at once."""
        uses, formed = self._kept
        found = CellAdjoint(self._plan, self.delta[some], self._steps)
        found.__dict__["_kept"] = (
            tuple(replace(of_all, adjoint=of_all.adjoint[some]) for of_all in uses),
            tuple(replace(of_all, delta=of_all.delta[some]) for of_all in formed),
        )
        return found

    @property
    def uses(self) -> tuple[Uses, ...]:
        """How the gradients of parameters follow from adjoints within the step."""
        return self._kept[0]

    @property
    def formed(self) -> tuple[FormedGradients, ...]:
        """The gradients that only a function gives."""
        return self._kept[1]


def pull_back(graph: Graph, delta: Float[Tensor, "N B S"]) -> CellAdjoint:
    """Pull N rows of adjoints dL/ds_k back through a linearised step, without summing them.

    Args:
        graph: what `cell.linearise` gives for one step, [B, ...].
        delta: the rows, [N, B, S].

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman, pull_back
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> graph = cell.linearise(cell.step(torch.ones(1, 1), torch.zeros(1, 1)))
        >>> pull_back(graph, torch.full((1, 1, 1), 3.0)).by_route()
        {'recurrent': tensor([[[1.5000]]])}
    """
    return CellAdjoint(Plan(graph), delta)
