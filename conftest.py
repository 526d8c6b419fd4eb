"""What tests and the examples of docstrings share."""

import gc
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch

from support.type_checks import checks

# Its examples run where Keras is installed (`make test-integrations`).
collect_ignore = [] if find_spec("keras") else ["src/retrograde/integrations/keras.py"]


@pytest.fixture(autouse=True)
def _examples_are_checked(request):
    """Those of docstrings; what tests are checked, tests/conftest.py says."""
    with checks(True) if isinstance(request.node, pytest.DoctestItem) else nullcontext():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each of them draws the same numbers, whatever ran before it, and so do its fixtures."""
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # which spares it the 0.5 ms that it takes to note the stack of its caller
        torch.default_generator.manual_seed(0)


def pytest_collection_finish():
    """Some hundred thousand objects that stay: no later collection need look at them again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # new objects, and not 700: many a pass makes more
