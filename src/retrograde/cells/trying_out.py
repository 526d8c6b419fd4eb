"""Trying out a step of the user's own: what would fail later, or give wrong numbers, fails here."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrograde.cells.anatomy import anatomy_of
from retrograde.cells.base import AbstractCell, CellStep
from retrograde.cells.function_cell import FunctionCell, FunctionDerivative
from retrograde.cells.marks import marking
from retrograde.errors import ArgumentError

SAMPLES = 16
"""The number of random samples with which a step is probed."""

PROBES = ((1.0, 0.0), (1.0, 0.1), (1.0, 1.0), (0.0, 1.0), (0.0, 0.1), (0.0, 1e-3))
"""How much of the parameters is kept, and how much noise is added, probe by probe, until each has
shown an effect."""


def check_parameters(parameters: object) -> None:
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


def try_out(cell: FunctionCell) -> FunctionCell:
    """One step and its pull-back on two samples of zeros: what would fail later must fail here.

    Returns:
        The cell, with what is known of the gates that its step names.

    Raises:
        ArgumentError: with what the step did and what it should do; if the carousel names a route
            that there is not.
    """
    check_parameters(cell.weights)
    weights = {name: value.detach() for name, value in cell.weights.items()}
    x = next(iter(weights.values())).new_zeros(2, cell.inputs)
    state = x.new_zeros(2, cell.state_size)
    names_gates = _check_forward(cell, weights, x, state)
    _check_pull_back(cell, CellStep(x, state, state))
    known = replace(cell, anatomy=anatomy_of(cell)) if names_gates else cell
    unknown = [route for route in cell.carousel if route not in known.routes]
    if unknown:
        raise ArgumentError(
            f"carousel names no route {', '.join(map(repr, unknown))}; the routes of this state "
            f"are {', '.join(known.routes)}"
        )
    _check_places(cell, weights)
    _check_effects(cell, weights)
    return known


def tried(cells: Iterable[AbstractCell]) -> tuple[AbstractCell, ...]:
    """Cells, those of functions tried out.

    Raises:
        ArgumentError: as `try_out`.
    """
    return tuple(try_out(cell) if isinstance(cell, FunctionCell) else cell for cell in cells)


def _check_forward(
    cell: FunctionCell, weights: Mapping[str, Tensor], x: Tensor, state: Tensor
) -> bool:
    """Refuse a step that fails, that returns no state, or that does more than to compute it.

    Returns:
        Whether it names gates.
    """
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
        with torch.no_grad(), marking() as marks:
            new = cell.function(weights, x, given)
    except Exception as error:
        raise ArgumentError(
            f"step fails on {taken}: {type(error).__name__}: {error}. It is called as "
            "step(parameters, x, state), and input_size and state must be the sizes it expects"
        ) from error
    _check_state(cell, new, x.dtype, taken, marks.values)
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
    return bool(marks.values)


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


def _check_state(
    cell: FunctionCell,
    new: object,
    dtype: torch.dtype,
    taken: str,
    marked: Mapping[str, Tensor],
) -> None:
    """Refuse what is no state of this cell, and gates that are neither named nor returned."""
    both = [name for name in marked if name in cell.pieces]
    if both:
        raise ArgumentError(f"gate {both[0]!r} is called like a piece of the state")
    wrong = [name for name, value in marked.items() if value.ndim != 2 or len(value) != 2]
    if wrong:
        raise ArgumentError(
            f"gate {wrong[0]!r} must have a row for each sample, [2, H]; got shape "
            f"{list(marked[wrong[0]].shape)}"
        )
    returned = [gate.name for gate in cell.shown if gate.name not in marked]
    if returned and not cell.named:
        raise ArgumentError(
            f"the step does not name the gates {', '.join(returned)}: write "
            f"gate({returned[0]!r}, value) of retrograde.cells where it computes them, or return "
            "them beside the pieces of the state, which then need names, as in state={'h': 8}"
        )
    if cell.named:
        expected = [*cell.pieces, *returned]
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
