"""Powers of two are exact, and numbers beyond the range behave as Python's own integers say."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrograde.engine.scaling import (
    CENTRE,
    SLACK,
    Scaled,
    aligned,
    all_finite,
    power_of_two,
    row_norms,
    times_power_of_two,
)

DTYPES = [torch.float32, torch.float64]
exponents = st.integers(-5000, 5000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_are_exact(dtype):
    limit = 126 if dtype == torch.float32 else 1022
    like = torch.zeros((), dtype=dtype)
    powers = power_of_two(torch.arange(-limit, limit + 1), like).tolist()
    assert powers == [2.0**e for e in range(-limit, limit + 1)]
    assert float(power_of_two(torch.tensor(-(2**40)), like)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    mantissa=st.floats(1, 2, exclude_max=True, width=32), start=st.integers(-120, 120), by=exponents
)
def test_multiplying_reaches_across_the_whole_range(dtype, mantissa, start, by):
    value = torch.tensor([[mantissa * 2.0**start]], dtype=dtype)
    got = times_power_of_two(value, torch.tensor([by]))
    exact = Fraction(float(value)) * Fraction(2) ** by
    largest = Fraction(torch.finfo(dtype).max)
    if exact > largest:
        assert got.isinf().all()
    elif exact >= Fraction(torch.finfo(dtype).tiny):
        assert Fraction(float(got)) == exact
    else:
        assert Fraction(float(got)) <= Fraction(torch.finfo(dtype).tiny)


@st.composite
def scaled(draw, rows=3):
    values = draw(st.lists(st.floats(-2, 2, width=32), min_size=2 * rows, max_size=2 * rows))
    exponent = draw(st.lists(exponents, min_size=rows, max_size=rows))
    return Scaled(torch.tensor(values, dtype=torch.float64).view(rows, 2), torch.tensor(exponent))


def exact_rows(some: Scaled) -> list[list[Fraction]]:
    return [
        [Fraction(value) * Fraction(2) ** exponent for value in row]
        for row, exponent in zip(some.values.tolist(), some.exponent.tolist(), strict=True)
    ]


def close(ours: Fraction, exact: Fraction, scale: Fraction) -> bool:
    return abs(ours - exact) <= scale * Fraction(2) ** -48


@given(scaled(), scaled())
def test_sums_of_rows(one, other):
    ours = exact_rows(one.plus(other))
    for row, a, b in zip(ours, exact_rows(one), exact_rows(other), strict=True):
        scale = max(map(abs, a + b))
        assert all(close(s, x + y, scale) for s, x, y in zip(row, a, b, strict=True))


@given(scaled(), scaled())
def test_aligned_rows_share_exponents_and_lose_nothing_that_counts(one, other):
    a, b = aligned((one, other))
    assert a.exponent.equal(b.exponent)
    for before, after in zip(
        exact_rows(one) + exact_rows(other), exact_rows(a) + exact_rows(b), strict=True
    ):
        scale = max(map(abs, sum(exact_rows(one) + exact_rows(other), [])))
        assert all(close(x, y, scale) for x, y in zip(after, before, strict=True))


@given(scaled(rows=4))
def test_the_total_is_the_sum_over_rows(some):
    rows = exact_rows(some)
    scale = max(abs(value) for row in rows for value in row)
    (ours,) = exact_rows(some.total())
    assert all(close(s, sum(row[i] for row in rows), scale) for i, s in enumerate(ours))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.tuples(st.integers(-140, 120), st.booleans()), min_size=1, max_size=5))
def test_normalising_centres_the_norms_and_changes_no_number(dtype, sizes):
    values = torch.tensor([[2.0**e * on, -(2.0**e) * on] for e, on in sizes], dtype=dtype)
    some = Scaled(values, torch.arange(len(sizes)) * 1000)
    normal, norms = some.normalised()
    torch.testing.assert_close(norms, row_norms(normal.values))
    nonzero = values.any(1)
    low, high = 2.0 ** (CENTRE - SLACK), 2.0 ** (CENTRE + SLACK)
    assert bool(((norms >= low) & (norms <= high))[nonzero].all())
    assert exact_rows(normal) == exact_rows(some)
    log2 = torch.tensor(
        [e + 0.5 + 1000 * i if on else -torch.inf for i, (e, on) in enumerate(sizes)],
        dtype=torch.float64,
    )
    log2[~nonzero] = -torch.inf  # float32 rounds what is below its smallest number to zero
    torch.testing.assert_close(some.log2_norms(), log2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *DTYPES])
def test_a_single_number_that_is_not_finite_is_seen(dtype):
    largest = torch.finfo(dtype).max
    values = torch.linspace(-1, 1, 7 * 5 * 3).to(dtype).view(7, 5, 3)
    values[0, 0, 0], values[6, 4, 2] = -largest, largest
    assert all_finite(values) and all_finite(values.transpose(0, 2)) and all_finite(values[:0])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in ((0, 0, 0), (3, 2, 1), (6, 4, 2)):
            spoilt = values.clone()
            spoilt[place] = bad
            assert not all_finite(spoilt)
