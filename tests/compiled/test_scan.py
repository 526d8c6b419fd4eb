"""The compiled backward recursion against the eager one, which others hold against autograd."""

import ctypes
import math
from dataclasses import replace

import pytest
import torch

from retrograde.cells import Elman
from retrograde.compiled import library as loading
from retrograde.compiled import passes, sizes
from retrograde.compiled.crossings import Turn
from retrograde.decomposition.by_time import (
    ContributionNorms,
    ContributionShares,
    contribution_norms,
)
from retrograde.engine import Entries, adjoint, crossing_steps, fold, forward, unroll
from retrograde.engine.adjoint import AdjointSpan
from retrograde.engine.boundary import Boundary, Read
from retrograde.engine.gathered import Gathered
from retrograde.engine.scaling import NO_EXPONENT, Scaled
from retrograde.engine.scan import COMPILED, EAGER, NEAR, Entering, backend, plain_boundaries
from support.backends import BACKENDS, using
from support.chunks import KINDS, cell_of, chunk_of, drawn
from support.problems import MORE, PROBLEMS

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)


@pytest.fixture(autouse=True)
def _whatever_the_environment_asks_for():
    with using("compiled"):
        yield


def entering(chunk, started, grows, given=True, first=0, back=True):
    """A row more at each step that `grows` says so of, counted from the last one."""
    _, B, S = chunk.steps.state.shape
    count = len(chunk) - first
    rows = [started]
    for step in range(1, count):
        rows.append(rows[-1] + grows(step))
    values = drawn(count, B, S, dtype=chunk.steps.state.dtype, seed=3) if given else None
    return Entering(first, rows[::-1], values, back)


