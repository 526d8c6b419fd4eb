"""What tests and the examples of docstrings share."""

import gc
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from support.type_checks import checks

gc.disable()  # until all modules are imported, nearly all of which stays

# Its examples run where Keras is installed (`make test-integrations`).
collect_ignore = [] if find_spec("keras") else ["src/retrograde/integrations/keras.py"]
# It has no examples, and marimo notes the stack of whoever imports an app, which takes a second.
collect_ignore += ["src/retrograde/explore/app.py"]

# A seed is noted for devices that are not there, each time with the stack of the caller, which
# in a test takes three hundred times as long as to set it.
torch.cuda.traceback = torch.mtia.traceback = torch.xpu.traceback = SimpleNamespace(
    format_stack=list
)


@pytest.fixture(autouse=True)
def _examples_are_checked(request):
    """Those of docstrings; what tests are checked, tests/conftest.py says."""
    with checks(True) if isinstance(request.node, pytest.DoctestItem) else nullcontext():
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each of them draws the same numbers, whatever ran before it, and so do its fixtures."""
    torch.manual_seed(0)


def pytest_collection_finish():
    """Some hundred thousand objects that stay: no later collection need look at them again."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # new objects, and not 700: many a pass makes more
