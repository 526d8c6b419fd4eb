"""Which ways lead through the gates that a step names: seen from its derivative at random numbers.

That a gate does not depend on a piece of the state, or depends on it unit by unit, shows in zeros
of the derivative that are exact at any numbers. At some numbers others are zero as well (dead
units, a gate that is shut), so that it is asked at several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrograde.cells.function_cell import Anatomy, FunctionCell
from retrograde.cells.marks import PAST, marking
from retrograde.errors import ArgumentError

SAMPLES = 3
"""The number of random samples with which a step is asked."""

UNITS = 3
"""The number of units of which it is seen what else depends on them."""

PROBES = ((1.0, 0.0), (1.0, 0.1), (0.0, 0.5))
"""How much of the parameters is kept, and how much noise is added, probe by probe."""


@dataclass(eq=False)
class _Seen:
    """What was seen so far.

    Attributes:
        gates: the gates, in the order in which they were named.
        reads: what each gate, or "" for the state past all gates, depends on: pieces of the state
            before (True before the name) and gates.
        mixed: those of them of which a unit leads to other units.
        rows: of each parameter, what each of its rows leads to.
    """

    gates: tuple[str, ...] = ()
    reads: set[tuple[str, bool, str]] = field(default_factory=set)
    mixed: set[tuple[str, str]] = field(default_factory=set)
    rows: dict[str, list[set[str]]] = field(default_factory=dict)


def anatomy_of(cell: FunctionCell) -> Anatomy:
    """The ways through the gates that a step names.

    Raises:
        ArgumentError: if the step takes no random numbers.
    """
    weights = {name: value.detach() for name, value in cell.weights.items()}
    some, generator = next(iter(weights.values())), torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(some)

    seen = _Seen(rows={n: [set() for _ in w] for n, w in weights.items() if w.numel() and w.ndim})
    failed = ""
    for kept, added in PROBES:
        at = {name: kept * w + added * drawn(*w.shape) for name, w in weights.items()}
        x, state = drawn(SAMPLES, cell.inputs), drawn(SAMPLES, cell.state_size)
        try:
            with torch.no_grad(), marking() as marks:
                cell._run(at, x, state)
        except Exception as error:  # not every step takes any number
            failed = f"{type(error).__name__}: {error}"
            continue
        _look(cell, at, x, state, marks.values, seen, drawn)
    if not seen.gates:
        raise ArgumentError(
            f"the step names gates, and fails at random inputs and states, {failed}: which routes "
            "lead through the gates cannot be told; leave their names out"
        )
    return _anatomy(cell, seen)


def _look(
    cell: FunctionCell,
    weights: Mapping[str, Tensor],
    x: Tensor,
    state: Tensor,
    gates: Mapping[str, Tensor],
    seen: _Seen,
    drawn: Callable[..., Tensor],
) -> None:
    """Add what the derivative of one step shows."""

    def step(
        weights: Mapping[str, Tensor], state: Tensor, changes: Mapping[str, Tensor]
    ) -> dict[tuple[str, str], Tensor]:
        with marking(changes) as marks:
            new = cell._apply(weights, x, state)
        pieces = {(PAST, piece): new[:, slot] for piece, slot in cell.slots.items()}
        return {**{(name, ""): value for name, value in marks.values.items()}, **pieces}

    held = {name: torch.zeros_like(value) for name, value in gates.items()}
    with torch.no_grad():
        values, pull = torch.func.vjp(step, dict(weights), state, held)[:2]
    seen.gates = tuple(gates)
    for node, value in values.items():
        units = range(min(UNITS, value.shape[1]))
        rows = drawn(1 + len(units), *value.shape)
        for row, unit in enumerate(units, 1):
            rows[row, :, :unit] = 0
            rows[row, :, unit + 1 :] = 0
        for_all = {n: v.new_zeros(len(rows), *v.shape) for n, v in values.items()} | {node: rows}
        with torch.no_grad():
            to_weights, to_state, to_gates = torch.vmap(pull)(for_all)
        way = node[0]
        seen.reads |= {(way, False, g) for g, each in to_gates.items() if bool(each[0].any())}
        for piece, slot in cell.slots.items():
            back = to_state[..., slot]
            if bool(back[0].any()):
                seen.reads.add((way, True, piece))
                for row, unit in enumerate(units, 1):
                    back[row, :, unit : unit + 1] = 0
                if back.shape[2] != value.shape[1] or bool(back[1:].any()):
                    seen.mixed.add((way, piece))
        for name, sets in seen.rows.items():
            used = to_weights[name][0].reshape(len(sets), -1).any(1)
            for number in torch.nonzero(used).flatten().tolist():
                sets[number].add(way)


def _anatomy(cell: FunctionCell, seen: _Seen) -> Anatomy:
    """Levels, labels and blocks of rows."""
    level_of: dict[str, int] = {}
    for gate in seen.gates:  # one can only read those that were named before
        level_of[gate] = max(
            (1 + level_of[other] for way, piece, other in seen.reads if way == gate and not piece),
            default=0,
        )
    levels = [
        tuple(gate for gate in seen.gates if level_of[gate] == level)
        for level in range(1 + max(level_of.values()))
    ]
    routes: dict[tuple[str, str], str] = {}
    crossing: set[str] = set()
    for way in (*seen.gates, PAST):
        for piece in cell.pieces:
            if (way, True, piece) in seen.reads:
                mixed = (way, piece) in seen.mixed
                label = ("recurrent" if mixed else "peephole") + f".{way}"
                if way == PAST:
                    label = "recurrent" if mixed else "carousel"
                routes[piece, way] = label
                crossing |= {label} if mixed else set()
    gates_of = {name: _blocks(sets) for name, sets in seen.rows.items()}
    return Anatomy(tuple(levels), routes, frozenset(crossing), gates_of)


def _blocks(rows: list[set[str]]) -> tuple[str, ...]:
    """The gates that equal blocks of rows lead to, in order; none if they do not lie so."""
    if not rows or any(len(each) != 1 or PAST in each for each in rows):
        return ()
    found = [gate for each in rows for gate in each]
    order = tuple(dict.fromkeys(found))
    height, left = divmod(len(found), len(order))
    alike = not left and found == [gate for gate in order for _ in range(height)]
    return order if alike and len(order) > 1 else ()
