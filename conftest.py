"""What tests and the examples of docstrings share."""

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each of them draws the same numbers, whatever ran before it, and so do its fixtures."""
    torch.manual_seed(0)