CASES = {  # none, one at each step, every other step, and a part of the chunk
    "carried": lambda chunk, N: entering(chunk, N, lambda step: 0, given=False),
    "added": lambda chunk, N: entering(chunk, N, lambda step: 0),
    "opened": lambda chunk, N: entering(chunk, N, lambda step: 1, back=False),
    "both": lambda chunk, N: entering(chunk, N, lambda step: step % 2, first=len(chunk) // 3),
}


def compare(chunk, given, start, tolerance):
    """Both backends, relative to the largest number of each result."""
    numbers = torch.arange(len(start), dtype=start.dtype)
    scales = None if given.values is None else torch.exp2(numbers % 5 - 2)
    ours, theirs = (each.pull_back(chunk, start, given, scales) for each in (COMPILED, EAGER))
    results = [(ours.values, theirs.values), (ours.norms, theirs.norms)]
    assert (ours.back is None) == (theirs.back is None) == (not given.back)
    if ours.back is not None:
        assert ours.back.shape == theirs.back.shape  # the last row is spare
        results.append((ours.back[:-1], theirs.back[:-1]))
        results.append((ours.back_norms, theirs.back_norms))
    for one, other in results:
        assert one.shape == other.shape
        atol = tolerance * float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
    for step, count in enumerate(given.rows):
        assert not ours.values[count:, step].any() and not ours.norms[count:, step].any()
    assert ours.values.is_contiguous()
    return ours


@pytest.mark.parametrize("problem", PROBLEMS + MORE, ids=lambda problem: problem.name)
def test_every_cell_that_is_no_function(problem):
    chunk = chunk_of(problem.make(), 5, 3)
    assert (chunk.compiled is None) == bool(chunk.plan.functions)
    for rows in (2, 19):  # through the weights, and through the Jacobian of each sample
        start = drawn(rows, 3, chunk.cell.state_size)
        compare(chunk, CASES["both"](chunk, rows), start, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_no_multiple_of_anything(kind):
    for steps, batch, hidden, rows, dtype in (
        (1, 1, 1, 1, torch.float64),
        (7, 13, 19, 6, torch.float64),
        (7, 13, 19, 6, torch.float32),
        (6, 1, 33, 40, torch.float32),
    ):
        chunk = chunk_of(cell_of(kind, 2, hidden, dtype), steps, batch)
        start = drawn(rows, batch, chunk.cell.state_size, dtype=dtype, seed=1)
        tolerance = 1e-13 if dtype == torch.float64 else 3e-6
        for case in CASES.values():
            compare(chunk, case(chunk, rows), start, tolerance)


def test_a_product_longer_than_a_tile_runs_in_one_go():
    """More than 384 units, of one block and of several."""
    for kind, hidden in (("elman", 391), ("cifg", 150)):
        chunk = chunk_of(cell_of(kind, 1, hidden), 3, 2)
        for rows in (2, 10):
            start = 1e-3 * drawn(rows, 2, chunk.cell.state_size)
            compare(chunk, CASES["added"](chunk, rows), start, 1e-12)


@pytest.mark.parametrize("kind", ("lstm-2002", "gru-2014"))
def test_every_instruction_set(monkeypatch, kind):
    opened = ctypes.CDLL(str(loading.PATH))
    for number in range(len(loading._instruction_sets(opened))):
        one = loading._of(opened, number)
        monkeypatch.setattr(passes, "library", lambda one=one: one)
        for rows in (2, 20):
            chunk = chunk_of(cell_of(kind, 2, 29), 5, 3)
            start = drawn(rows, 3, chunk.cell.state_size)
            compare(chunk, CASES["both"](chunk, rows), start, 1e-13)
            compare_norms(chunk, drawn(rows, 5, 3, chunk.cell.state_size), 1e-10)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("factor", (2.0**-5, 2.0**-1, 2.0**5))
def test_few_rows_are_kept_in_range(monkeypatch, factor, dtype):
    """Against float64, which holds all of them as they are; in every instruction set."""
    weights = (drawn(9, 2), factor * torch.linalg.qr(drawn(9, 9))[0], drawn(9), drawn(9))
    cells = [
        Elman(*(weight.to(kind) for weight in weights), activation="identity")
        for kind in (dtype, torch.float64)
    ]
    x, initial = 0 * drawn(90, 3, 2), 0 * drawn(3, 9)
    chunk, exact = (
        unroll(cell, x.to(kind), initial.to(kind)).chunk(0, 90)
        for cell, kind in zip(cells, (dtype, torch.float64), strict=True)
    )
    most = NEAR // (3 * 9)
    assert COMPILED.ranges(chunk, most) and not COMPILED.ranges(chunk, most + 1)
    start, opened = 2.0**32 * drawn(2, 3, 9), [step in (3, 50, 51) for step in range(90)]
    given = entering(exact, 2, lambda step: opened[step])
    given = replace(
        given, values=2.0**32 * given.values * torch.tensor(opened[::-1])[:, None, None]
    )
    theirs = EAGER.pull_back(exact, start, given)
    library = ctypes.CDLL(str(loading.PATH))
    for number in range(len(loading._instruction_sets(library))):
        one = loading._of(library, number)
        monkeypatch.setattr(passes, "library", lambda one=one: one)
        again, values = replace(chunk), given.values.to(dtype)
        ours = COMPILED.pull_back(
            again, start.to(dtype), replace(given, values=values, ranged=True)
        )
        entered = theirs.norms > 0
        assert bool((ours.norms[entered] >= 2.0**8).all() & (ours.norms[entered] <= 2.0**56).all())
        assert not ours.values[~entered].any() and not ours.exponents[~entered].any()
        found = ours.values.double() * torch.exp2(ours.exponents.double())[..., None, None]
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12  # 90 steps of rounding
        atol = tolerance * theirs.norms[..., None, None]
        assert bool(((found - theirs.values).abs() <= atol).all())
        back = ours.back[:-1].double() * torch.exp2(ours.exponents[:, 0].double())[:, None, None]
        assert bool(((back - theirs.back[:-1]).abs() <= factor * atol[:, 0]).all())
        assert ours.exponents.any()


@pytest.mark.parametrize("factor", (2.0**-5, 2.0**-1, 2.0**5))
def test_a_row_stays_in_its_units_as_long_as_the_loss_adds_to_it(factor):
    """Against float64, in more rows than samples are taken together for."""
    weights = (drawn(9, 2), factor * torch.linalg.qr(drawn(9, 9))[0], drawn(9), drawn(9))
    x, initial = 0 * drawn(80, 3, 2), 0 * drawn(3, 9)
    chunk, exact = (
        unroll(
            Elman(*(weight.to(kind) for weight in weights), activation="identity"),
            *(x.to(kind), initial.to(kind)),
        ).chunk(0, 80)
        for kind in (torch.float32, torch.float64)
    )
    fed = 29 if factor < 1 else 24  # where it shrinks, below the range; no square may be infinite
    opens, adds = (2, 20, 40), (21, fed, 41, 42, 43, 44)
    given = entering(exact, 20, lambda step: step in opens)
    some = torch.tensor([step in opens + adds for step in range(80)][::-1])
    given = replace(given, values=2.0**32 * given.values * some[:, None, None])
    start = 2.0**32 * drawn(20, 3, 9)
    theirs = EAGER.pull_back(exact, start, given)
    single = replace(given, values=given.values.to(torch.float32), ranged=True)
    ours = COMPILED.pull_back(chunk, start.to(torch.float32), single)
    found = ours.values.double() * torch.exp2(ours.exponents.double())[..., None, None]
    atol = 1e-4 * theirs.norms[..., None, None]
    assert bool(((found - theirs.values).abs() <= atol).all())
    steps = torch.arange(80).flip(0)
    assert not ours.exponents[21, (steps >= 20) & (steps < fed)].any()
    assert not ours.exponents[22, (steps >= 40) & (steps < 44)].any()
    moves = ours.exponents[:, :-1] - ours.exponents[:, 1:]
    for row, last in ((0, 0), (21, fed), (22, 44)):  # and is brought into range behind
        assert moves[row, steps[:-1] > last].any()
        assert bool((ours.norms[row, steps > last] <= 2.0**56).all())
        assert bool((ours.norms[row, steps > last] >= 2.0**8).all())


def test_a_row_that_falls_farther_than_a_power_of_two_reaches_is_kept(monkeypatch):
    """Behind a closed gate: from 2^26 to 2^-78, which 2^130 would bring back, were it a float32."""
    weights = (drawn(9, 2), 2.0**-104 * torch.linalg.qr(drawn(9, 9))[0], drawn(9), drawn(9))
    x, initial = 0 * drawn(3, 3, 2), 0 * drawn(3, 9)
    chunk, exact = (
        unroll(
            Elman(*(weight.to(kind) for weight in weights), activation="identity"),
            *(x.to(kind), initial.to(kind)),
        ).chunk(0, 3)
        for kind in (torch.float32, torch.float64)
    )
    start, given = 2.0**24 * drawn(2, 3, 9), Entering(0, [2, 2, 2], None, False)
    theirs = EAGER.pull_back(exact, start, given)
    library = ctypes.CDLL(str(loading.PATH))
    for number in range(len(loading._instruction_sets(library))):
        one = loading._of(library, number)
        monkeypatch.setattr(passes, "library", lambda one=one: one)
        again = replace(given, ranged=True)
        ours = COMPILED.pull_back(replace(chunk), start.to(torch.float32), again)
        found = ours.values.double() * torch.exp2(ours.exponents.double())[..., None, None]
        assert bool(((found - theirs.values).abs() <= 1e-5 * theirs.norms[..., None, None]).all())


@pytest.mark.parametrize("batch, rows", ((5, 20), (1, 80), (70, 1)))
def test_any_number_of_threads_gives_the_same_bits(batch, rows):
    """Samples are shared out, or rows where there are fewer samples than threads."""
    chunk, before = chunk_of(cell_of("lstm-2002", 2, 40), 6, batch), torch.get_num_threads()
    start, found = drawn(rows, batch, chunk.cell.state_size), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(COMPILED.pull_back(chunk, start, CASES["both"](chunk, rows)))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.values, found[0].values)
        assert torch.equal(other.norms, found[0].norms)
        assert torch.equal(other.back[:-1], found[0].back[:-1])


@pytest.mark.parametrize("kind", ("lstm-2002", "gru", "gru-2014", "elman"))
def test_what_is_not_finite_goes_where_it_goes_in_the_eager_backend(kind):
    """NaN and infinities, in the rows, what enters, a factor and a weight."""
    for value in (math.nan, math.inf):
        for place in ("start", "given", "state", "weight"):
            for rows in (2, 19):
                cell = cell_of(kind, 2, 5)
                if place == "weight":
                    cell.weight_hh[2, 3] = value
                chunk = chunk_of(cell_of(kind, 2, 5), 6, 3)
                chunk = replace(chunk, cell=cell)
                if place == "state":
                    chunk.steps.activations[next(iter(chunk.steps.activations))][3, 1, 2] = value
                start, given = drawn(rows, 3, cell.state_size), CASES["both"](chunk, rows)
                if place == "start":
                    start[1, 2, 3] = value
                if place == "given":
                    given.values[2, 1, 4] = value
                ours, theirs = (one.pull_back(chunk, start, given) for one in (COMPILED, EAGER))
                for one, other in ((ours.values, theirs.values), (ours.norms, theirs.norms)):
                    assert torch.equal(one.isfinite(), other.isfinite())
                assert not ours.norms.isfinite().all()


def test_any_layout_and_boundaries():
    """Plain factors between steps are run, what mixes units is left to the eager backend."""
    chunk = chunk_of(cell_of("lstm-2002", 2, 5), 6, 3)
    start = drawn(10, 3, 7).transpose(0, 2)
    given = CASES["added"](chunk, 7)
    given = replace(given, values=given.values.transpose(1, 2).contiguous().transpose(1, 2))
    assert not start.is_contiguous() and not given.values.is_contiguous()
    plain = compare(chunk, given, start, 1e-13)
    kept = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) > 0.3
    one = Boundary.detached(drawn(3, 10), kept)
    mixing = replace(one, reads=(Read(kept.double(), torch.arange(30).flip(0).view(3, 10)),))
    for boundary in (one, mixing):
        for steps in ((0,), (2, 5)):
            bounded = replace(chunk, boundaries=dict.fromkeys(steps, boundary))
            other = compare(bounded, given, start, 1e-13)
            assert not torch.equal(other.back[:-1], plain.back[:-1])


