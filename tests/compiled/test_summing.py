"""Sums of rows that the library makes while it pulls them back, against rows in float64."""

import ctypes
import math
from dataclasses import replace

import pytest
import torch

from retrograde.cells import Elman
from retrograde.compiled import library as loading
from retrograde.compiled import passes
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import LagSums
from retrograde.decomposition.by_route import RouteSums
from retrograde.engine import Entries, unroll
from retrograde.engine.boundary import Boundary, Read
from retrograde.engine.fold import fold
from retrograde.engine.scaling import NO_EXPONENT
from retrograde.engine.scan import COMPILED, EAGER, Entering
from retrograde.errors import NonFiniteError
from support.backends import BACKENDS, using
from support.chunks import KINDS, cell_of, chunk_of, drawn
from support.problems import MORE, PROBLEMS

pytestmark = pytest.mark.skipif(
    "compiled" not in BACKENDS, reason="the compiled backend was not built"
)

SUMS = 5
"""To the last of them no row belongs."""


@pytest.fixture(autouse=True)
def _whatever_the_environment_asks_for():
    with using("compiled"):
        yield


def entering(chunk, started, opens, first=0, back=True):
    """A row of its own at each step that `opens` says so of, counted from the last one."""
    _, batch, size = chunk.steps.state.shape
    rows, count = [started], len(chunk) - first
    values = drawn(count, batch, size, dtype=chunk.steps.state.dtype, seed=3)
    for step in range(1, count):
        rows.append(rows[-1] + opens(step))
        values[count - 1 - step] *= opens(step)
    return Entering(first, rows[::-1], values, back)


def every_other(step):
    return step % 2


def drawn_places(given):
    """Some rows in no sum, and neighbours in the same one more often than not."""
    generator = torch.Generator().manual_seed(5)
    shape = given.rows[0] // 3 + 1, len(given)
    some = torch.randint(-1, SUMS - 1, shape, generator=generator)
    return some.repeat_interleave(3, 0)[: given.rows[0]]


def as_exact(rows):
    """The same rows as float64."""
    return replace(rows, values=rows.values.double())


def compare(chunk, given, start, tolerance, exact=None):
    """Each sample relative to the rows that are in a sum; `exact` is the same chunk in float64."""
    places = drawn_places(given)
    units = torch.arange(given.rows[0]) * 7 % 11 - 5
    ours = COMPILED.sum_back(chunk, start, given, units, places, SUMS)
    theirs = EAGER.pull_back(exact or chunk, start.double(), as_exact(given))
    rows = theirs.values * powers(units.view(-1, 1))
    expected = torch.stack([rows[places == m].new_zeros(rows.shape[1:]) for m in range(SUMS)])
    bound = expected.new_zeros(expected.shape[:-1])
    for m in range(SUMS):
        own = rows * (places == m)[..., None, None]
        expected[m], bound[m] = own.sum(0), own.norm(dim=-1).sum(0)
    present = ours.exponents != NO_EXPONENT
    assert torch.equal(present, bound.sum(2) > 0)
    assert not ours.values[~present].any()
    found = ours.values.double() * powers(torch.where(present, ours.exponents, 0))
    assert bool(((found - expected).abs() <= tolerance * bound.unsqueeze(-1)).all())
    assert (ours.back is None) == (not given.back)
    if given.back:
        back = ours.back[:-1].double() * powers(ours.back_exponents)
        size = theirs.back[:-1].norm(dim=-1, keepdim=True)
        assert bool(((back - theirs.back[:-1]).abs() <= tolerance * size).all())
        norms = ours.back[:-1].double().flatten(1).norm(dim=1)
        torch.testing.assert_close(ours.back_norms.double(), norms, rtol=1e-5, atol=0)
    return ours


def powers(exponents):
    """2**exponents, for rows [..., B, S]."""
    return torch.exp2(exponents.double())[..., None, None]


