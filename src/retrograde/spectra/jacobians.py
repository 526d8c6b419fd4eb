"""The chain of one-step Jacobians along a trajectory: products with vectors from both sides.

    J_k = ds_k/ds_{k-1}      delta_{k-1} = J_k^T delta_k      v_k = J_k v_{k-1}

No Jacobian is formed unless it is asked for. What the gradient does is J^T, so that the chain is
walked backwards: the singular values of a product and of its transpose are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells import AbstractCell, stepping
from retrograde.cells.base import CellStep
from retrograde.cells.forward_mode import jvp
from retrograde.engine import Scaled, Unrolled, scan
from retrograde.engine.scan import Carried
from retrograde.engine.unroll import CHUNK, Chunk
from retrograde.errors import ArgumentError

Rows = Float[Tensor, "N B R"]
"""Adjoints or perturbations of the part of the state that is looked at."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The Jacobians of a stretch of a trajectory, in float64; its steps count from 0.

    Attributes:
        unrolled: the cell, what it read and its states. The Jacobian of a step holds what was done
            to the state before it (a mask, a scaling), but for the first, which starts from what
            entered it.
        part: the part of the state that is looked at, None for all of it. What leaves the part is
            dropped: the Jacobian of a layer of a stack, where those of the others do not matter.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman
        >>> from retrograde.engine import unroll
        >>> from retrograde.spectra import Chain
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> chain = Chain.of(unroll(cell, torch.ones(3, 1, 1)))
        >>> chain.dense(0), chain.product().plain()
        (tensor([[[0.5000]]], dtype=torch.float64), tensor([[[0.1250]]], dtype=torch.float64))
    """

    unrolled: Unrolled
    part: slice | None = None

    @staticmethod
    def of(unrolled: Unrolled, start: int = 0, stop: int | None = None) -> "Chain":
        """The chain of steps start .. stop-1 of a forward pass.

        The states stay those that were computed in the precision of the pass; only what is derived
        from them is computed in float64. A trajectory that is chaotic would be another one. All
        samples must run through all of its steps: in the padding of a shorter one there is no step.

        Raises:
            ArgumentError: for an empty stretch; one across a step before which the state of a
                sample was detached, reset or replaced: nothing passes there, and the product would
                be 0; one across steps whose samples read each other's states, or past which a state
                was held.
        """
        steps = len(unrolled)
        stop = steps if stop is None else stop
        if not 0 <= start < stop <= steps:
            raise ArgumentError(
                f"a stretch needs 0 <= start < stop <= {steps}, the length of the sequence; got "
                f"start={start}, stop={stop}"
            )
        inside = sorted(
            k
            for k, boundary in unrolled.boundaries.items()
            if start < k < stop and not boundary.passes
        )
        if inside:
            named = ", ".join(map(str, inside[:5])) + (", ..." if len(inside) > 5 else "")
            raise ArgumentError(
                f"the state of a sample was detached, reset or replaced before step {named}: no "
                "gradient passes there, and a product of Jacobians across it is 0. Choose a "
                f"stretch between two such steps, as in start={inside[-1]}, stop={stop}"
            )
        across = {k: boundary for k, boundary in unrolled.boundaries.items() if start < k < stop}
        mixed = sorted(k for k, boundary in across.items() if boundary.mixes_samples)
        if mixed:
            raise ArgumentError(
                f"samples read each other's states before step {mixed[0]} (a batch in another "
                "order): there is no chain of one sample. Choose a stretch between two such steps"
            )
        if stepping(unrolled.cell) is not unrolled.cell:
            raise ArgumentError(
                "states that entered a step outlive it here (a masked update, zoneout): the state "
                "has no Jacobian from step to step. Look at a pass without masks"
            )
        states = unrolled.between(start, stop)
        if start in unrolled.boundaries:
            entering = unrolled.boundaries[start].entering(states[0])
            states = torch.cat((entering.unsqueeze(0), states[1:]))
        boundaries = {k - start: boundary.double() for k, boundary in across.items()}
        cell = unrolled.cell
        cell = cell.with_parameters({name: w.double() for name, w in cell.parameters.items()})
        x, states = unrolled.x[start:stop].double(), states.double()
        return Chain(Unrolled(cell, x, states, boundaries=boundaries))

    def __len__(self) -> int:
        return len(self.unrolled)

    @property
    def cell(self) -> AbstractCell:
        """The recurrence."""
        return self.unrolled.cell

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.unrolled.x.shape[1]

    @property
    def size(self) -> int:
        """R, the size of the part of the state that is looked at."""
        return self.cell.state_size if self.part is None else self.part.stop - self.part.start

    def between(self, start: int, stop: int) -> "Chain":
        """The chain of steps start .. stop-1 of this one."""
        whole = self.unrolled
        boundaries = {
            k - start: boundary for k, boundary in whole.boundaries.items() if start < k < stop
        }
        states = whole.between(start, stop)
        if start in whole.boundaries:
            entering = whole.boundaries[start].entering(states[0])
            states = torch.cat((entering.unsqueeze(0), states[1:]))
        some = Unrolled(whole.cell, whole.x[start:stop], states, boundaries=boundaries)
        return replace(self, unrolled=some)

    def with_cell(self, cell: AbstractCell) -> "Chain":
        """The same trajectory with the derivative of another cell, one with routes cut."""
        return replace(self, unrolled=replace(self.unrolled, cell=cell))

    def identity(self) -> Float[Tensor, "R B R"]:
        """The unit vectors as rows, the same for every sample."""
        eye = torch.eye(self.size, dtype=torch.float64, device=self.unrolled.x.device)
        return eye.unsqueeze(1).expand(-1, self.batch, -1).contiguous()

    @torch.no_grad()
    def pull(self, k: int, rows: Rows) -> Rows:
        """J_k^T times each row: the adjoint of s_{k-1} from that of s_k."""
        chunk = self.unrolled.chunk(k, k + 1)
        return self._own(chunk.through(chunk.plan.back, k, self._whole(rows))[0])

    @torch.no_grad()
    def push(self, k: int, rows: Rows) -> Rows:
        """J_k times each row: what a perturbation of s_{k-1} has become in s_k."""
        chunk, rows = self.unrolled.chunk(k, k + 1), self._whole(rows)
        if k in chunk.boundaries:
            rows = chunk.boundaries[k].push(rows)
        return self._own(jvp(chunk.graph, rows.unsqueeze(1)).squeeze(1))

    @torch.no_grad()
    def dense(self, k: int) -> Float[Tensor, "B R R"]:
        """J_k itself, for every sample."""
        return self.pull(k, self.identity()).transpose(0, 1)

    @torch.no_grad()
    def follow(self, start: Rows, between: Callable[[Rows], Rows]) -> Iterator[tuple[int, Chunk]]:
        """Rows pulled back through one step after the other, from the end of the chain.

        Args:
            start: the rows at the end.
            between: what is made of the rows that come back through a step; it sees those of the
                first step too.

        Yields:
            a step, after it was passed, and what holds it.
        """

        def whole(back: Rows) -> Rows:
            return self._whole(between(self._own(back)))

        yield from scan(self.unrolled, Carried(self._whole(start), whole))

    @torch.no_grad()
    def products(self) -> Iterator[tuple[int, Chunk, Scaled, Scaled]]:
        """(k, what holds step k, ds_end/ds_k, ds_end/ds_{k-1}), the last step first.

        The matrices are those of each sample, [B, R, R], with an exponent for each.
        """
        product = Scaled.of(self.identity().transpose(0, 1))

        def between(rows: Rows) -> Rows:
            nonlocal product
            product = Scaled(rows.transpose(0, 1), product.exponent).normalised()[0]
            return product.values.transpose(0, 1).contiguous()

        before = product
        for k, chunk in self.follow(self.identity(), between):
            yield k, chunk, before, product
            before = product

    @torch.no_grad()
    def product(self) -> Scaled:
        """P = J_last ... J_first of each sample, values [B, R, R] and one exponent for each.

        Its entries are right beside its largest. Singular values that are smaller by 2^52 are lost
        in any such sum; `singular_values` finds those too.
        """
        *_, (_, _, _, product) = self.products()
        return product

    @torch.no_grad()
    def log_abs_det(self) -> Float[Tensor, "T B"]:
        """ln |det J_k| of every step and sample; -inf where a step loses rank.

        That is where a singular value is below R eps of the largest: a determinant that should be 0
        comes out as rounding.
        """

        def measure(jacobian: Float[Tensor, "B R R"]) -> Float[Tensor, "B"]:
            values = torch.linalg.svdvals(jacobian)
            full = values[:, -1] > self.size * torch.finfo(values.dtype).eps * values[:, 0]
            return torch.where(full, torch.linalg.slogdet(jacobian).logabsdet, -torch.inf)

        return self._of_each(measure)

    @torch.no_grad()
    def step_norms(self) -> Float[Tensor, "T B"]:
        """||J_k||_2 of every step and sample, the most that one step can do."""

        def measure(jacobian: Float[Tensor, "B R R"]) -> Float[Tensor, "B"]:
            squares = torch.linalg.eigvalsh(jacobian @ jacobian.mT)  # the largest loses nothing
            largest: Tensor = squares[:, -1].clamp(min=0).sqrt()
            return largest

        return self._of_each(measure)

    def _of_each(self, measure: Callable[[Tensor], Float[Tensor, "B"]]) -> Float[Tensor, "T B"]:
        """A number of the Jacobian of every step and sample."""
        identity, found = self.identity(), list[Tensor]()

        def between(rows: Rows) -> Rows:
            found.append(measure(rows.transpose(0, 1)))
            return identity

        for _ in self.follow(identity, between):
            pass
        return torch.stack(found[::-1])

    def steps(self) -> Iterator[CellStep]:
        """All steps in chunks, the first one first: gates and states, [K, B, ...]."""
        for start in range(0, len(self), CHUNK):
            yield self.unrolled.steps(start, min(start + CHUNK, len(self)))

    def _whole(self, rows: Rows) -> Float[Tensor, "N B S"]:
        """Rows of the part that is looked at as rows of the whole state."""
        if self.part is None:
            return rows
        whole = rows.new_zeros(*rows.shape[:2], self.cell.state_size)
        whole[..., self.part] = rows
        return whole

    def _own(self, rows: Float[Tensor, "N B S"]) -> Rows:
        return rows if self.part is None else rows[..., self.part]