CLASSES = 3


STARTS = [0, 2, 3, 6]


def a_way(given, sources, weights, exponent, lags):
    """Steps with the one turn at the latest of them."""
    unit = exponent.view(len(lags), -1)
    moves = torch.exp2((unit[:, :-1] - unit[:, 1:]).to(weights.dtype))
    turn = Turn(len(given) - 1, sources, weights, exponent, moves)
    return crossing_steps.Way(given, [turn], lags, None)


def compare_crossings(chunk, given, entries, tolerance, classes=CLASSES):
    """Both backends, relative to the largest number of a result, on exponents of their own.

    More rows arrive than there are entries at the last step, where neighbours are added.
    """
    most, (B, S), dtype = given.rows[0], chunk.steps.state.shape[1:], chunk.steps.state.dtype
    sources = [n + n // 2 for n in range(entries + 1)]  # one, then two, and so on
    values = drawn(sources[-1] * classes, B, S, dtype=dtype, seed=6)
    weights = torch.exp2(torch.arange(len(values)) % 3 - 1).to(dtype)
    exponent = torch.arange(most * classes) * 7 % 5
    lags = (torch.tensor(given.rows).sub(1) // 2 - torch.arange(most).unsqueeze(1)).clamp(min=-1)
    found = []
    for name in ("compiled", "eager"):
        with using(name):
            own, way = replace(chunk), a_way(given, sources, weights, exponent, lags)
            found.append(crossing_steps.pull_back(own, values, way, None))
            pays = name == "compiled" and own.compiled_by_crossing is not None
            pays = pays and plain_boundaries(own, given.first, len(given)) is not None
            pays = pays and torch.get_num_threads() <= B
            assert crossing_steps.are_summed(own, given.first, len(given)) == pays
            if pays:
                gathered = Gathered(STARTS, classes, values)
                summed = crossing_steps.pull_back(own, values, way, gathered)
                compare_sums(found[-1], summed, exponent, lags, tolerance, classes)
    ours, theirs = found
    assert (ours.back is None) == (theirs.back is None) == (not given.back)
    back = ("back", "back_sizes") if given.back else ()
    for result in ("values", "sizes", *back):
        one, other = getattr(ours, result), getattr(theirs, result)
        atol = tolerance * float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=atol)
    return ours


def compare_sums(rows, summed, exponent, lags, tolerance, classes):
    """Sums by class and bin against the rows themselves, of which all else is the same."""
    for result in ("sizes", "back", "back_sizes"):
        one, other = getattr(rows, result), getattr(summed, result)
        assert one is other is None or torch.equal(one, other)
    bins, there = len(STARTS), rows.sizes > 0
    plain = rows.values.double() * torch.exp2(exponent.double()).view(-1, 1, 1, 1)
    places = torch.bucketize(lags, torch.tensor(STARTS[1:]), right=True)
    places = (places.unsqueeze(1) + bins * torch.arange(classes).view(-1, 1)).flatten(0, 1)
    for number in range(bins * classes):
        some = (places == number) & there
        expected = (plain * some[..., None, None]).sum(0)
        top = torch.where(some, exponent.unsqueeze(1), NO_EXPONENT).amax(0)
        assert torch.equal(summed.units[number], top)
        unit = torch.where(top == NO_EXPONENT, 0, top).double()
        found = summed.values[number].double() * torch.exp2(unit).view(-1, 1, 1)
        atol = tolerance * float(plain.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("problem", PROBLEMS + MORE, ids=lambda problem: problem.name)
def test_rows_by_crossing_of_every_cell(problem):
    chunk = chunk_of(problem.make(), 5, 3)
    assert (chunk.compiled_by_crossing is None) == bool(chunk.plan.functions)
    for entries in (1, 7):
        compare_crossings(chunk, CASES["both"](chunk, entries), entries, 1e-13)


@pytest.mark.parametrize("kind", ("lstm-2002", "gru-2014"))
def test_rows_by_crossing_of_any_size_case_and_boundary(kind):
    for steps, batch, hidden, entries, dtype in (
        (1, 1, 1, 1, torch.float64),
        (7, 13, 19, 2, torch.float32),
        (6, 2, 33, 20, torch.float64),
    ):
        chunk = chunk_of(cell_of(kind, 2, hidden, dtype), steps, batch)
        shape, tolerance = (batch, chunk.cell.state_size), 1e-13 if dtype.itemsize == 8 else 3e-6
        factor = drawn(*shape, dtype=dtype, seed=4)
        one = Boundary(factor, factor > 0, (Read(factor),))
        for case in CASES.values():
            given = case(chunk, entries)
            compare_crossings(chunk, given, entries, tolerance)
            bounded = replace(chunk, boundaries={steps - 1: one, 0: one})
            compare_crossings(bounded, given, entries, tolerance)


@pytest.mark.parametrize("batch, entries", ((5, 6), (1, 20)))
def test_rows_by_crossing_with_any_number_of_threads(batch, entries):
    chunk, before = chunk_of(cell_of("lstm-2002", 2, 40), 6, batch), torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(compare_crossings(chunk, CASES["both"](chunk, entries), entries, 1e-13))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.values, found[0].values) and torch.equal(other.back, found[0].back)
        assert torch.equal(other.sizes, found[0].sizes)


@pytest.mark.parametrize("classes", (2, 9, 16, 49))
def test_rows_by_crossing_of_any_number_of_classes(classes):
    """Those of an entry are taken together, and those of others while there is room."""
    chunk = chunk_of(cell_of("lstm-2002", 2, 19), 5, 3)
    for entries in (1, 7):
        compare_crossings(chunk, CASES["both"](chunk, entries), entries, 1e-13, classes)


def test_rows_by_crossing_say_what_is_not_finite():
    chunk = chunk_of(cell_of("lstm-2002", 2, 19), 4, 2)
    for value in (math.nan, math.inf, -math.inf):
        given = CASES["both"](chunk, 6)
        given.values[1, 1, 4] = value
        exponent = torch.zeros(given.rows[0] * CLASSES, dtype=torch.int64)
        lags = torch.zeros(given.rows[0], len(given), dtype=torch.int64)
        start = drawn(6 * CLASSES, 2, chunk.cell.state_size)
        way = a_way(given, range(7), torch.ones(len(start), dtype=start.dtype), exponent, lags)
        found = crossing_steps.pull_back(chunk, start, way, None)
        wrong = ~found.values.isfinite().flatten(2).all(2)
        assert wrong.any() and torch.equal(wrong, ~found.sizes.isfinite())


def test_the_environment_chooses():
    assert backend() is COMPILED
    with using("eager"):
        assert backend() is EAGER
        assert chunk_of(cell_of("gru", 2, 3), 2, 2).compiled is None


def norms_of(chunk, values, first=0):
    """What `contribution_norms` gives of some rows, by parameter."""
    _, steps, _, _ = values.shape
    exponent = torch.arange(len(values)).unsqueeze(1).expand(-1, steps)
    lags = torch.zeros_like(exponent)
    span = AdjointSpan(first, values, exponent, values.flatten(2).norm(dim=2), lags, chunk)
    return {(name, more): log2 for name, more, log2 in contribution_norms(span)}


def compare_norms(chunk, values, tolerance, first=0):
    assert chunk.compiled_uses is not None
    found = norms_of(chunk, values, first)
    with using("eager"):
        expected = norms_of(replace(chunk), values, first)
    assert found.keys() == expected.keys()
    for name, log2 in expected.items():
        torch.testing.assert_close(found[name], log2, rtol=0, atol=tolerance)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_sizes_of_what_rows_make_of_parameters(problem):
    chunk = chunk_of(problem.make(), 5, 3)
    if chunk.plan.functions:
        assert chunk.compiled_uses is None
        return
    values = drawn(19, 5, 3, chunk.cell.state_size, seed=4)
    compare_norms(chunk, values, 1e-9)
    compare_norms(chunk, values[::3, 1:4], 1e-9, first=1)  # any stride of rows and steps


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_any_batch(kind):
    """One sample, more than a tile of them, few and many rows."""
    for batch, hidden, rows, dtype in (
        (1, 1, 1, torch.float64),
        (1, 19, 30, torch.float32),
        (6, 19, 3, torch.float64),
        (5, 32, 9, torch.float32),  # whole vectors, which are read where they lie
        (21, 33, 12, torch.float32),
    ):
        chunk = chunk_of(cell_of(kind, 2, hidden, dtype), 4, batch)
        values = drawn(rows, 4, batch, chunk.cell.state_size, dtype=dtype, seed=5)
        values[0, 1] = 0
        compare_norms(chunk, values, 1e-8 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize("power", (70, -70))
def test_sizes_of_inputs_whose_squares_leave_the_range(power):
    """2^140 and 2^-140 are beyond float32; weights that undo it make the rest what it was."""
    found = []
    for factor in (1.0, 2.0**power):
        cell = cell_of("lstm-2002", 2, 7, torch.float32)
        weights = dict(cell.parameters, weight_ih=cell.weight_ih / factor)
        x = factor * drawn(3, 5, 2, dtype=torch.float32)
        initial = drawn(5, cell.state_size, dtype=torch.float32)
        chunk = unroll(cell.with_parameters(weights), x, initial).chunk(0, 3)
        found.append(norms_of(chunk, drawn(4, 3, 5, cell.state_size, dtype=torch.float32)))
    for key, log2 in found[0].items():
        shift = power if key[0] == "weight_ih" else 0
        torch.testing.assert_close(found[1][key], log2 + shift, rtol=0, atol=1e-9)


def test_sizes_of_samples_that_cancel_are_those_of_the_parts():
    """Two samples alike whose adjoints differ in sign, to one part in 2^20."""
    cell = cell_of("gru", 2, 5)
    x, initial = drawn(3, 1, 2).expand(-1, 2, -1), drawn(1, 5).expand(2, -1)
    chunk = unroll(cell, x, initial).chunk(0, 3)
    values = drawn(7, 3, 1, 5) * torch.tensor([1, -1 + 2.0**-20], dtype=torch.float64)[:, None]
    found = sizes.sizes_of(chunk.compiled_uses, 0, values)
    assert found.cancels.all() and (found.squares < 1e-9 * values.square().sum((2, 3))).all()
    compare_norms(chunk, values, 1e-6)


def test_rows_that_have_not_entered_yet_make_nothing():
    """They are not even read."""
    cell = cell_of("lstm-2002", 2, 5)
    chunk = unroll(cell, drawn(6, 2, 2), drawn(2, cell.state_size)).chunk(0, 6)
    uses, values = chunk.compiled_uses, drawn(7, 6, 2, cell.state_size)
    lags = torch.arange(7).unsqueeze(1) - torch.tensor([1, 2, 2, 4, 7, 7])
    entered = lags < 0
    lags = torch.where(entered, 3, -1)
    whole = sizes.gradients_of(uses, {name: w.detach() for name, w in cell.parameters.items()})
    expected = sizes.sizes_of(uses, 0, values, None, whole)
    found = sizes.sizes_of(uses, 0, values.where(entered[..., None, None], torch.nan), lags, whole)
    for ours, theirs in ((found.squares, expected.squares), (found.inner, expected.inner)):
        assert torch.equal(ours, theirs * entered)
    assert not found.cancels.any()


def test_norms_and_shares_of_spans_are_put_together_by_chunk(monkeypatch):
    """Eleven steps in chunks of four, and these in spans of one or two."""
    cell = cell_of("lstm-2002", 2, 3)
    x, initial = drawn(11, 2, 2), drawn(2, cell.state_size)
    entries = Entries.of(drawn(11, 2, cell.state_size, seed=7))
    gradient = {
        name: Scaled.of(drawn(weight.numel(), seed=8).view(1, *weight.shape))
        for name, weight in cell.parameters.items()
    }

    def found():
        norms = ContributionNorms(entries, len(x), cell.parameters)
        shares = ContributionShares(entries, len(x), gradient, norms)
        fold(unroll(cell, x, initial), entries, [shares])
        return norms.result(), shares.result(gradient)

    with using("eager"):
        expected = found()
    monkeypatch.setattr(adjoint, "GATHERED", 2 * len(x) * x.shape[1] * cell.state_size)
    monkeypatch.setattr(type(unroll(cell, x, initial)), "together", 4)
    for ours, theirs in zip(found(), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, table in theirs.items():
            torch.testing.assert_close(ours[name], table, rtol=1e-9, atol=1e-12)


def pushed(cell, x, before, change):
    """The change of the state after a step that goes with one of a parameter, by autograd."""
    weights = dict(cell.parameters)

    def state(changed):
        return cell.with_parameters(weights | changed).step(x, before).state

    with using("eager"):
        return torch.func.jvp(state, ({n: weights[n] for n in change},), (change,))[1]


def compare_products(chunk, values, tolerance, first=0):
    """What the library gives for each parameter against <values, push of its change>."""
    uses, cell, count = chunk.compiled_uses, chunk.cell, values.shape[1]
    change = {
        name: drawn(weight.numel(), dtype=weight.dtype, seed=6).view_as(weight)
        for name, weight in cell.parameters.items()
    }
    whole = sizes.gradients_of(uses, change)
    alone = sizes.sizes_of(uses, first, values, None, whole, squares=False)
    both = sizes.sizes_of(uses, first, values, None, whole)
    assert alone.squares is None and alone.cancels is None
    assert torch.equal(alone.inner, both.inner)
    assert torch.equal(both.squares, sizes.sizes_of(uses, first, values).squares)
    for name, direction in change.items():
        own = [number for number, side in enumerate(uses.sides) if side.parameter == name]
        steps = chunk.steps.x[first : first + count], chunk.steps.previous[first : first + count]
        by_state = pushed(cell, *steps, {name: direction})
        expected = torch.einsum("nkbs,kbs->nk", values.double(), by_state.double())
        scale = tolerance * float(values.double().flatten(2).norm(dim=2).max() * by_state.norm())
        torch.testing.assert_close(both.inner[own].sum(0), expected, rtol=0, atol=scale)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_products_with_a_gradient(problem):
    chunk = chunk_of(problem.make(), 5, 3)
    if chunk.plan.functions:
        return
    values = drawn(19, 5, 3, chunk.cell.state_size, seed=4)
    compare_products(chunk, values, 1e-13)
    compare_products(chunk, values[::3, 1:4], 1e-13, first=1)


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_a_gradient_of_any_batch(kind):
    for batch, hidden, rows, dtype in (
        (1, 1, 1, torch.float64),
        (1, 19, 30, torch.float32),
        (6, 19, 3, torch.float64),
        (5, 32, 9, torch.float32),
        (3, 71, 2, torch.float32),  # more than four vectors and a remainder
    ):
        chunk = chunk_of(cell_of(kind, 2, hidden, dtype), 4, batch)
        values = drawn(rows, 4, batch, chunk.cell.state_size, dtype=dtype, seed=5)
        compare_products(chunk, values, 1e-13 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_states_of_every_cell(monkeypatch, problem):
    """Between boundaries, with samples that end early, in pieces, also beside each other."""
    monkeypatch.setattr(forward, "SEGMENT", 4)
    cell = problem.make()
    x, initial = drawn(11, 3, cell.input_size), drawn(3, cell.state_size, seed=1)
    kept = torch.rand(initial.shape, generator=torch.Generator().manual_seed(2)) > 0.3
    one = Boundary.detached(drawn(*initial.shape, seed=3), kept)
    bounded, lengths = {0: one, 6: one, 7: one}, torch.tensor([11, 2, 6])
    for boundaries, ends in (({}, None), (bounded, None), (bounded, lengths)):
        found = []
        for name in ("compiled", "eager"):
            with using(name):
                found.append(unroll(cell, x, initial, False, boundaries, ends).states)
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
