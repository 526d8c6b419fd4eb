"""The cell of a step that is known as a function alone.

What the other cells write out by hand torch.func finds here: the adjoint of s_{k-1} is the
vector-Jacobian product of the step, for all rows at once. The adjoint of one route is the same with
delta restricted to the piece of s_k at which the route arrives, and what comes back restricted to
the piece of s_{k-1} from which it leaves.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from retrograde import _checks
from retrograde._types import Input, Projected, State
from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.edges import AbstractDerivative, Change, Opaque
from retrograde.cells.gates import Gate
from retrograde.cells.graph import Graph
from retrograde.cells.marks import PAST, marking
from retrograde.errors import ArgumentError

ONLY_ROUTE = "recurrent"
"""The route of a state without named pieces."""

Primal = TypeVar("Primal")

Step = Callable[[Mapping[str, Tensor], Tensor, Any], Any]
"""(parameters, x [B, I], state) -> state; the state is a tensor [B, S] or a mapping of pieces."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What the gates that a step names have to do with the state and with each other.

    Attributes:
        levels: the gates, those of a level read no gate but those of the levels before.
        routes: the label of the way from each piece of the state through each gate first ("" for
            past all gates), of those that there are.
        crossing: the labels that cross recurrent weights.
        gates_of: of each parameter, the gates that its rows lead to, block by block; none where the
            rows do not lie in blocks.
    """

    levels: tuple[tuple[str, ...], ...]
    routes: Mapping[tuple[str, str], str]
    crossing: frozenset[str]
    gates_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def gates(self) -> tuple[str, ...]:
        return tuple(gate for level in self.levels for gate in level)


@dataclass(frozen=True, eq=False)
class FunctionCell(AbstractCell):
    """The cell that `from_function` makes, which has checked what is put together here."""

    function: Step
    weights: Mapping[str, Tensor]
    inputs: int
    pieces: Mapping[str, int]
    named: bool
    handed_on: str
    carousel: tuple[str, ...]
    shown: tuple[Gate, ...] = ()
    anatomy: Anatomy | None = None

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.weights

    @property
    def input_size(self) -> int:
        return self.inputs

    @cached_property
    def slots(self) -> Mapping[str, slice]:
        slots, start = {}, 0
        for piece, size in self.pieces.items():
            slots[piece] = slice(start, start + size)
            start += size
        return slots

    @property
    def output(self) -> slice:
        return self.slots[self.handed_on]

    @property
    def gates(self) -> tuple[Gate, ...]:
        if self.anatomy is None:
            return self.shown
        said = {gate.name: gate for gate in self.shown}
        named = {name: said.get(name, Gate(name, None)) for name in self.anatomy.gates}
        return (*named.values(), *(gate for gate in self.shown if gate.name not in named))

    def _leaving(self, piece: str) -> tuple[str, ...]:
        """The routes from this piece of s_{k-1}, one to each piece of s_k."""
        return tuple(f"{piece}->{to}" for to in self.pieces) if self.named else (ONLY_ROUTE,)

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "FunctionCell":
        return replace(self, weights=dict(parameters))

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return () if self.anatomy is None else self.anatomy.gates_of.get(parameter, ())

    def project(self, x: Input) -> Projected:
        """Nothing: which part of the step is the input's alone is not known."""
        return x[..., :0]

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        samples = x.reshape(-1, self.inputs), state.reshape(-1, self.state_size)
        with marking() as marks:
            new = self._run(self.weights, *samples)
        values = marks.values
        activations = {
            name: (values[name] if name in values else new[name]).reshape(*state.shape[:-1], -1)
            for name in (gate.name for gate in self.gates)
        }
        return CellStep(x, state, self._joined(new).reshape(state.shape), activations)

    def linearise(self, step: CellStep) -> Graph:
        anatomy, ways = self.anatomy, tuple[str, ...]()
        if anatomy is None:
            labels = {
                (piece + "-", to + "+"): route
                for piece in self.pieces
                for to, route in zip(self.pieces, self._leaving(piece), strict=True)
            }
            crossing = frozenset(labels.values()) - frozenset(self.carousel)
        else:
            ways = (PAST, *anatomy.gates)
            labels = {(piece + "-", way): label for (piece, way), label in anatomy.routes.items()}
            crossing = anatomy.crossing - frozenset(self.carousel)
        before = {piece + "-": slot for piece, slot in self.slots.items()}
        after = {piece + "+": slot for piece, slot in self.slots.items()}
        derivative = FunctionDerivative(self, step.x, step.previous)
        return Graph(
            (Opaque(before, after, "x", derivative, labels, crossing, ways=ways),),
            before=before,
            after=after,
            reads={"x": slice(0, self.inputs)},
        )

    @cached_property
    def structure(self) -> Graph:  # the function is not asked
        x = next(iter(self.weights.values())).detach().new_zeros(1, self.inputs)
        state = x.new_zeros(1, self.state_size)
        return self.linearise(CellStep(x, state, state))

    def _apply(
        self,
        weights: Mapping[str, Tensor],
        x: Float[Tensor, "B I"],
        state: Float[Tensor, "B S"],
    ) -> Float[Tensor, "B S"]:
        """The step as a function of one state vector."""
        return self._joined(self._run(weights, x, state))

    def _run(
        self,
        weights: Mapping[str, Tensor],
        x: Float[Tensor, "B I"],
        state: Float[Tensor, "B S"],
    ) -> Any:
        """What the function returns."""
        if not self.named:
            return self.function(weights, x, state)
        pieces = {piece: state[:, slot] for piece, slot in self.slots.items()}
        return self.function(weights, x, pieces)

    def _joined(self, new: Any) -> Float[Tensor, "B S"]:
        """The state that the function returned, as one vector."""
        if not self.named:
            return new  # type: ignore[no-any-return]
        return torch.cat([new[piece] for piece in self.pieces], -1)


