"""Gradients that the library sums over rows and steps, against the eager backend."""

import ctypes
from dataclasses import replace

import pytest
import torch

from retrograde.compiled import library as loading
from retrograde.compiled import passes
from retrograde.engine import AdjointSums
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.scaling import NO_EXPONENT
from support.backends import BACKENDS, using
from support.chunks import KINDS, cell_of, chunk_of, drawn
from support.problems import PROBLEMS

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)

SUMS = 4


@pytest.fixture(autouse=True)
def _whatever_the_environment_asks_for():
    with using("compiled"):
        yield


def integers(low, high, shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def spans_of(chunk, rows, exponent, lengths, seed=4):
    """Rows at some neighbouring steps each time, the last ones first; one row is 0."""
    stop, (_, batch, size) = len(chunk), chunk.steps.previous.shape
    for number, length in enumerate(lengths):
        shape, dtype = (rows, length, batch, size), chunk.steps.previous.dtype
        values, first = drawn(*shape, dtype=dtype, seed=seed + number), stop - length
        values[0, 0] = 0
        units = exponent[:, first:stop]
        norms = values.flatten(2).norm(dim=2)
        yield AdjointSpan(first, values, units, norms, torch.zeros_like(units), chunk)
        stop = first


def summed(chunk, rows, exponent, places, lengths, by_place=True):
    sums = AdjointSums(chunk.cell, SUMS if by_place else rows)
    for span in spans_of(chunk, rows, exponent, lengths):
        if by_place:
            sums.add_rows(span, places[:, span.steps])
        else:
            units = torch.where(span.norms > 0, span.exponent, NO_EXPONENT)
            sums.add(span, span.values.clone(), units)
    return sums.result()


def side_by_side(gradients):
    """Those of all parameters, in any order: the numbers of each row, in plain float64."""
    rows = [each.plain().double().flatten(1) for each in gradients]
    return torch.cat(rows, 1).sort(1).values


def compare(chunk, rows, tolerance, lengths=None, exponent=None, by_place=True):
    """Relative to the norm of each row of each parameter; -1 leaves a row out at a step."""
    assert chunk.compiled_uses is not None
    steps = len(chunk)
    exponent = integers(-9, 9, (rows, steps)) if exponent is None else exponent
    places = integers(-1, SUMS, (rows, steps), seed=1)
    places[:, ::3] = places[:, ::3].clamp(max=SUMS - 2)  # one sum has no rows at some steps
    given = exponent, places, lengths or (steps,), by_place
    ours = summed(chunk, rows, *given)
    with using("eager"):
        theirs = summed(replace(chunk), rows, *given)
    assert ours.keys() == theirs.keys() == chunk.cell.parameters.keys()
    for name, total in ours.items():
        assert total.values.dtype == theirs[name].values.dtype
        assert total.values.shape == theirs[name].values.shape
        size = theirs[name].log2_norms()
        difference = total.plus(replace(theirs[name], values=-theirs[name].values)).log2_norms()
        assert size.isfinite().any()
        assert bool((difference <= size + tolerance).all()), name
    return ours


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_every_cell_that_is_no_function(problem):
    chunk = chunk_of(problem.make(), 7, 3)
    if chunk.plan.functions:
        assert chunk.compiled_uses is None
        return
    compare(chunk, 19, -40)
    compare(chunk, 19, -40, lengths=(2, 4, 1))
    compare(chunk, 3, -40, by_place=False)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_all_parameters_side_by_side(problem):
    """The numbers of the gradients by name, none twice; the sum that has no rows is zeros."""
    chunk = chunk_of(problem.make(), 7, 3)
    sums, exponent = AdjointSums(chunk.cell, SUMS), integers(-9, 9, (19, 7))
    assert sums.side_by_side() is None
    places = integers(0, SUMS - 1, (19, 7), seed=1)
    for span in spans_of(chunk, 19, exponent, (4, 3)):
        sums.add_rows(span, places[:, span.steps])
    found = sums.side_by_side()
    if chunk.plan.functions:
        assert found is None
        return
    assert not found.values[SUMS - 1].any()
    expected = side_by_side(sums.result().values())
    torch.testing.assert_close(side_by_side([found]), expected, rtol=0, atol=0)


def test_a_weight_that_is_used_twice_is_not_put_beside_itself():
    """Its gradient is the sum of both uses."""
    chunk = chunk_of(cell_of("elman", 5, 5), 7, 3)
    graph = chunk.graph

    def of(edge):
        if edge.use is None or edge.use.parameter != "weight_ih":
            return edge
        return replace(edge, use=replace(edge.use, parameter="weight_hh"))

    chunk.__dict__["graph"] = replace(graph, edges=tuple(map(of, graph.edges)))
    sums = AdjointSums(chunk.cell, 19)
    for span in spans_of(chunk, 19, integers(-9, 9, (19, 7)), (7,)):
        sums.add(span, span.values.clone(), span.exponent)
    assert chunk.compiled_uses is not None
    assert sums.side_by_side() is None


def test_what_was_put_aside_is_not_put_side_by_side():
    chunk = chunk_of(cell_of("lstm-2002", 2, 5, torch.float32), 130, 3)
    sums = AdjointSums(chunk.cell, 9)
    for span in spans_of(chunk, 9, 3 * torch.arange(130).expand(9, -1), (40, 90)):
        sums.add(span, span.values.clone(), span.exponent)
    assert sums.side_by_side() is None


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_no_multiple_of_anything(kind):
    for steps, batch, hidden, rows, dtype in (
        (1, 1, 1, 9, torch.float64),
        (6, 13, 19, 6, torch.float32),
        (5, 1, 33, 40, torch.float32),
        (3, 300, 3, 2, torch.float64),
    ):
        chunk = chunk_of(cell_of(kind, 2, hidden, dtype), steps, batch)
        compare(chunk, rows, -40 if dtype == torch.float64 else -16)


@pytest.mark.parametrize("kind", ("lstm-2002", "gru"))
def test_scales_however_far_apart_and_however_long(kind):
    """Within a span and from one to the next, rising, falling and both; more steps than a block."""
    chunk = chunk_of(cell_of(kind, 2, 5, torch.float32), 130, 3)
    falling = 3 * torch.arange(130).expand(9, -1)
    jumping = 700 * integers(-2, 2, (9, 130))
    near = torch.arange(130).expand(9, -1) // 20
    for exponent in (falling, -falling, jumping, near, -near):
        compare(chunk, 9, -14, (40, 1, 89), exponent)


@pytest.mark.parametrize("threads", (1, 3))
def test_every_instruction_set_and_any_number_of_threads(monkeypatch, threads):
    before, found = torch.get_num_threads(), []
    opened = ctypes.CDLL(str(loading.PATH))
    torch.set_num_threads(threads)
    try:
        for number in range(len(loading._instruction_sets(opened))):
            one = loading._of(opened, number)
            monkeypatch.setattr(passes, "library", lambda one=one: one)
            found.append(compare(chunk_of(cell_of("lstm-2002", 2, 40), 40, 5), 19, -40))
        torch.set_num_threads(4 - threads)
        other = compare(chunk_of(cell_of("lstm-2002", 2, 40), 40, 5), 19, -40)
    finally:
        torch.set_num_threads(before)
    for name, total in other.items():
        assert torch.equal(total.values, found[-1][name].values)


def test_a_sum_of_no_rows_is_zero_where_others_are_put_aside():
    """Whatever the memory held before: deterministic torch fills it with NaN."""
    chunk = chunk_of(cell_of("lstm-2002", 2, 5), 6, 3)
    exponent = torch.tensor([0, 0, 200, 200, -300, -300]).expand(3, -1)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = summed(chunk, 3, exponent, torch.tensor([[0], [1], [3]]).expand(3, 6), (6,))
    finally:
        torch.use_deterministic_algorithms(before)
    for total in found.values():
        assert total.values.isfinite().all() and not total.values[2].any()
        assert total.values[[0, 1, 3]].flatten(1).any(1).all()
