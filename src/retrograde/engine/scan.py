"""The one backward recursion: rows of adjoints, pulled back through one step after the other.

    delta_{k-1} = J_k^T delta_k      for k = T-1 .. 0

What the rows are and what becomes of them between two steps is a rule: one row for each loss step,
classes by crossing, the sum of all in plain numbers, directions made orthonormal again. The rule
knows no cell, and the scan no row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells.clipped import ClippedPass
from retrograde.cells.rewiring import Factors
from retrograde.engine.unroll import Chunk, Unrolled


class AbstractRule(ABC):
    """The rows of a recursion, step by step."""

    @abstractmethod
    def rows(self, k: int) -> Float[Tensor, "N B S"] | None:
        """The adjoints of s_k to be pulled back through step k; None before there are any."""

    @abstractmethod
    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        """Pull them back through step k of a chunk, and keep what comes back."""


class AbstractBackend(ABC):
    """What runs a recursion."""

    @abstractmethod
    def scan(self, unrolled: Unrolled, rule: AbstractRule) -> Iterator[tuple[int, Chunk]]:
        """Follow a rule from the last step to the first.

        Yields:
            k and the chunk that holds it, each time that rows were pulled back through step k.
        """


class Eager(AbstractBackend):
    """Step by step, each operation on its own."""

    def scan(self, unrolled: Unrolled, rule: AbstractRule) -> Iterator[tuple[int, Chunk]]:
        for chunk in unrolled.chunks():
            for k in reversed(range(chunk.first, chunk.first + len(chunk))):
                rows = rule.rows(k)
                if rows is not None:
                    rule.pull(chunk, k, rows)
                    yield k, chunk


BACKEND: AbstractBackend = Eager()
"""What runs every recursion of the package."""


def scan(unrolled: Unrolled, rule: AbstractRule) -> Iterator[tuple[int, Chunk]]:
    """Follow a rule backwards through a pass, on the backend of the package."""
    return BACKEND.scan(unrolled, rule)


class Carried(AbstractRule):
    """Rows that only a function changes between the steps.

    Args:
        start: the adjoints of the last state, [N, B, S].
        between: what is made of what comes back at each step.
    """

    def __init__(
        self,
        start: Float[Tensor, "N B S"],
        between: Callable[[Float[Tensor, "N B S"]], Float[Tensor, "N B S"]],
    ):
        self._rows, self._between = start, between

    def rows(self, k: int) -> Float[Tensor, "N B S"]:
        return self._rows

    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        (back,) = chunk.through(chunk.plan.back, k, rows)
        self._rows = self._between(back)


class Summed(AbstractRule):
    """One row that holds the whole adjoint, in plain numbers, as autograd has it.

    Where a cell is clipped its policies act, and choose factors.

    Args:
        direct: what the loss gives to each state, [T, B, S].

    Attributes:
        deltas: the adjoint of each state so far, the last one first, [1, B, S].
        adjoint: that of what came before these steps, [1, B, S].
        factors: what the policies of a clipped cell chose at each step, the last one first.
    """

    def __init__(self, direct: Float[Tensor, "T B S"]):
        self._direct = direct
        self.adjoint = torch.zeros_like(direct[:1])
        self.deltas: list[Float[Tensor, "1 B S"]] = []
        self.factors: list[Factors] = []

    def rows(self, k: int) -> Float[Tensor, "1 B S"]:
        self.deltas.append(self.adjoint + self._direct[k])
        return self.deltas[-1]

    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "1 B S"]) -> None:
        if not chunk.graph.clips:
            (self.adjoint,) = chunk.through(chunk.plan.back, k, rows)
            return
        passed = ClippedPass(chunk.graph, rows[0], k - chunk.first)
        self.adjoint = passed.previous().unsqueeze(0)
        if k in chunk.boundaries:
            self.adjoint = chunk.boundaries[k].pull_back(self.adjoint)
        self.factors.append(passed.factors)
