"""The forward pass as a value: the states, and any step recomputed from the state before it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrograde import _checks
from retrograde.cells.base import AbstractCell, CellStep, is_cell
from retrograde.cells.graph import Graph
from retrograde.cells.plan import Plan
from retrograde.cells.precision import no_autocast
from retrograde.cells.program import Program
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.cells.rewiring import Factors, scaled
from retrograde.compiled.library import library
from retrograde.compiled.scan import Steps, steps_of
from retrograde.compiled.uses import Uses, uses_of
from retrograde.engine.boundary import Boundary
from retrograde.engine.forward import Checkpoints, Forward
from retrograde.engine.linear_states import by_blocks, linear_states
from retrograde.engine.scaling import all_finite
from retrograde.errors import ArgumentError

CHUNK = 64
"""Steps that are recomputed together. Only the states are kept over the whole sequence."""

SMALL = 2**19
"""More steps than that are, while their states are no more numbers than this, 2 MiB in
float32: each time costs the same few operations, however few samples and units there are."""

FEW = 2**23
"""Activations of all steps are held up to this many numbers, 32 MiB in float32, where the library
hands them out with the states."""

KEPT = 2**27
"""States that take more bytes than this are kept at checkpoints alone, and found again from there
(forward.py)."""


@dataclass(frozen=True, eq=False)
class Unrolled:
    """A cell, its inputs x [T, B, I] and its states [T+1, B, S], the initial state first.

    `trajectory` are the states; of a long pass the checkpoints that lead to them, and then `states`
    computes all of them, and holds them from then on. `between` has some of them.

    `boundaries` are the steps that were not entered with the state before. `kept` are the steps
    themselves, for those who have the memory; without them each is computed again from the state
    that enters it. `factors` are those by which a clipped cell multiplies its adjoints, step by
    step; without them nothing is clipped.
    """

    cell: AbstractCell
    x: Float[Tensor, "T B I"]
    trajectory: Float[Tensor, "T1 B S"] | Checkpoints
    kept: tuple[CellStep, ...] = ()
    boundaries: Mapping[int, Boundary] = field(default_factory=dict)
    factors: tuple[Factors, ...] = ()
    _run: CellStep | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.x.shape[0]

    def with_steps(self, steps: CellStep | None) -> "Unrolled":
        """The same with all its steps, [T, B, ...]. Nothing made of it by `replace` has them."""
        found = replace(self)
        object.__setattr__(found, "_run", steps)
        return found

    @property
    def run(self) -> CellStep | None:
        """All steps, where running them handed out the activations and these are few."""
        return self._run

    @cached_property
    def states(self) -> Float[Tensor, "T1 B S"]:
        """The states [T+1, B, S], the initial state first."""
        return self.between(0, len(self))

    def between(self, first: int, last: int) -> Float[Tensor, "K1 B S"]:
        """The states before steps first .. last, both included."""
        if isinstance(self.trajectory, Checkpoints):
            return self.trajectory.between(first, last)
        return self.trajectory[first : last + 1]

    @property
    def finite(self) -> bool:
        """Whether all states are."""
        if not isinstance(self.trajectory, Checkpoints):
            return all_finite(self.trajectory)
        return all(
            all_finite(self.between(steps.start, steps.stop))
            for steps in self.trajectory.forward.segments()
        )

    @property
    def output(self) -> Float[Tensor, "T B H"]:
        """h_k of the top layer, the layer's output."""
        return self.states[1:, :, self.cell.output]

    def steps(self, start: int, stop: int) -> CellStep:
        """Steps start..stop-1, all at once."""
        if self._run is not None:
            return self._run.between(start, stop)
        x, states = self.x[start:stop], self.between(start, stop)
        previous, states = states[:-1], states[1:]
        here = self._boundaries(start, stop)
        if here:
            previous = previous.clone()
        for k, boundary in here.items():
            previous[k - start] = boundary.entering(previous[k - start])
        if self.kept:
            return CellStep.stack(self.kept[start:stop], x, previous, states)
        with no_autocast(x.device):
            return self.cell.step(x, previous)

    def chunk(self, start: int, stop: int) -> "Chunk":
        """Steps start..stop-1 with what is needed to pull adjoints back through them."""
        return Chunk(
            self.cell,
            start,
            self.steps(start, stop),
            self._boundaries(start, stop),
            self.factors[start:stop],
        )

    def _boundaries(self, start: int, stop: int) -> dict[int, Boundary]:
        """Those of steps start..stop-1; there may be as many as steps, and most often is none."""
        some = range(start, stop) if self.boundaries else ()
        return {k: self.boundaries[k] for k in some if k in self.boundaries}

    def chunks(self, length: int = CHUNK) -> Iterator["Chunk"]:
        """So many steps at a time, from the end of the sequence to its start."""
        for stop in range(len(self), 0, -length):
            yield self.chunk(max(0, stop - length), stop)

    @property
    def together(self) -> int:
        """Steps that are best linearised together where the library runs the recursion.

        Where torch's operations do, the Jacobians of many steps would not stay in the cache.
        """
        if library() is None:
            return CHUNK
        return max(CHUNK, SMALL // max(1, self.x.shape[1] * self.cell.state_size))


@dataclass(frozen=True, eq=False)
class Chunk:
    """Neighbouring steps that are linearised together.

    Attributes:
        cell: the recurrence.
        first: the number of the first step.
        steps: the steps, [K, B, ...].
        boundaries: those of these steps that were not entered with the state before.
        factors: those of a clipping policy, one mapping for each step; none where none is known.
    """

    cell: AbstractCell
    first: int
    steps: CellStep
    boundaries: Mapping[int, Boundary] = field(default_factory=dict)
    factors: tuple[Factors, ...] = ()

    def __len__(self) -> int:
        return self.steps.x.shape[0]

    @cached_property
    def graph(self) -> Graph:
        """The linearised steps, clipped where the factors are known."""
        with no_autocast(self.steps.x.device):
            graph = self.cell.linearise(self.steps)
            return scaled(graph, stacked(self.factors)) if self.factors else graph

    @cached_property
    def plan(self) -> Plan:
        """The folded form of the graph."""
        return Plan(self.graph)

    @cached_property
    def compiled(self) -> Steps | None:
        """The same for the compiled backend; None where it is not in use or cannot run it."""
        with no_autocast(self.steps.x.device):
            return steps_of(self.plan.folded, self.steps.previous, None)

    @cached_property
    def compiled_by_crossing(self) -> Steps | None:
        """What comes back without crossing recurrent weights, and behind it by them, likewise."""
        crosses = frozenset(self.cell.recurrent_routes).__contains__
        with no_autocast(self.steps.x.device):
            folded, like = self.plan.folded, self.steps.previous
            return steps_of(folded, like, lambda route: not crosses(route), crosses)

    @cached_property
    def compiled_by_route(self) -> Steps | None:
        """What comes back by each route, one behind the other, likewise."""
        with no_autocast(self.steps.x.device):
            ways = (route.__eq__ for route in self.graph.routes)
            return steps_of(self.plan.folded, self.steps.previous, *ways)

    @cached_property
    def compiled_uses(self) -> Uses | None:
        """What gradients follow from, likewise."""
        with no_autocast(self.steps.x.device):
            return uses_of(self.plan, self.steps.previous)

    def through(
        self,
        program: Program,
        k: int,
        delta: Float[Tensor, "N B S"],
        fill: bool = True,
    ) -> list[Float[Tensor, "N B S"]]:
        """The results of a program at step k, taken past the boundary before it.

        Without zeros if not to be filled, where nothing comes back to.
        """
        results = program.run(program.at(k - self.first), delta, fill)
        if k in self.boundaries:
            for result in results:
                result.copy_(self.boundaries[k].pull_back(result))
        return results

    def through_to(
        self,
        program: Program,
        k: int,
        delta: Float[Tensor, "N B S"],
        out: Float[Tensor, "N B S"],
    ) -> None:
        """The only result of a program at step k written to a tensor; autocast must be off."""
        program.run_to(program.at(k - self.first), delta, [out])
        if k in self.boundaries:
            out.copy_(self.boundaries[k].pull_back(out))

    def pull_back(self, delta: Float[Tensor, "N B S"], first: int, count: int = 1) -> CellAdjoint:
        """Rows of adjoints of s_k through step k, for several steps as if they were its samples.

        A cell knows no time. What comes back is the adjoint of what entered each step.

        Args:
            delta: the rows, the samples of `count` steps side by side.
            first: the first step.
            count: how many steps.
        """
        start = first - self.first
        return CellAdjoint(self.plan, delta, range(start, start + count))


def stacked(steps: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The factors of many steps as those of all, with a leading axis.

    Raises:
        ArgumentError: if a policy acted at some of the steps only.
    """
    if any(step.keys() != steps[0].keys() for step in steps):
        raise ArgumentError(
            "a policy gave factors at some steps and None at others; where nothing is to be "
            "clipped the factors are ones"
        )
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


@torch.no_grad()
def unroll(
    cell: AbstractCell,
    x: Float[Tensor, "..."],
    initial: Float[Tensor, "..."] | None = None,
    keep: bool = False,
    boundaries: Mapping[int, Boundary] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> Unrolled:
    """Run a cell over a sequence.

    Args:
        cell: the recurrence.
        x: inputs, shape [T, B, I].
        initial: s before the first step, shape [B, S]; zeros if None.
        keep: keep the steps with all their activations, and not the states alone. Not where
            many steps are taken at once, and so cost little to compute again.
        boundaries: the steps that are not entered with the state before.
        lengths: the number of steps of each sample; after them its state stays as it is.

    Raises:
        ArgumentError: if x or the initial state does not fit the cell.

    Example:
        >>> import torch
        >>> from retrograde.cells import Elman
        >>> from retrograde.engine import unroll
        >>> cell = Elman(torch.ones(1, 1), torch.full((1, 1), 0.5), activation="identity")
        >>> unroll(cell, torch.ones(3, 1, 1)).output.flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    dtype = next(iter(is_cell(cell).parameters.values())).dtype
    _checks.tensor("x", x, dtype=dtype)
    if x.ndim != 3 or x.shape[2] != cell.input_size:
        raise ArgumentError(
            f"x must have shape [T, B, {cell.input_size}]; got {tuple(x.shape)}. Transpose a "
            "batch-first tensor with x.transpose(0, 1)"
        )
    expected = (x.shape[1], cell.state_size)
    if initial is not None:
        _checks.tensor("initial", initial, dtype=dtype)
    if initial is not None and tuple(initial.shape) != expected:
        raise ArgumentError(
            f"the initial state must have shape {list(expected)} [B, S]; got {list(initial.shape)}"
        )
    if not boundaries and lengths is None and by_blocks(cell, x):
        with no_autocast(x.device):
            start = x.new_zeros(expected) if initial is None else initial
            return Unrolled(cell, x, linear_states(cell, x, start))
    forward = Forward(cell, x, boundaries or {}, lengths)
    start = x.new_zeros(expected) if initial is None else initial
    numbers = (len(x) + 1) * start.numel()
    if not keep and numbers * start.element_size() > KEPT:
        return Unrolled(cell, x, _checkpoints(forward, start), (), forward.boundaries)
    states, kept = x.new_empty(len(x) + 1, *expected), list[CellStep]()
    states[0] = start
    run = None if keep else forward.at_once(states, FEW)
    if run is not None:
        return Unrolled(cell, x, states).with_steps(run)
    for steps in forward.segments():
        forward.run(steps, states[steps.start : steps.stop + 1], kept if keep else None)
    return Unrolled(cell, x, states, tuple(kept), forward.boundaries)


def _checkpoints(forward: Forward, start: Float[Tensor, "B S"]) -> Checkpoints:
    """Run a pass, and keep the first state of each segment and the last one of all."""
    kept = [start]
    for steps in forward.segments():
        states = start.new_empty(len(steps) + 1, *start.shape)
        states[0] = kept[-1]
        forward.run(steps, states)
        kept.append(states[-1].clone())
    return Checkpoints(forward, torch.stack(kept))
