"""The one backward recursion: rows of adjoints, pulled back through one step after the other.

    delta_{k-1} = J_k^T delta_k      for k = T-1 .. 0

Where nothing acts on the rows but what the loss adds, a backend runs many steps of a chunk at once.
Elsewhere a rule says what the rows are and what becomes of them between two steps: classes by
crossing, policies that clip, directions made orthonormal again. The rule knows no cell, and the
scan no row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde.cells.clipped import ClippedPass
from retrograde.cells.precision import no_autocast
from retrograde.cells.program import new_rows
from retrograde.cells.rewiring import Factors
from retrograde.compiled import scan as compiled
from retrograde.compiled.library import library
from retrograde.engine.scaling import row_norms
from retrograde.engine.unroll import Chunk, Unrolled

FEW_ROWS = 48
"""The library takes all samples of up to so many rows together (GROUPED_ROWS in csrc/scan.h), and
so knows on the way how large a row is."""

NEAR = 2**16
"""It can as well do so where all rows of a step are no more numbers than this, 256 KiB in float32,
and stay in a near cache."""


@dataclass(frozen=True, eq=False)
class Entering:
    """What the loss gives to the rows at neighbouring steps, after the latest of them.

    Attributes:
        first: the earliest step.
        rows: how many rows there are at each step, [K]. Where there is one more than at the step
            after, what the loss gives is that row; elsewhere it is added to the newest one.
        values: what the loss gives at each step, in units of the row that takes it, [K, B, S]; what
            stands at the latest step is not used. None if it gives nothing at the others.
        back: whether what comes back to the state before the earliest step is asked for.
        ranged: whether the backend is to keep the rows in range, as it said that it can.
    """

    first: int
    rows: Sequence[int]
    values: Float[Tensor, "K B S"] | None
    back: bool = True
    ranged: bool = False

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Pulled:
    """Rows at neighbouring steps.

    Attributes:
        values: the adjoints of the states after the steps, 0 for a row that has not entered yet,
            [N, K, B, S].
        norms: their L2 norms over batch and state, [N, K].
        back: what comes back to the state before the earliest step, if it was asked for; its last
            row has no value yet and is for what may enter there.
        back_norms: the norms of its other rows.
        exponents: 2**exponent is what a row at a step is in units of, beside those in which it
            started or entered, [N, K]; None if it is in no other.
    """

    values: Float[Tensor, "N K B S"]
    norms: Float[Tensor, "N K"]
    back: Float[Tensor, "N1 B S"] | None
    back_norms: Float[Tensor, "N"] | None = None
    exponents: Int[Tensor, "N K"] | None = None


@dataclass(frozen=True, eq=False)
class RowSums:
    """Sums of rows at neighbouring steps.

    Attributes:
        values: the sums, [M, K, B, S].
        exponents: 2**exponent is what a sum at a step is in units of, NO_EXPONENT where it has no
            row, [M, K].
        back: what comes back to the state before the earliest step, if it was asked for; its last
            row has no value yet and is for what may enter there.
        back_norms: the norms of its other rows, [N].
        back_exponents: those of them, [N].
    """

    values: Float[Tensor, "M K B S"]
    exponents: Int[Tensor, "M K"]
    back: Float[Tensor, "N1 B S"] | None
    back_norms: Float[Tensor, "N"] | None
    back_exponents: Int[Tensor, "N"] | None


class AbstractBackend(ABC):
    """What runs the recursion through neighbouring steps of a chunk, in plain numbers.

        rows_{k-1} = J_k^T rows_k + what the loss gives to s_{k-1}

    It need not care what leaves the range on the way: whoever calls brings the rows into range
    before, and uses nothing after the step at which one has left it. It may say that it keeps few
    rows in range itself, all but the newest as long as the loss adds to it.
    """

    def ranges(self, chunk: Chunk, rows: int) -> bool:
        """Whether it can keep up to so many rows of a chunk in range."""
        return False

    @abstractmethod
    def pull_back(
        self,
        chunk: Chunk,
        start: Float[Tensor, "N B S"],
        entering: Entering,
        scales: Float[Tensor, "N"] | None = None,
    ) -> Pulled:
        """Pull rows back from step to step.

        Args:
            chunk: what holds the steps.
            start: the rows at the latest of the steps, complete.
            entering: the steps, and what the loss gives on the way.
            scales: what each of these rows is multiplied by first; None for nothing.
        """

    def sum_back(
        self,
        chunk: Chunk,
        start: Float[Tensor, "N0 B S"],
        entering: Entering,
        units: Int[Tensor, "N"],
        places: Int[Tensor, "N K"],
        sums: int,
    ) -> RowSums | None:
        """Pull rows back and keep nothing but sums of them, in whatever range they are.

        Every row must be that of a single loss step. None where it cannot, or a row is not finite.

        Args:
            chunk, start, entering: as in `pull_back`.
            units: the exponent of each row, those that enter on the way among them.
            places: the number of the sum that each row belongs to at each step, -1 for none.
            sums: how many there are.
        """
        return None


class Eager(AbstractBackend):
    """Step by step, each operation on its own."""

    def pull_back(
        self,
        chunk: Chunk,
        start: Float[Tensor, "N B S"],
        entering: Entering,
        scales: Float[Tensor, "N"] | None = None,
    ) -> Pulled:
        count, most = len(entering), entering.rows[0]
        if scales is not None:
            start = start * scales.view(-1, 1, 1)
        if count == 1:
            values = start.unsqueeze(0)
        else:
            values = new_rows(start, count * most, *start.shape[1:])
            values = values.view(count, most, *start.shape[1:])
            values[-1, : len(start)] = start
        back = self._through(chunk, values, entering)
        for step, rows in enumerate(entering.rows):
            if rows < most:
                values[step, rows:] = 0
        norms: Tensor = torch.linalg.vector_norm(values.flatten(2), dim=2)
        sizes = None if back is None else row_norms(back[:-1])
        return Pulled(values.transpose(0, 1).contiguous(), norms.T, back, sizes)

    def _through(
        self, chunk: Chunk, values: Float[Tensor, "K N B S"], entering: Entering
    ) -> Float[Tensor, "N1 B S"] | None:
        """The rows at all steps, and what comes back to the state before them."""
        program, first, given = chunk.plan.back, entering.first, entering.values
        with no_autocast(values.device):
            for step in range(len(entering) - 1, 0, -1):
                rows, after = entering.rows[step - 1], entering.rows[step]
                chunk.through_to(
                    program, first + step, values[step, :after], values[step - 1, :after]
                )
                if rows > after:
                    assert given is not None
                    values[step - 1, after].copy_(given[step - 1])
                elif given is not None:
                    values[step - 1, after - 1].add_(given[step - 1])
            if not entering.back:
                return None
            rows = entering.rows[0]
            back = new_rows(values, rows + 1, *values.shape[2:])
            chunk.through_to(program, first, values[0, :rows], back[:rows])
        return back


class Compiled(AbstractBackend):
    """All steps in one call of the compiled library; what it cannot run, operations of torch do."""

    def ranges(self, chunk: Chunk, rows: int) -> bool:
        _, samples, size = chunk.steps.previous.shape
        few = rows * samples <= FEW_ROWS or rows * samples * size <= NEAR
        return few and not chunk.boundaries and chunk.compiled is not None

    def pull_back(
        self,
        chunk: Chunk,
        start: Float[Tensor, "N B S"],
        entering: Entering,
        scales: Float[Tensor, "N"] | None = None,
    ) -> Pulled:
        steps, passed = chunk.compiled, plain_boundaries(chunk, entering.first, len(entering))
        if steps is None or passed is None:
            return EAGER.pull_back(chunk, start, entering, scales)
        first, e = entering.first - chunk.first, entering
        found = compiled.pull_back(
            steps, first, start, e.rows, e.values, passed, e.back, scales, e.ranged
        )
        return Pulled(found.values, found.norms, found.back, found.back_norms, found.exponents)

    def sum_back(
        self,
        chunk: Chunk,
        start: Float[Tensor, "N0 B S"],
        entering: Entering,
        units: Int[Tensor, "N"],
        places: Int[Tensor, "N K"],
        sums: int,
    ) -> RowSums | None:
        steps, passed = chunk.compiled, plain_boundaries(chunk, entering.first, len(entering))
        if steps is None or passed is None:
            return None
        first, e = entering.first - chunk.first, entering
        found = compiled.sum_back(
            steps, first, start, e.rows, e.values, passed, e.back, sums, places, units
        )
        if found is None:
            return None
        back = found.back, found.back_norms, found.back_exponents
        return RowSums(found.values, found.exponents, *back)


def plain_boundaries(chunk: Chunk, first: int, count: int) -> dict[int, Tensor] | None:
    """The factors of the boundaries before some steps, by their number among these.

    None if one of them is more than factors.
    """
    found = dict[int, Tensor]()
    for k, boundary in chunk.boundaries.items():
        if first <= k < first + count:
            if len(boundary.reads) != 1 or boundary.reads[0].source is not None:
                return None
            found[k - first] = boundary.reads[0].factor
    return found


EAGER = Eager()

COMPILED = Compiled()


def backend() -> AbstractBackend:
    """What runs the recursion wherever no rule acts between its steps."""
    return EAGER if library() is None else COMPILED


class AbstractRule(ABC):
    """The rows of a recursion, step by step."""

    @abstractmethod
    def rows(self, k: int) -> Float[Tensor, "N B S"] | None:
        """The adjoints of s_k to be pulled back through step k; None before there are any."""

    @abstractmethod
    def pull(self, chunk: Chunk, k: int, rows: Float[Tensor, "N B S"]) -> None:
        """Pull them back through step k of a chunk, and keep what comes back."""


def scan(unrolled: Unrolled, rule: AbstractRule) -> Iterator[tuple[int, Chunk]]:
    """Follow a rule backwards through a pass, from the last step to the first.

    Yields:
        k and the chunk that holds it, each time that rows were pulled back through step k.
    """
    for chunk in unrolled.chunks():
        for k in reversed(range(chunk.first, chunk.first + len(chunk))):
            rows = rule.rows(k)
            if rows is not None:
                rule.pull(chunk, k, rows)
                yield k, chunk


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
        adjoint: that of what came before these steps, [1, B, S].
        deltas: the adjoint of each state so far, the last one first, [1, B, S].
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
        passed = ClippedPass(chunk.graph, rows[0], k - chunk.first)
        self.adjoint = passed.previous().unsqueeze(0)
        if k in chunk.boundaries:
            self.adjoint = chunk.boundaries[k].pull_back(self.adjoint)
        self.factors.append(passed.factors)

    def through(self, chunk: Chunk) -> tuple[Float[Tensor, "1 K B S"], tuple[Factors, ...]]:
        """The adjoints of the states after the steps of a chunk, and what policies chose there.

        Chunks come in the order of the recursion, the last one first.
        """
        steps = range(chunk.first, chunk.first + len(chunk))
        if not chunk.graph.clips:
            start, given = (
                self.adjoint + self._direct[steps[-1]],
                self._direct[steps[0] : steps[-1] + 1],
            )
            pulled = backend().pull_back(
                chunk, start, Entering(chunk.first, (1,) * len(steps), given)
            )
            assert pulled.back is not None
            self.adjoint = pulled.back[:1]
            return pulled.values, ()
        for k in reversed(steps):
            self.pull(chunk, k, self.rows(k))
        found = torch.stack(self.deltas[::-1], 1), tuple(self.factors[::-1])
        self.deltas.clear()
        self.factors.clear()
        return found
