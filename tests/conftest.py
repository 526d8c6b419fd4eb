"""Settings that every test shares."""

import os

import hypothesis
import pytest
import torch

from support import close
from support.browser import browser  # noqa: F401 (a fixture)
from support.type_checks import checks, unchecked

# For sizes this small a second thread only waits for the first (`make test-portability` has two).
THREADS = os.environ["OMP_NUM_THREADS"] = os.environ.get("RETROGRADE_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))

close.use()

# One fixed set of examples for a given test, so that CI repeats what a developer saw.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


CHECKED = frozenset(
    {
        *("test_cells", "test_clipping", "test_decompose", "test_engine", "test_entry_maps"),
        "test_type_checks",
    }
)
"""The modules that run under type checks: between them they reach every cell and every shape."""


@pytest.fixture(autouse=True)
def _checked_where_it_tells(request):
    """All others run the package as its users do, in about half the time."""
    with checks(request.node.module.__name__.rpartition(".")[2] in CHECKED):
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_of_pages_are_bundled_once():
    from support import bundled

    bundled.use()


@pytest.fixture(name="unchecked")
def _unchecked():
    """The same for a single test of these modules that runs very many passes."""
    with unchecked():
        yield
