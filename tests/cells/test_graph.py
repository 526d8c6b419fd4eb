"""The linearised step as a value: products from both sides, and what follows from the wiring."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograde.cells import (
    Carrying,
    Cut,
    SideBySide,
    Stacked,
    clipped,
    pull_back,
)
from retrograde.cells.base import standard_shapes
from retrograde.cells.clipped import ClippedPass
from retrograde.cells.edges import Diagonal
from retrograde.cells.forward_mode import jvp, jvp_of_parameters
from retrograde.cells.generations import TABLE
from retrograde.cells.graph import Graph
from retrograde.cells.plan import Plan
from retrograde.cells.program import FEW_ROWS
from retrograde.cells.reverse_mode import CellAdjoint
from retrograde.cells.rewiring import cut, scaled
from retrograde.clipping import HDetach, PreActivationValue, StateNorm, chain
from retrograde.engine import Boundary, Read
from retrograde.errors import ArgumentError
from support.conformance import CHECKS, EXACT
from support.gated_unit import Unit
from support.problems import FAMILY, GRU2014_, GRU_, INPUTS, LSTM_, PROBLEMS, TANH, B, H, projected

pytestmark = pytest.mark.usefixtures("unchecked")

STEPS = 3


def numbers(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def held(seed=0):
    return Carrying(GRU_(seed))


def read_by_two(seed=0):
    """A layer that reads two nodes of the state below as one input."""
    below = SideBySide((GRU_(seed), LSTM_(seed)), ("_0", "_1"))
    return Stacked((below, TANH(seed, inputs=2 * H)))


def without_some(seed=0):
    return Cut(FAMILY["lstm-2002"](seed), frozenset(("readout", "peephole.forget")))


CELLS = {problem.name: problem.make for problem in PROBLEMS} | {
    "held": held,
    "read-by-two": read_by_two,
    "cut": without_some,
}


def linearised(cell, seed):
    """Many steps, their plan and their graph."""
    x = numbers(seed, STEPS, B, cell.input_size)
    state = numbers(seed + 1, STEPS, B, cell.state_size)
    return x, state, cell.linearise(cell.step(x, state))


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=8)  # an identity of bilinear forms: a wrong one fails at almost any numbers
@given(seed=st.integers(0, 2**16), rows=st.sampled_from([1, 3, FEW_ROWS + 1]))
def test_products_from_both_sides_agree(name, seed, rows):
    """<J v, w> = <v, J^T w>, for changes of state, input and of every parameter."""
    cell = CELLS[name]()
    x, state, graph = linearised(cell, seed)
    v, u = numbers(seed + 2, rows, *state.shape), numbers(seed + 3, rows, *x.shape)
    w = numbers(seed + 4, rows, *state.shape)
    pulled = CellAdjoint(Plan(graph), w.flatten(1, 2), range(STEPS))
    left = (jvp(graph, v, u) * w).sum((1, 2, 3))
    right = (v.flatten(1, 2) * pulled.previous()).sum((1, 2))
    right = right + (u.flatten(1, 2) * pulled.input()).sum((1, 2))
    torch.testing.assert_close(left, right, **EXACT)
    if not graph.parameters:
        return
    changes = {name: numbers(seed + 5, *cell.parameters[name].shape) for name in graph.parameters}
    pushed = jvp_of_parameters(graph, changes)
    inner = torch.einsum("pkbs,nkbs->np", pushed, w)
    for number, parameter in enumerate(graph.parameters):
        gradient = gradient_of(pulled, parameter, cell.parameters[parameter])
        torch.testing.assert_close(
            inner[:, number], (gradient * changes[parameter]).flatten(1).sum(1), **EXACT
        )


def gradient_of(pulled, name, weight):
    rows = torch.zeros(len(pulled.delta), *weight.shape, dtype=weight.dtype)
    for uses in pulled.uses:
        for parameter, first, operand in uses.operands:
            if parameter == name:
                da = uses.adjoint
                part = da.sum(1) if operand is None else da.mT @ operand
                into = rows.mT if name in uses.columns else rows
                into = into.flatten(1) if operand is None else into
                into[:, first : first + da.shape[2]] += part
    return rows


@pytest.mark.parametrize("name", [name for name in CELLS if name not in ("held", "cut")])
def test_the_jacobian_is_that_of_autograd_by_rows_and_by_columns(name):
    cell = CELLS[name]()
    x, state, graph = linearised(cell, 5)
    size = cell.state_size
    eye = torch.eye(size, dtype=torch.float64)
    eye = eye.view(size, 1, 1, size).expand(-1, STEPS, B, -1)
    columns = jvp(graph, eye)
    rows = CellAdjoint(Plan(graph), eye.flatten(1, 2), range(STEPS)).previous()
    rows = rows.view(size, STEPS, B, size)
    torch.testing.assert_close(columns, rows.permute(3, 1, 2, 0), **EXACT)
    for k in range(STEPS):
        by_autograd = torch.func.jacrev(lambda s, k=k: cell.step(x[k], s).state)(state[k])
        for b in range(B):
            torch.testing.assert_close(rows[:, k, b], by_autograd[b, :, b], **EXACT)
            # the samples do not depend on each other
            others = [other for other in range(B) if other != b]
            assert not by_autograd[b][:, others].any()


@pytest.mark.parametrize("name", CELLS)
def test_many_steps_are_as_each_alone(name):
    cell = CELLS[name]()
    x, state, graph = linearised(cell, 6)
    plan, few = Plan(graph), numbers(7, 4, B, cell.state_size)
    many = numbers(8, FEW_ROWS + 2, B, cell.state_size)
    for k, delta in itertools.product(range(STEPS), (few, many)):
        alone = pull_back(cell.linearise(cell.step(x[k], state[k])), delta)
        (back,) = plan.back.run(plan.back.at(k), delta)
        torch.testing.assert_close(back, alone.previous(), **EXACT)
        parts = alone.by_route()
        assert tuple(parts) == cell.routes
        torch.testing.assert_close(sum(parts.values()), back, **EXACT)
        crossing = frozenset(cell.recurrent_routes)
        staying = [part for route, part in parts.items() if route not in crossing]
        program = plan.by_crossing(crossing)
        stays, crosses = program.run(program.at(k), delta)
        torch.testing.assert_close(stays, sum(staying, torch.zeros_like(back)), **EXACT)
        torch.testing.assert_close(stays + crosses, back, **EXACT)


# --- what follows from the wiring ---


LSTM_ROUTES = tuple(f"recurrent.{gate}" for gate in ("input", "forget", "cell", "output"))
WIRING = {
    "elman": (TANH, ("recurrent",), ("recurrent",), (), (("hidden",),)),
    "gru": (
        GRU_,
        ("recurrent.reset", "recurrent.update", "recurrent.candidate", "carousel"),
        ("recurrent.reset", "recurrent.update", "recurrent.candidate"),
        (),
        (("update", "candidate"), ("reset",)),
    ),
    "gru-2014": (
        GRU2014_,
        ("recurrent.reset", "recurrent.update", "recurrent.candidate", "carousel"),
        ("recurrent.reset", "recurrent.update", "recurrent.candidate"),
        (),
        (("update", "candidate"), ("reset",)),
    ),
    "lstm": (
        LSTM_,
        (*LSTM_ROUTES, "carousel"),
        LSTM_ROUTES,
        ("readout",),
        (("input", "forget", "cell", "output"),),
    ),
    "projected": (
        projected,
        (*LSTM_ROUTES, "carousel"),
        LSTM_ROUTES,
        ("readout",),
        (("input", "forget", "cell", "output"),),
    ),
    "lstm-2002": (
        FAMILY["lstm-2002"],
        (*LSTM_ROUTES, "carousel", "peephole.input", "peephole.forget"),
        LSTM_ROUTES,
        ("readout", "peephole.output"),
        (("output",), ("input", "forget", "cell")),
    ),
    "fgr": (
        FAMILY["fgr"],
        (
            *LSTM_ROUTES,
            *(f"recurrent.gates.{gate}" for gate in ("input", "forget", "output")),
            *("carousel", "peephole.input", "peephole.forget"),
        ),
        (
            *LSTM_ROUTES,
            *(f"recurrent.gates.{gate}" for gate in ("input", "forget", "output")),
        ),
        ("readout", "peephole.output"),
        (("output",), ("input", "forget", "cell")),
    ),
}


@pytest.mark.parametrize("name", WIRING)
def test_routes_their_class_and_the_order_of_adjoints_follow_from_the_edges(name):
    make, routes, recurrent, inner, order = WIRING[name]
    cell = make()
    assert cell.routes == routes
    assert cell.recurrent_routes == recurrent
    assert cell.inner_routes == inner
    nodes = [f"a.{gate}" for gate in cell.pre_activations]
    depths = cell.structure.depths(nodes)
    assert depths == tuple(tuple(f"a.{gate}" for gate in group) for group in order)


OF_GRU = dict.fromkeys(standard_shapes(3, 1, 1), ("reset", "update", "candidate"))
GATES = {
    "elman": (TANH, {}),
    "gru": (GRU_, OF_GRU),
    "gru-2014": (
        GRU2014_,
        dict.fromkeys(standard_shapes(3, 1, 1), ("reset", "update", "candidate")),
    ),
    "projected": (
        projected,
        dict.fromkeys(standard_shapes(4, 1, 1), ("input", "forget", "cell", "output")),
    ),
} | {
    row.name: (
        FAMILY[row.name],
        dict.fromkeys(row.shapes(1, 1), row.gates if len(row.gates) > 1 else ())
        | {"weight_ch": row.peephole_gates, "weight_gg": ("input", "forget", "output")},
    )
    for row in TABLE
}


@pytest.mark.parametrize("name", GATES)
def test_the_gates_of_a_weight_follow_from_the_edges(name):
    make, gates = GATES[name]
    cell = make()
    stack = Stacked((make(), make(1, inputs=cell.output_size)))
    for parameter in cell.parameters:
        assert cell.gates_of(parameter) == gates.get(parameter, ()), parameter
        assert stack.gates_of(f"{parameter}_l1") == gates.get(parameter, ())


def test_a_route_whose_way_on_is_cut_does_not_become_recurrent():
    cell = LSTM_()
    graph = replace(
        cell.structure,
        edges=tuple(e for e in cell.structure.edges if (e.source, e.target) != ("c", "c+")),
    )
    assert "carousel" not in cut(graph, {"readout"}).recurrent_routes


def test_edges_stand_in_forward_order():
    slot = {"h-": slice(0, 1)}
    with pytest.raises(ValueError, match="the edge to a comes after one that leaves it"):
        Graph(
            (Diagonal("a", "h+"), Diagonal("h-", "a")),
            before=slot,
            after={"h+": slice(0, 1)},
            reads={"x": slice(0, 1)},
        )


def test_a_cut_edge_still_uses_its_weights():
    """As `detach` of h does: no gradient passes, that of the weight is what it was."""
    cell = TANH()
    step = cell.step(numbers(1, B, INPUTS), numbers(2, B, H))
    delta = numbers(3, 2, B, H)
    whole = pull_back(cell.linearise(step), delta)
    left = pull_back(cut(cell.linearise(step), {"recurrent"}), delta)
    assert not left.previous().any()
    for name, weight in cell.parameters.items():
        kept, before = (gradient_of(pulled, name, weight) for pulled in (left, whole))
        torch.testing.assert_close(kept, before, **EXACT)


def test_layers_of_a_stack_read_whole_parts():
    halves = SideBySide((TANH(inputs=2), TANH(inputs=2)), ("_0", "_1"))
    stack = Stacked((TANH(), halves))
    with pytest.raises(ArgumentError, match="must read whole parts of the state below"):
        _ = stack.routes


@pytest.mark.parametrize("name", ["lstm-2002", "fgr", "gru-2014", "mixed-stack", "projected-lstm"])
def test_factors_clip_parts_as_they_clipped_the_whole(name):
    """What the policies chose in one walk along the edges, put into the plan, gives the same."""
    cell = clipped(CELLS[name](), chain(StateNorm(0.8), PreActivationValue(0.1), HDetach(0.5)))
    x, state, graph = linearised(cell, 3)
    torch.manual_seed(0)
    for k in range(STEPS):
        delta = numbers(4 + k, 3, B, cell.state_size)
        passed = ClippedPass(graph, delta.sum(0), k)
        previous = passed.previous()
        here = cell.linearise(cell.step(x[k], state[k]))
        pulled = pull_back(scaled(here, passed.factors), delta)
        torch.testing.assert_close(pulled.previous().sum(0), previous, **EXACT)
        changes = numbers(7 + k, 3, B, cell.state_size)
        pushed = (jvp(scaled(here, passed.factors), changes) * delta).sum((1, 2))
        torch.testing.assert_close(pushed, (changes * pulled.previous()).sum((1, 2)), **EXACT)
        assert any(bool((factor != 1).any()) for factor in passed.factors.values())


def test_a_border_pushes_as_it_pulls():
    factors = (numbers(1, B, H), numbers(2, B, H))
    moved = torch.randperm(B * H, generator=torch.Generator().manual_seed(0)).view(B, H)
    boundary = Boundary(
        torch.zeros(B, H, dtype=torch.float64),
        torch.zeros(B, H, dtype=torch.bool),
        (Read(factors[0]), Read(factors[1], moved)),
    )
    v, w = numbers(3, 2, B, H), numbers(4, 2, B, H)
    torch.testing.assert_close(
        (boundary.push(v) * w).sum((1, 2)), (v * boundary.pull_back(w)).sum((1, 2)), **EXACT
    )


# --- a cell that nothing else knows: its forward equations and its edges ---


def unit(seed=0, inputs=INPUTS):
    weights = {
        name: 0.6 * numbers(seed + place, *shape)
        for place, (name, shape) in enumerate(standard_shapes(2, inputs, H).items())
    }
    return Unit(**weights)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_new_cell_conforms(check):
    check(unit())
    check(Stacked((unit(), unit(1, inputs=H))))