@dataclass(frozen=True, eq=False)
class FunctionDerivative(AbstractDerivative):
    """What torch.func finds of a step at x_k and s_{k-1}, for all rows by one vectorised call."""

    cell: FunctionCell
    x: Float[Tensor, "*L I"]
    previous: Float[Tensor, "*L S"]

    @property
    def size(self) -> int:
        return sum(weight.numel() for weight in self.cell.weights.values())

    def each(self, change: Change) -> "FunctionDerivative":
        return FunctionDerivative(self.cell, change(self.x), change(self.previous))

    def to_state(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L S"]:
        return self._to_state(delta.flatten(1, -2)).view(delta.shape)

    def along(
        self, delta: Float[Tensor, "N *L S"], ways: Collection[str]
    ) -> Float[Tensor, "N *L S"]:
        anatomy, rows = self.cell.anatomy, delta.flatten(1, -2)
        assert anatomy is not None
        nothing = {name: rows.new_zeros(len(rows), *v.shape) for name, v in self._held.items()}
        adjoints = self._open((rows, nothing))[1]
        for level in reversed(anatomy.levels[1:]):  # a gate is read by gates of later levels
            more = self._open((torch.zeros_like(rows), _only(adjoints, level)))[1]
            adjoints = {name: adjoint + more[name] for name, adjoint in adjoints.items()}
        past = rows if PAST in ways else torch.zeros_like(rows)
        found: Tensor = self._open((past, _only(adjoints, ways)))[0]
        return found.view(delta.shape)

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        """Zeros in the shape of each gate: the changes at which the step is cut open."""
        with marking() as marks, torch.no_grad():
            self.cell._run(*self._at)
        return {name: torch.zeros_like(value) for name, value in marks.values.items()}

    @cached_property
    def _open(self) -> Callable[[Any], Any]:
        """Rows of (state after, gates) to rows of (state before, changes of gates)."""
        weights, x, previous = self._at

        def step(state: Tensor, changes: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            with marking(changes) as marks:
                new = self.cell._apply(weights, x, state)
            return new, marks.values

        pull = torch.func.vjp(step, previous, self._held)[1]
        return lambda rows: torch.vmap(pull)(rows)

    def to_input(self, delta: Float[Tensor, "N *L S"]) -> Float[Tensor, "N *L I"]:
        weights, x, previous = self._at
        found = _pull_back(lambda live: self.cell._apply(weights, live, previous), x)(
            delta.flatten(1, -2)
        )
        return found.view(*delta.shape[:-1], -1)

    def to_parameters(self, delta: Float[Tensor, "N *L S"]) -> Mapping[str, Tensor]:
        weights, x, previous = self._at
        pull = _pull_back(lambda live: self.cell._apply(live, x, previous), weights)
        return pull(delta.flatten(1, -2))

    @cached_property
    def _at(self) -> tuple[dict[str, Tensor], Float[Tensor, "B I"], Float[Tensor, "B S"]]:
        # torch.func does not heed an outer no_grad, so that live weights would be tracked here.
        weights = {name: value.detach() for name, value in self.cell.weights.items()}
        return weights, self.x.flatten(0, -2), self.previous.flatten(0, -2)

    @cached_property
    def _to_state(self) -> Callable[[Tensor], Tensor]:
        weights, x, previous = self._at
        return _pull_back(lambda state: self.cell._apply(weights, x, state), previous)


def _only(rows: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Zeros in the place of all others."""
    return {n: row if n in names else torch.zeros_like(row) for n, row in rows.items()}


def _pull_back(function: Callable[[Primal], Tensor], at: Primal) -> Callable[[Tensor], Primal]:
    """Rows [N, B, S] to J^T row for each, by one vectorised call; J is the derivative at `at`."""
    pull = torch.func.vjp(function, at)[1]

    def rows(delta: Tensor) -> Any:
        return torch.vmap(pull)(delta)[0]

    return rows


def untried(
    step: Step,
    weights: Mapping[str, Tensor],
    inputs: int,
    pieces: Mapping[str, int],
    named: bool,
    gates: tuple[Gate, ...] = (),
    carousel: Iterable[str] = (),
    output: str | None = None,
) -> FunctionCell:
    """The cell of a step that has not been tried out.

    Raises:
        ArgumentError: if a gate keeps a piece that there is not.
    """
    handed, routes = output or handed_on(pieces), tuple(carousel)
    cell = FunctionCell(step, dict(weights), inputs, pieces, named, handed, routes, gates)
    for gate in gates:
        if gate.name in pieces:
            raise ArgumentError(f"gate {gate.name!r} is called like a piece of the state")
        if gate.keeps:
            _checks.existing("piece of the state", gate.keeps, list(pieces))
    return cell


def handed_on(pieces: Iterable[str]) -> str:
    """The piece of a state that a layer hands on unless told otherwise: h, or the first."""
    return "h" if "h" in pieces else next(iter(pieces))