@pytest.mark.parametrize("problem", PROBLEMS + MORE, ids=lambda problem: problem.name)
def test_every_cell_that_is_no_function(problem):
    chunk = chunk_of(problem.make(), 5, 3)
    if chunk.compiled is None:
        return
    for rows in (2, 19):  # through the weights, and through the Jacobian of each sample
        start = drawn(rows, 3, chunk.cell.state_size)
        compare(chunk, entering(chunk, rows, every_other), start, 1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_no_multiple_of_anything(kind):
    for steps, batch, hidden, rows, dtype in (
        (1, 1, 1, 1, torch.float64),
        (7, 13, 19, 6, torch.float64),
        (7, 13, 19, 6, torch.float32),
        (6, 1, 33, 40, torch.float32),
    ):
        cell = cell_of(kind, 2, hidden, dtype)
        chunk, exact = chunk_of(cell, steps, batch), None
        if dtype == torch.float32:
            exact = in_double(chunk)
        start = drawn(rows, batch, cell.state_size, dtype=dtype, seed=1)
        tolerance = 1e-11 if dtype == torch.float64 else 1e-3
        compare(chunk, entering(chunk, rows, every_other), start, tolerance, exact)
        part = entering(chunk, rows, lambda step: 1, first=steps // 3, back=False)
        compare(chunk, part, start, tolerance, exact)


def in_double(chunk):
    """The same steps, in float64."""
    parameters = {name: value.double() for name, value in chunk.cell.parameters.items()}
    steps = chunk.steps
    kept = {name: value.double() for name, value in steps.activations.items()}
    doubled = replace(
        steps,
        x=steps.x.double(),
        previous=steps.previous.double(),
        state=steps.state.double(),
        activations=kept,
    )
    return replace(chunk, cell=replace(chunk.cell, **parameters), steps=doubled)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("factor", (2.0**-5, 2.0**-1, 2.0**5))
def test_rows_are_kept_in_range(monkeypatch, factor, dtype):
    """Far beyond that of float32, and in a sample that is far smaller than the others."""
    weights = (drawn(9, 2), factor * torch.linalg.qr(drawn(9, 9))[0], drawn(9), drawn(9))
    x, initial, found = 0 * drawn(90, 3, 2), 0 * drawn(3, 9), []
    for kind in (dtype, torch.float64):
        cell = Elman(*(weight.to(kind) for weight in weights), activation="identity")
        found.append(unroll(cell, x.to(kind), initial.to(kind)).chunk(0, 90))
    chunk, exact = found
    start = 2.0**32 * drawn(7, 3, 9).to(dtype)
    start[2], start[:, 1] = 0, start[:, 1] * 2.0**-100
    given = entering(chunk, 7, lambda step: step in (3, 50, 51))
    given.values.mul_(2.0**32)
    library = ctypes.CDLL(str(loading.PATH))
    for number in range(len(loading._instruction_sets(library))):
        one = loading._of(library, number)
        monkeypatch.setattr(passes, "library", lambda one=one: one)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-12  # 90 steps of rounding
        ours = compare(replace(chunk), given, start, tolerance, exact)
        assert ours.back_exponents.any()


@pytest.mark.parametrize("batch, rows", ((5, 20), (1, 80), (70, 1)))
def test_any_number_of_threads(batch, rows):
    """Samples are shared out, or rows where there are fewer samples than threads."""
    chunk, before = chunk_of(cell_of("lstm-2002", 2, 40), 6, batch), torch.get_num_threads()
    start, found = drawn(rows, batch, chunk.cell.state_size), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(compare(chunk, entering(chunk, rows, every_other), start, 1e-11))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.exponents, found[0].exponents)
        assert torch.equal(other.back[:-1], found[0].back[:-1])


def test_boundaries():
    """Plain factors between steps are run; what mixes units is not."""
    chunk = chunk_of(cell_of("lstm-2002", 2, 5), 6, 3)
    start, given = drawn(10, 3, 10), entering(chunk, 10, every_other)
    kept = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) > 0.3
    one = Boundary.detached(drawn(3, 10), kept)
    bounded = replace(chunk, boundaries={0: one, 2: one, 5: one})
    assert not torch.equal(
        compare(bounded, given, start, 1e-11).values, compare(chunk, given, start, 1e-11).values
    )
    mixing = replace(one, reads=(Read(kept.double(), torch.arange(30).flip(0).view(3, 10)),))
    places, units = drawn_places(given), torch.zeros(given.rows[0], dtype=torch.int64)
    mixed = replace(chunk, boundaries={2: mixing})
    assert COMPILED.sum_back(mixed, start, given, units, places, SUMS) is None


