"""A recurrence of the user's own: any step function of torch operations as a cell.

What the other cells write out by hand torch.func finds here: the adjoint of s_{k-1} is the
vector-Jacobian product of the step, for all rows at once. The adjoint of one route is the same with
delta restricted to the piece of s_k at which the route arrives, and what comes back restricted to
the piece of s_{k-1} from which it leaves.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
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
from retrograde.errors import ArgumentError

ONLY_ROUTE = "recurrent"
"""The route of a state without named pieces."""

SAMPLES = 16
"""The number of random samples with which a step is probed."""

PROBES = ((1.0, 0.0), (1.0, 0.1), (1.0, 1.0), (0.0, 1.0), (0.0, 0.1), (0.0, 1e-3))
"""How much of the parameters is kept, and how much noise is added, probe by probe, until each has
shown an effect."""

Primal = TypeVar("Primal")

Step = Callable[[Mapping[str, Tensor], Tensor, Any], Any]
"""(parameters, x [B, I], state) -> state; the state is a tensor [B, S] or a mapping of pieces."""


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
        return self.shown

    def _leaving(self, piece: str) -> tuple[str, ...]:
        """The routes from this piece of s_{k-1}, one to each piece of s_k."""
        return tuple(f"{piece}->{to}" for to in self.pieces) if self.named else (ONLY_ROUTE,)

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "FunctionCell":
        return replace(self, weights=dict(parameters))

    def gates_of(self, parameter: str) -> tuple[str, ...]:
        return ()

    def project(self, x: Input) -> Projected:
        """Nothing: which part of the step is the input's alone is not known."""
        return x[..., :0]

    def advance(self, x: Input, projected: Projected, state: State) -> CellStep:
        samples = x.reshape(-1, self.inputs), state.reshape(-1, self.state_size)
        new = self._run(self.weights, *samples)
        activations = {
            gate.name: new[gate.name].reshape(*state.shape[:-1], -1) for gate in self.shown
        }
        return CellStep(x, state, self._joined(new).reshape(state.shape), activations)

    def linearise(self, step: CellStep) -> Graph:
        labels = {
            (piece + "-", to + "+"): route
            for piece in self.pieces
            for to, route in zip(self.pieces, self._leaving(piece), strict=True)
        }
        before = {piece + "-": slot for piece, slot in self.slots.items()}
        after = {piece + "+": slot for piece, slot in self.slots.items()}
        crossing = frozenset(labels.values()) - frozenset(self.carousel)
        derivative = FunctionDerivative(self, step.x, step.previous)
        return Graph(
            (Opaque(before, after, "x", derivative, labels, crossing),),
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


def _pull_back(function: Callable[[Primal], Tensor], at: Primal) -> Callable[[Tensor], Primal]:
    """Rows [N, B, S] to J^T row for each, by one vectorised call; J is the derivative at `at`."""
    pull = torch.func.vjp(function, at)[1]

    def rows(delta: Tensor) -> Any:
        return torch.vmap(pull)(delta)[0]

    return rows


def from_function(
    step: Step,
    parameters: Mapping[str, Tensor],
    *,
    input_size: int,
    state: int | Mapping[str, int],
    output: str | None = None,
    carousel: Iterable[str] = (),
    gates: Iterable[Gate] = (),
) -> AbstractCell:
    """Any step function of torch operations as a cell, with everything but the names of its gates.

        s_k = step(parameters, x_k, s_{k-1})

    The cell can be unrolled, recorded with `retrograde.record_cell`, decomposed, cut and stacked
    like any other. Its derivatives come from `torch.func`, which costs more time than derivatives
    written out by hand.

    Args:
        step: a function (parameters, x [B, I], state) -> state. The state is a tensor [B, S], or,
            if its pieces are named, a dictionary of tensors [B, size]. Samples must not depend on
            each other (no normalisation over the batch) nor on their place in the batch, nothing
            may be changed in place that was passed in, and nothing drawn at random: what is random,
            or a sample's own, belongs into x.
        parameters: the weights by name, float32 or float64, of any shapes, as `step` wants them;
            for a module stepped by `torch.func.functional_call`, `dict(module.named_parameters())`.
        input_size: I, the number of input features.
        state: S, the size of the state, or the sizes of its named pieces: `{"h": 8, "c": 8}`.
        output: the piece that the layer hands on; by default "h", or the first if there is none. A
            state without names is handed on as a whole.
        carousel: the routes that cross no recurrent weights, so that `by_crossing` and `truncated`
            know what a crossing is. Whatever is not named counts as one.
        gates: gates whose values [B, H] the step returns beside the pieces of the state, under
            their names. Those with a role and an activation answer what `diagnose` asks of gates.

    Returns:
        The cell. With named pieces its routes are "c->c", "c->h", ...: from a piece of s_{k-1} to a
        piece of s_k, the Jacobian block by block. Without names there is one, "recurrent".

    Raises:
        ArgumentError: for arguments that do not fit together, a step that `torch.func` cannot
            pull back, or parameters that no gradient comes back to. The step is tried out on two
            samples of zeros, on equal ones, and at random.

    Example:
        >>> import torch, retrograde
        >>> def step(w, x, s):
        ...     c = w["leak"] * s["c"] + x
        ...     return {"h": torch.tanh(c + w["gain"] * s["h"]), "c": c}
        >>> cell = retrograde.cells.from_function(
        ...     step,
        ...     {"leak": torch.tensor(0.5), "gain": torch.tensor(0.0)},
        ...     input_size=1,
        ...     state={"h": 1, "c": 1},
        ...     carousel=["c->c", "c->h"],
        ... )
        >>> cell.routes
        ('h->h', 'h->c', 'c->h', 'c->c')
        >>> recorded = retrograde.record_cell(cell, torch.ones(4, 2, 1), lambda h, s: s.sum())
        >>> by_crossing = retrograde.decompose(recorded).by_crossing("leak", max_crossings=1)
        >>> f"{by_crossing.share[0].sum():.0%}"  # a gain of 0: nothing comes back through h
        '100%'
    """
    pieces = _pieces(state)
    named = isinstance(state, Mapping)
    _checks.function("step", step, "(parameters, x, state) -> state", takes=3)
    _check_parameters(parameters)
    input_size = _checks.whole("input_size", input_size)
    if output is not None and (not isinstance(output, str) or output not in pieces):
        raise ArgumentError(
            f"output must name a piece of the state, one of {', '.join(pieces)}; got "
            f"{_checks.shown(output)}"
        )
    if isinstance(carousel, str):
        raise ArgumentError(f"carousel must be a sequence of route names: write ({carousel!r},)")
    _checks.instance("carousel", carousel, Iterable, "a sequence of route names")  # type: ignore[type-abstract]
    cell = untried(step, parameters, input_size, pieces, named, tuple(gates), carousel, output)
    try_out(cell)
    return cell


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
        ArgumentError: if the carousel names a route, or a gate keeps a piece, that there is not.
    """
    handed = output or handed_on(pieces)
    cell = FunctionCell(step, dict(weights), inputs, pieces, named, handed, (), gates)
    carousel = tuple(carousel)
    unknown = [route for route in carousel if route not in cell.routes]
    if unknown:
        raise ArgumentError(
            f"carousel names no route {', '.join(map(repr, unknown))}; the routes of this state "
            f"are {', '.join(cell.routes)}"
        )
    if gates and not named:
        raise ArgumentError(
            "gates are returned beside the pieces of the state, by name: name the pieces, too, as "
            "in state={'h': 8}"
        )
    for gate in gates:
        if gate.name in pieces:
            raise ArgumentError(f"gate {gate.name!r} is called like a piece of the state")
        if gate.keeps:
            _checks.existing("piece of the state", gate.keeps, list(pieces))
    return replace(cell, carousel=carousel)


def handed_on(pieces: Iterable[str]) -> str:
    """The piece of a state that a layer hands on unless told otherwise: h, or the first."""
    return "h" if "h" in pieces else next(iter(pieces))


def _pieces(state: object) -> dict[str, int]:
    """The sizes of the pieces by name; a state without names is one piece."""
    words = "a positive integer, or the sizes of named pieces as in {'h': 8, 'c': 8}"
    if not isinstance(state, Mapping):
        return {"h": _checks.whole("state", state, words=words)}
    if not state or not all(isinstance(name, str) for name in state):
        raise ArgumentError(f"state must be {words}; got {_checks.shown(state)}")
    return {
        name: _checks.whole(f"the size of {name!r} in state", size) for name, size in state.items()
    }


def _check_parameters(parameters: object) -> None:
    if not isinstance(parameters, Mapping):
        raise ArgumentError(
            "parameters must be a mapping from names to tensors, as "
            f"dict(module.named_parameters()) is; got {type(parameters).__name__}"
        )
    if not parameters:
        raise ArgumentError("parameters is empty: there is no gradient to take apart")
    wrong = [
        f"{name!r} is {value.dtype if isinstance(value, Tensor) else type(value).__name__}"
        for name, value in parameters.items()
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64)
    ]
    kinds = {value.dtype for value in parameters.values() if isinstance(value, Tensor)}
    if not wrong and len(kinds) > 1:
        wrong = [f"{name!r} is {value.dtype}" for name, value in parameters.items()]
    if wrong:
        raise ArgumentError(
            "parameters must be tensors that are all float32 or all float64, and "
            + ", ".join(wrong)
            + ": convert with .float() or .double(), and keep values that are not weights inside "
            "the step"
        )


def try_out(cell: FunctionCell) -> None:
    """One step and its pull-back on two samples of zeros: what would fail later must fail here.

    Raises:
        ArgumentError: with what the step did and what it should do.
    """
    _check_parameters(cell.weights)
    weights = {name: value.detach() for name, value in cell.weights.items()}
    x = next(iter(weights.values())).new_zeros(2, cell.inputs)
    state = x.new_zeros(2, cell.state_size)
    _check_forward(cell, weights, x, state)
    _check_pull_back(cell, CellStep(x, state, state))
    _check_places(cell, weights)
    _check_effects(cell, weights)


def _check_forward(
    cell: FunctionCell, weights: Mapping[str, Tensor], x: Tensor, state: Tensor
) -> None:
    """Refuse a step that fails, that returns no state, or that does more than to compute it."""
    given: Any = state
    taken = f"x of shape {tuple(x.shape)} and a state of shape {tuple(state.shape)}"
    if cell.named:
        given = {piece: state[:, slot] for piece, slot in cell.slots.items()}
        shapes = ", ".join(f"{piece} {tuple(value.shape)}" for piece, value in given.items())
        taken = f"x of shape {tuple(x.shape)} and a state of {shapes}"
    passed = {"x": x, "the state": state, **{repr(name): w for name, w in weights.items()}}
    versions = {name: value._version for name, value in passed.items()}
    drawn = _random_state(x.device)

    try:
        with torch.no_grad():
            new = cell.function(weights, x, given)
    except Exception as error:
        raise ArgumentError(
            f"step fails on {taken}: {type(error).__name__}: {error}. It is called as "
            "step(parameters, x, state), and input_size and state must be the sizes it expects"
        ) from error
    _check_state(cell, new, x.dtype, taken)
    changed = [name for name, value in passed.items() if value._version != versions[name]]
    if changed:
        raise ArgumentError(
            f"step changes {', '.join(changed)} in place, but the backward pass needs the old "
            "values: write h = h * f instead of h *= f, or clone() first"
        )
    if not torch.equal(drawn, _random_state(x.device)):
        _restore(drawn, x.device)
        raise ArgumentError(
            "step draws random numbers, but it runs again for the backward pass: draw them "
            "beforehand and pass them to the step as features of x"
        )


def _check_pull_back(cell: FunctionCell, step: CellStep) -> None:
    """Refuse a step that torch.func cannot pull back, or whose samples are not on their own."""
    delta = torch.zeros_like(step.state).unsqueeze(0)
    delta[:, 0] = 1  # the loss of the first sample alone
    try:
        with torch.no_grad():
            derivative = FunctionDerivative(cell, step.x, step.previous)
            second = torch.cat((derivative.to_state(delta), derivative.to_input(delta)), -1)[:, 1]
            derivative.to_parameters(delta)
    except Exception as error:
        raise ArgumentError(
            f"torch.func cannot differentiate step: {type(error).__name__}: {error}. "
            "Build the step from torch's own differentiable operations; a torch.autograd.Function "
            "of your own needs setup_context and generate_vmap_rule = True"
        ) from error
    if bool((second.nan_to_num() != 0).any()):
        raise ArgumentError(
            "step lets the samples of a batch depend on each other: the second sample's input or "
            "state changes the state of the first. Normalise over features, not over the batch"
        )


def _check_places(cell: FunctionCell, weights: Mapping[str, Tensor]) -> None:
    """Refuse a step that asks where in the batch a sample is, or how many there are.

    Steps are taken together as samples of one batch, where neither is what it was.
    """
    some = next(iter(weights.values()))
    x, state = (
        torch.linspace(0.1, 0.9, size, dtype=some.dtype, device=some.device)
        for size in (cell.inputs, cell.state_size)
    )
    try:
        with torch.no_grad():
            new = [
                cell._apply(weights, x.repeat(count, 1), state.repeat(count, 1)) for count in (2, 3)
            ]
    except Exception as error:
        raise ArgumentError(
            f"step works on two samples and fails on three: {type(error).__name__}: {error}. It is "
            "called with batches of any size; put values that belong to a sample into x"
        ) from error
    rows = torch.cat(new)
    rounding = torch.finfo(rows.dtype).eps ** 0.5  # which may depend on the size of a batch
    if not torch.allclose(rows, rows[:1].expand_as(rows), rounding, rounding, equal_nan=True):
        raise ArgumentError(
            "step gives equal samples of a batch different states: it depends on a sample's "
            "position or on the batch size. Put values that belong to a sample into x, as features"
        )


def _check_effects(cell: FunctionCell, weights: Mapping[str, Tensor]) -> None:
    """Refuse parameters that nothing comes back to, whose gradient of 0 would look exact.

    At random inputs, states and adjoints; then with parameters moved or drawn at random as well,
    since a gradient may be 0 with good reason where they are (dead units, a gate that is shut).
    """
    generator = torch.Generator().manual_seed(0)
    some = next(iter(weights.values()))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(some)

    idle, tried = list(weights), False
    for kept, added in PROBES:
        at = {name: kept * w + added * drawn(*w.shape) for name, w in weights.items()}
        x, state = drawn(SAMPLES, cell.inputs), drawn(SAMPLES, cell.state_size)
        delta = drawn(1, SAMPLES, cell.state_size)
        try:
            with torch.no_grad():
                gradients = FunctionDerivative(cell.with_parameters(at), x, state).to_parameters(
                    delta
                )
        except Exception:  # not every step takes any number, as one that looks up an index
            continue
        idle = [name for name in idle if bool((gradients[name] == 0).all())]
        if not idle:
            return
        tried = True
    if not tried:
        return
    one = len(idle) == 1
    raise ArgumentError(
        f"step does not depend on {', '.join(map(repr, idle))}: no gradient comes back to "
        f"{'it' if one else 'them'} at random inputs and states. Either the step does not read "
        f"{'it' if one else 'them'} from the parameters it is given (a module that keeps its "
        "weights in a dict or list of its own, where functional_call cannot swap them), or it "
        f"detaches {'it' if one else 'them'}; leave out of parameters what the step does not use"
    )


def _check_state(cell: FunctionCell, new: object, dtype: torch.dtype, taken: str) -> None:
    """Refuse what is no state of this cell."""
    if cell.named:
        expected = [*cell.pieces, *(gate.name for gate in cell.shown)]
        if not isinstance(new, Mapping) or set(new) != set(expected):
            got = (
                f"pieces {', '.join(map(str, new))}"
                if isinstance(new, Mapping)
                else type(new).__name__
            )
            gates = f" and the gates {', '.join(expected[len(cell.pieces) :])}" * bool(cell.shown)
            raise ArgumentError(
                f"step must return a mapping with the pieces {', '.join(cell.pieces)}{gates}; got "
                + got
            )
        found = {f"piece {piece!r}": (new[piece], size) for piece, size in cell.pieces.items()}
    else:
        found = {"the state": (new, cell.state_size)}
    for what, (value, size) in found.items():
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"step must return {what} as a tensor of shape (2, {size}); got "
                + type(value).__name__
            )
        if tuple(value.shape) != (2, size) or value.dtype != dtype:
            raise ArgumentError(
                f"for {taken}, step must return {what} of shape (2, {size}) in {dtype}; got "
                f"shape {tuple(value.shape)} in {value.dtype}"
            )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _restore(drawn: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(drawn, device)
    else:
        torch.set_rng_state(drawn)
