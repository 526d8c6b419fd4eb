"""Lags unit by unit: against sums written out, beyond the range, and at lengths without rows."""

from dataclasses import dataclass, replace

import mpmath
import pytest
import torch

import retrograde
from retrograde.cells import AbstractLinear, CellStep, MinGRU, truncated
from retrograde.cells.edges import Diagonal, Use
from retrograde.cells.unitwise import unitwise
from retrograde.decomposition.bins import lag_bins
from retrograde.decomposition.by_lag import LagSums
from retrograde.engine import Boundary, Entries, Read, fold, unroll
from retrograde.engine import unitwise as engine
from support.problems import FAMILY, GRU_, LRU_, LSTM_, MINGRU, SELECTIVE, SLSTM_, TANH, B, stack


def peepholes():
    return truncated(FAMILY["lstm-2002"]())


def normalised():
    """Three parts of the state lead to each other, so that products do not commute."""
    return truncated(SLSTM_())


BINS = ["octaves", "every", (0,), (0, 13, 52), (0, 1, 4, 9, 10, 11, 40), (0, 7, 14, 21, 28)]


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pass_of(cell, steps, boundaries=None):
    x = draw(steps, B, cell.input_size)
    unrolled = unroll(cell, x, draw(B, cell.state_size, seed=1), boundaries=boundaries)
    direct = draw(steps, B, cell.state_size, seed=2)
    direct[3] = 0
    return unrolled, Entries.of(direct)


