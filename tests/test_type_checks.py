"""The tests' own type checks: they see a wrong shape, wherever a function is defined."""

import importlib
import sys

import jaxtyping
import pytest
import torch

from support.type_checks import unchecked

SOURCE = """
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Square = Float[Tensor, "N N"]

def inside(row: list[Square], pair: tuple[int, Square], named: dict[str, Square], by: Literal["N"]):
    pass

def square(x: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    return x if x.sum() < 1e3 else x[0]

def within(x):
    def square(x: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
        return x if x.sum() < 1e3 else x[0]
    return square(x)

@dataclass(frozen=True)
class Holding:
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


@pytest.mark.parametrize("name", ["square", "within", "Holding"])
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


@pytest.mark.parametrize(
    "wrong",
    [
        {"row": [torch.ones(2, 3)]},
        {"pair": (1, torch.ones(2, 3))},
        {"named": {"x": torch.ones(2, 3)}},
        {"by": "T"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_holds_others_is_looked_into(module, wrong):
    x = torch.ones(2, 2)
    right = {"row": [x], "pair": (1, x), "named": {"x": x}, "by": "N"}
    for _ in range(2):
        module.inside(**right)
        with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(wrong))):
            module.inside(**right | wrong)