def test_rows_that_are_not_finite_are_not_summed():
    chunk = chunk_of(cell_of("lstm-2002", 2, 19), 4, 2)
    places, units = torch.zeros(8, 4, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)
    for value in (math.nan, math.inf, -math.inf):
        for what in ("start", "values"):
            start, given = drawn(6, 2, 38), entering(chunk, 6, every_other)
            (start if what == "start" else given.values)[1, 1, 4] = value
            assert COMPILED.sum_back(chunk, start, given, units, places, 1) is None


class Watched:
    """Counts the steps at which a fold was given rows, and sums."""

    given = summed = 0

    def update(self, span):
        self.given += len(span)
        super().update(span)

    def add(self, span, lags):
        self.summed += len(span)
        super().add(span, lags)


class WatchedLags(Watched, LagSums):
    pass


class WatchedRoutes(Watched, RouteSums):
    pass


class Rows:
    """A fold that asks for rows."""

    def update(self, span):
        assert len(span.values) == len(span.norms)


@pytest.mark.parametrize("relative", (None, 8))
@pytest.mark.parametrize("factor", (0.1, 1.0, 2.0))
def test_lags_and_routes_are_summed_on_the_way(relative, factor):
    """As they are of rows that were handed out, whether these vanish or explode."""
    cell = cell_of("lstm-2000", 2, 7)
    cell = replace(cell, weight_hh=factor * cell.weight_hh)
    x, direct = drawn(150, 3, 2), drawn(150, 3, 14, seed=1)
    entries = Entries.merging(direct, relative) if relative else Entries.of(direct)

    def found(*which, rows=()):
        lags = WatchedLags(lag_bins("octaves", 150), cell)
        routes = WatchedRoutes(lag_bins((0, 1, 7, 60), 150), cell, entries)
        folds = [{"lags": lags, "routes": routes}[name] for name in which]
        fold(unroll(cell, x), entries, [*folds, *rows])
        for each in folds:
            assert (each.summed > each.given) == (not rows)
            assert each.summed + each.given == 150
        return [each.result() for each in folds]

    of_lags, of_routes = found("lags", "routes", rows=[Rows()])
    for one, other in zip(
        (*found("lags", "routes"), *found("lags"), *found("routes")),
        (of_lags, of_routes, of_lags, of_routes),
        strict=True,
    ):
        for name in cell.parameters:
            near(one[name].scaled, other[name].scaled)


def near(one, other):
    """To rounding, row by row, each with an exponent of its own."""
    shift = powers(one.exponent - other.exponent).view(-1, *[1] * (one.values.ndim - 1))
    error = (one.values * shift - other.values).flatten(1).norm(dim=1)
    assert bool((error <= 1e-11 * other.values.flatten(1).norm(dim=1)).all())


def test_a_pass_with_a_row_that_is_not_finite_is_that_of_rows():
    """An infinite weight makes NaN of every row; whoever takes rows is told so as well."""
    cell = cell_of("elman", 2, 5)
    cell.weight_hh[2, 3] = math.inf
    x, direct = drawn(40, 2, 2), drawn(40, 2, 5, seed=1)
    said = []
    for more in ([], [Rows()]):
        sums = [WatchedLags((range(40),), cell)]
        with pytest.raises(NonFiniteError) as error:
            fold(unroll(cell, x), Entries.of(direct), sums + more)
        said.append(str(error.value))
        assert not sums[0].summed
    assert said[0] == said[1]
