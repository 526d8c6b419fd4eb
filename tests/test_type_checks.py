"""The tests' own type checks: they see a wrong shape, wherever a function is defined."""

import importlib
import sys

import jaxtyping
import pytest
import torch

from support.type_checks import unchecked

SOURCE = """
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

def square(x: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    return x if x.sum() < 1e3 else x[0]

def within(x):
    def square(x: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
        return x if x.sum() < 1e3 else x[0]
    return square(x)

@dataclass(frozen=True)
class Square:
    x: Float[Tensor, "N N"]

    def __post_init__(self):
        if self.x.sum() > 1e3:
            square(self.x)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Written to a file and imported as the package is."""
    (tmp_path / "of_shapes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    with jaxtyping.install_import_hook("of_shapes", "support.type_checks.checked"):
        yield importlib.import_module("of_shapes")
    del sys.modules["of_shapes"]


@pytest.mark.parametrize("name", ["square", "within", "Square"])
def test_a_wrong_shape_is_seen(module, name):
    call = getattr(module, name)
    for _ in range(2):  # what is made at the first call is asked at every call
        call(torch.ones(2, 2))
        with pytest.raises(jaxtyping.TypeCheckError, match="x"):
            call(torch.ones(2, 3))
        with pytest.raises(jaxtyping.TypeCheckError):
            call(torch.full((2, 2), 1e4))  # a result of one axis
        with unchecked():
            call(torch.ones(2, 3))
