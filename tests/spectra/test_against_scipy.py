"""What is computed here without SciPy, as it is no dependency of the core, beside SciPy's answer.

torch finds all eigenvalues of a matrix, or the outermost of a symmetric one. The spectral radius of
a large recurrent matrix, distances of distributions and the peaks of a curve it does not have.
"""

import math

import pytest
import torch
from scipy import signal, stats
from scipy.sparse import linalg

from retrograde.diagnosis.need import autocorrelation, season_of
from retrograde.spectra.weights import extremes
from retrograde.spectra.weights.initialisations import ALPHA, _Values


@pytest.fixture
def matrix():
    """As torch initialises a recurrent matrix that is too large to find all its eigenvalues."""
    size = extremes.EXACT + 76
    return (torch.rand(size, size, dtype=torch.float64) * 2 - 1) / math.sqrt(size)


def test_the_spectral_radius_of_a_large_matrix(matrix):
    """The eigenvalues fill a disc; four such matrices gave relative differences of 4e-8 at most."""
    values = linalg.eigs(matrix.numpy(), k=6, which="LM", ncv=200, return_eigenvectors=False)
    assert extremes.spectral_radius(matrix) == pytest.approx(abs(values).max(), rel=1e-6)


def test_the_spectral_radius_where_one_eigenvalue_stands_out(matrix):
    matrix[0, 0] += 3
    values = linalg.eigs(matrix.numpy(), k=1, which="LM", return_eigenvectors=False)
    assert extremes.spectral_radius(matrix) == pytest.approx(abs(values[0]), rel=1e-9)


def test_the_largest_singular_value_of_a_large_matrix(matrix):
    expected = linalg.svds(matrix.numpy(), k=1, return_singular_vectors=False)[0]
    found = extremes.largest_singular_value(matrix)
    assert found == pytest.approx(expected, rel=1e-10)
    assert found <= expected * (1 + 1e-9)  # a Ritz value lies inside


@pytest.mark.parametrize("n", [7, 50, 4000])
@pytest.mark.parametrize("power", [1.0, 1.02, 1.5, 3.0])
def test_whether_values_follow_a_law(n, power):
    """The largest distance of the distributions, within what the inequality allows or not."""
    values = torch.rand(n, dtype=torch.float64) ** power
    distance = stats.kstest(values.numpy(), stats.uniform.cdf).statistic
    allowed = math.sqrt(-math.log(ALPHA / 2) / (2 * n))
    assert _Values.of(values).follow(lambda x: x.clamp(0, 1)) == (distance <= allowed)


@pytest.mark.parametrize("period", [7, 12, 30])
def test_a_season_is_a_peak_of_the_autocorrelation(period):
    time = torch.arange(8 * period, dtype=torch.float64)[:, None, None]
    x = torch.sin(2 * math.pi * time / period) + 0.3 * torch.randn(8 * period, 4, 1).double()
    lag, height = season_of(x, 0.5)
    r = autocorrelation(x)
    peaks, found = signal.find_peaks(r.numpy(), height=0.5)
    assert lag == period and lag in peaks
    assert height == found["peak_heights"][list(peaks).index(lag)]
    assert lag == peaks[found["peak_heights"] >= 0.9 * found["peak_heights"].max()][0]