def differences(unrolled, entries, bins):
    """How far the parts are from those of the recursion row by row, relative to the largest."""
    lags = lag_bins(bins, len(unrolled))
    sums = LagSums(lags, unrolled.cell)
    fold(unrolled, entries, [sums])
    found = engine.gradients_by_lag(unrolled, entries, lags)
    for name, parts in sums.result().items():
        exact = parts.parts()
        yield float((found[name].plain() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    ("make", "bins"),
    [
        *((MINGRU, bins) for bins in BINS),
        *((make, BINS[4]) for make in (LRU_, SELECTIVE, peepholes, normalised)),
    ],
)
def test_the_parts_are_those_of_the_recursion_row_by_row(make, bins):
    unrolled, entries = pass_of(make(), 57)
    assert engine.is_unitwise(unrolled)
    assert max(differences(unrolled, entries, bins)) < 1e-13


def test_states_that_are_reset_or_scaled_on_the_way():
    reset = torch.ones(B, 4, dtype=torch.float64)
    reset[0] = 0
    boundaries = {
        k: Boundary(draw(B, 4, seed=k), torch.zeros(B, 4, dtype=torch.bool), reads)
        for k, reads in {9: (Read(reset),), 20: (Read(0.5 * reset),), 30: ()}.items()
    }
    unrolled, entries = pass_of(MINGRU(), 41, boundaries)
    assert engine.is_unitwise(unrolled)
    assert max(differences(unrolled, entries, "octaves")) < 1e-13
    elsewhere = Read(reset, torch.arange(B * 4).flip(0).view(B, 4))
    other = replace(unrolled, boundaries={9: replace(boundaries[9], reads=(elsewhere,))})
    assert not engine.is_unitwise(other)


@pytest.mark.parametrize("make", [TANH, GRU_, LSTM_, stack(MINGRU, lambda s, inputs: MINGRU(s, 4))])
def test_where_paths_pass_weights_it_is_not_used(make):
    assert unitwise(make().structure) is None


@dataclass(frozen=True, eq=False)
class Given(AbstractLinear):
    """h_k = x_k * h_{k-1} + w: its input are the factors themselves, so that they may be any."""

    weight: torch.Tensor
    gates = ()

    def shapes(self, inputs, hidden):
        return {"weight": (hidden,)}

    @property
    def hidden_size(self):
        return len(self.weight)

    input_size = hidden_size

    def project(self, x):
        return x

    def advance(self, x, projected, state):
        return CellStep(x, state, x * state + self.weight)

    def linearise(self, step):
        use = Use("weight", slice(0, self.hidden_size))
        return self.graph(Diagonal("h-", "h+", step.x), Diagonal("", "h+", use=use))


def given(factors):
    """A pass with these factors [T, H]."""
    states = torch.zeros(len(factors) + 1, 1, factors.shape[1], dtype=torch.float64)
    return engine.Unrolled(Given(states[0, 0]), factors.unsqueeze(1), states)


def found_adjoints(unrolled, entries, lags):
    """Values and exponents of every bin, [T, 1, S] and [T]."""
    for adjoint in engine.adjoints_by_lag(unrolled, entries, lags):
        values = torch.zeros_like(entries.direct)
        exponent = torch.zeros(len(values), dtype=torch.int64)
        for slab in adjoint:
            here = slice(slab.chunk.first, slab.chunk.first + len(slab.chunk))
            assert not values[here].any()
            values[here], exponent[here] = slab.values, slab.exponent
        yield values, exponent


def test_ten_thousand_steps_against_sums_written_out():
    """The adjoint of s_k over lags of a bin, sum of direct_t times the product of factors."""
    steps = 10_000
    factors = 1 - 10.0 ** (-3 * torch.rand(steps, 2, generator=torch.Generator().manual_seed(0)))
    factors = factors.double()
    entries = Entries.of(draw(steps, 1, 2))
    lags = lag_bins("octaves", steps)
    found = list(found_adjoints(given(factors), entries, lags))
    for k in (0, 1, 17, 4999, 9000, 9998, 9999):
        products = torch.cat((torch.ones(1, 2), factors[k + 1 :])).double().cumprod(0)
        terms = products * entries.direct[k:, 0]
        for bin_, (values, exponent) in zip(lags, found, strict=True):
            exact, sizes = (each[bin_.start : bin_.stop].sum(0) for each in (terms, terms.abs()))
            own = torch.ldexp(values[k, 0], exponent[k].clamp(min=-2000))
            assert float(((own - exact).abs() - 1e-13 * sizes).max()) <= 0


def test_numbers_that_leave_the_range_against_mpmath():
    """Factors from 2^-60 to 2^60: adjoints of 2^6490, each unit with its own."""
    steps = 200
    factors = torch.exp2(
        60 * (2 * torch.rand(steps, 3, generator=torch.Generator().manual_seed(1)) - 1)
    )
    factors = factors.double() * torch.tensor([1.0, 2.0**-40, -(2.0**40)])
    factors[90, 0] = 0
    direct = draw(steps, 1, 3)
    direct[:150, :, 2] = direct[153:, :, 2] = 0  # beside a product of 2^4000, a sum of 0
    entries = Entries.of(direct)
    lags = lag_bins("octaves", steps)
    largest = 0
    with mpmath.workprec(200):
        wide = [[mpmath.mpf(float(f)) for f in row] for row in factors]
        direct = [[mpmath.mpf(float(g)) for g in row[0]] for row in entries.direct]
        for bin_, (values, exponent) in zip(
            lags, found_adjoints(given(factors), entries, lags), strict=True
        ):
            for k in range(0, steps, 7):
                exact = [mpmath.mpf(0)] * 3
                for unit in range(3):
                    product = mpmath.mpf(1)
                    for t in range(k, min(k + bin_.stop, steps)):
                        product *= wide[t][unit] if t > k else 1
                        if t - k >= bin_.start:
                            exact[unit] += product * direct[t][unit]
                top = max(map(abs, exact))
                for unit in range(3):
                    own = mpmath.ldexp(mpmath.mpf(float(values[k, 0, unit])), int(exponent[k]))
                    assert abs(own - exact[unit]) <= 1e-13 * top
                if top:
                    largest = max(largest, abs(int(mpmath.log(top, 2))))
    assert largest > 6000


def test_lags_of_a_long_sequence_are_those_of_single_steps():
    """Blocks of loss steps share rows, and still bins are exact: the residual of 3000."""
    steps = 3000
    cell = MinGRU(draw(4, 1), draw(4, seed=1) - 4)
    recorded = retrograde.record_cell(cell, draw(steps, 1, 1), lambda h, s: h.square().sum())
    flow = retrograde.decompose(recorded, max_rows=2)
    assert flow.residual.ok and flow.residual < 1e-10
    octaves, exact = flow.by_lag("weight_ih"), flow.by_lag("weight_ih", bins=(0, 100, 101))
    assert len(octaves.lags) == 14 and float(octaves.share.sum()) == pytest.approx(1)
    few = flow.by_lag("weight_ih", bins=(0, 65, 129)).parts()[1]
    torch.testing.assert_close(few, octaves.select(lag=range(65, 129)).parts().squeeze(0))
    assert exact.parts()[1].abs().max() > 0


@pytest.mark.parametrize("make", [MINGRU, LRU_, SELECTIVE])
def test_norms_at_single_lags_are_those_of_every_pair(make):
    cell = make()
    recorded = retrograde.record_cell(
        cell, draw(57, B, cell.input_size), lambda h, s: h.square().sum()
    )
    flow = retrograde.decompose(recorded)
    found = flow.norms_at_lags()
    assert found.lags == (0, 1, 2, 3, 5, 9, 17, 33)
    for name, log2 in found.log2.items():
        table = flow.by_time(name).log2
        for row, lag in zip(log2, found.lags, strict=True):
            torch.testing.assert_close(row[: 57 - lag], table.diagonal(-lag), rtol=0, atol=1e-9)
            assert bool((row[57 - lag :] == -torch.inf).all())
        mean = torch.exp2(table.diagonal(-5)).mean().log2()
        assert float(found.mean(name)[4]) == pytest.approx(float(mean), abs=1e-9)


def test_norms_at_lags_beyond_the_range():
    """Half is kept at each step: 2^-1 a lag, far below any float."""
    steps = 3000
    cell = MinGRU(torch.zeros(2, 1).double(), torch.zeros(2).double())
    flow = retrograde.decompose(
        retrograde.record_cell(cell, torch.ones(steps, 1, 1).double(), lambda h, s: h.sum()),
        max_rows=2,
    )
    found = flow.norms_at_lags()
    log2 = found.log2["bias_ih"][:, 5]
    expected = log2[0] - torch.tensor(found.lags)
    torch.testing.assert_close(log2, expected, rtol=0, atol=1e-9)
    other = retrograde.record_cell(GRU_(), draw(5, B, 2), lambda h, s: h.sum())
    with pytest.raises(retrograde.RetrogradeError, match="cross weights"):
        retrograde.decompose(other).norms_at_lags()
