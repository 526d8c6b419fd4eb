"""The chain of one-step Jacobians along a trajectory: products with vectors from both sides.

    J_k = ds_k/ds_{k-1}      delta_{k-1} = J_k^T delta_k      v_k = J_k v_{k-1}

No Jacobian is formed unless it is asked for. What the gradient does is J^T, the pull-back that
every cell has written out, so that the chain is walked backwards: the singular values of a product
and of its transpose are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde.cells import AbstractCell, stepping
from retrograde.cells.base import CellAdjoint, CellStep
from retrograde.engine import Scaled, Unrolled
from retrograde.engine.unroll import CHUNK
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
            k for k, border in unrolled.borders.items() if start < k < stop and not border.passes
        )
        if inside:
            named = ", ".join(map(str, inside[:5])) + (", ..." if len(inside) > 5 else "")
            raise ArgumentError(
                f"the state of a sample was detached, reset or replaced before step {named}: no "
                "gradient passes there, and a product of Jacobians across it is 0. Choose a "
                f"stretch between two such steps, as in start={inside[-1]}, stop={stop}"
            )
        across = {k: border for k, border in unrolled.borders.items() if start < k < stop}
        mixed = sorted(k for k, border in across.items() if border.mixes_samples)
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
        states = unrolled.states[start : stop + 1]
        if start in unrolled.borders:
            entering = unrolled.borders[start].entering(states[0])
            states = torch.cat((entering.unsqueeze(0), states[1:]))
        borders = {k - start: border.double() for k, border in across.items()}
        cell = unrolled.cell
        cell = cell.with_parameters({name: w.double() for name, w in cell.parameters.items()})
        x, states = unrolled.x[start:stop].double(), states.double()
        return Chain(Unrolled(cell, x, states, borders=borders))

    def __len__(self) -> int:
        return len(self.unrolled)

    @property
    def cell(self) -> AbstractCell:
        """The recurrence."""
        return self.unrolled.cell

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.unrolled.states.shape[1]

    @property
    def size(self) -> int:
        """R, the size of the part of the state that is looked at."""
        return self.cell.state_size if self.part is None else self.part.stop - self.part.start

    def between(self, start: int, stop: int) -> "Chain":
        """The chain of steps start .. stop-1 of this one."""
        whole = self.unrolled
        borders = {k - start: border for k, border in whole.borders.items() if start < k < stop}
        states = whole.states[start : stop + 1]
        if start in whole.borders:
            entering = whole.borders[start].entering(states[0])
            states = torch.cat((entering.unsqueeze(0), states[1:]))
        some = Unrolled(whole.cell, whole.x[start:stop], states, borders=borders)
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
        return self._back(k, self._step(k), rows)

    @torch.no_grad()
    def push(self, k: int, rows: Rows) -> Rows:
        """J_k times each row: what a perturbation of s_{k-1} has become in s_k."""
        return torch.einsum("bij,nbj->nbi", self.dense(k), rows)

    @torch.no_grad()
    def dense(self, k: int) -> Float[Tensor, "B R R"]:
        """J_k itself, for every sample."""
        return self._back(k, self._step(k), self.identity()).transpose(0, 1)

    @torch.no_grad()
    def backwards(self) -> Iterator[tuple[int, Callable[[Rows], Rows]]]:
        """(k, the product with J_k^T) for the steps of the chain, the last one first."""
        for k, step in self.unrolled.backwards():
            yield k, partial(self._back, k, step)

    @torch.no_grad()
    def pulled(self) -> Iterator[tuple[int, Scaled, CellAdjoint]]:
        """(k, ds_end/ds_k, its pull-back through step k), the last step first.

        Of the whole state, whatever `part` is. The matrix is that of each sample, [B, S, S], with
        an exponent for each; the adjoint is that of its values, row by row.
        """
        product = Scaled.of(replace(self, part=None).identity().transpose(0, 1))
        for k, step in self.unrolled.backwards():
            adjoint = self.unrolled.pull_back(k, step, product.values.transpose(0, 1).contiguous())
            yield k, product, adjoint
            values = adjoint.previous().transpose(0, 1)
            product = Scaled(values, product.exponent).normalised()[0]

    @torch.no_grad()
    def product(self) -> Scaled:
        """P = J_last ... J_first of each sample, values [B, R, R] and one exponent for each.

        Its entries are right beside its largest. Singular values that are smaller by 2^52 are lost
        in any such sum; `singular_values` finds those too.
        """
        product = Scaled.of(self.identity().transpose(0, 1))
        for _, pull in self.backwards():
            values = pull(product.values.transpose(0, 1).contiguous()).transpose(0, 1)
            product = Scaled(values, product.exponent).normalised()[0]
        return product

    @torch.no_grad()
    def log_abs_det(self) -> Float[Tensor, "T B"]:
        """ln |det J_k| of every step and sample; -inf where a step loses rank.

        That is where a singular value is below R eps of the largest: a determinant that should be 0
        comes out as rounding.
        """
        found = self.unrolled.x.new_empty(len(self), self.batch)
        identity = self.identity()
        for k, pull in self.backwards():
            jacobian = pull(identity).transpose(0, 1)
            values = torch.linalg.svdvals(jacobian)
            full = values[:, -1] > self.size * torch.finfo(values.dtype).eps * values[:, 0]
            found[k] = torch.where(full, torch.linalg.slogdet(jacobian).logabsdet, -torch.inf)
        return found

    @torch.no_grad()
    def step_norms(self) -> Float[Tensor, "T B"]:
        """||J_k||_2 of every step and sample, the most that one step can do."""
        found = self.unrolled.x.new_empty(len(self), self.batch)
        identity = self.identity()
        for k, pull in self.backwards():
            jacobian = pull(identity).transpose(0, 1)
            squares = torch.linalg.eigvalsh(jacobian @ jacobian.mT)  # the largest loses nothing
            found[k] = squares[:, -1].clamp(min=0).sqrt()
        return found

    def steps(self) -> Iterator[CellStep]:
        """All steps in chunks, the first one first: gates and states, [K, B, ...]."""
        for start in range(0, len(self), CHUNK):
            yield self.unrolled.steps(start, min(start + CHUNK, len(self)))

    def _step(self, k: int) -> CellStep:
        return self.unrolled.steps(k, k + 1).unbind()[0]

    def _back(self, k: int, step: CellStep, rows: Rows) -> Rows:
        if self.part is None:
            return self.unrolled.pull_back(k, step, rows).previous()
        whole = rows.new_zeros(*rows.shape[:2], self.cell.state_size)
        whole[..., self.part] = rows
        return self.unrolled.pull_back(k, step, whole).previous()[..., self.part]
