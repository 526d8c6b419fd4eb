"""What `make test-portability` stands on: a processor that rounds otherwise, and its settings."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
AnotherProcessor = runpy.run_path(str(ROOT / "tests/support/another_processor/rounding.py"))[
    "AnotherProcessor"
]
PORTABILITY = runpy.run_path(str(ROOT / "scripts/portability.py"))
MISSING, SETTINGS = PORTABILITY["missing"], PORTABILITY["SETTINGS"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_and_curves_are_moved_by_so_many_units_and_no_more(dtype):
    a, b = torch.randn(7, 5, dtype=dtype), torch.randn(5, 6, dtype=dtype)
    for call in (lambda: a @ b, lambda: a.tanh(), lambda: a.sum(0)):
        here = call()
        with AnotherProcessor(3):
            there, again = call(), call()
        unit = torch.finfo(dtype).eps * here.abs()  # a unit in the last place is 1/2 to 1 of it
        assert 0 < ((there - here).abs() / unit).max() <= 3.01
        assert torch.equal(there, again)


def test_what_is_exact_everywhere_stays_exact():
    x, integers = torch.randn(4, 3), torch.arange(12.0).view(4, 3)
    with AnotherProcessor(3):
        assert float(integers.sum()) == 66 and torch.equal(integers @ torch.eye(3), integers)
        assert torch.equal(torch.zeros(3).sigmoid(), torch.full((3,), 0.5))
        assert torch.equal(x * 8 / 8, x) and torch.equal(x + x, 2 * x)


def test_a_backward_pass_is_moved_too():
    weight = torch.randn(5, 5, requires_grad=True)
    x = torch.randn(3, 5)
    (here,) = torch.autograd.grad((x @ weight).tanh().square().sum(), weight)
    with AnotherProcessor(3):
        (there,) = torch.autograd.grad((x @ weight).tanh().square().sum(), weight)
    assert not torch.equal(here, there)
    torch.testing.assert_close(here, there)


def test_a_setting_that_is_not_there_says_why(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert (
        MISSING(*SETTINGS["plain"]) == "the instruction set DEFAULT is x86's, and this is aarch64"
    )
    assert MISSING(*SETTINGS["another-processor"]) is None
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert MISSING(*SETTINGS["avx2"]) is None
    assert "no AVX512" in MISSING(*SETTINGS["avx512"])
    assert "takes 2 processors" in MISSING(*SETTINGS["own-2"])


def test_ci_runs_at_least_two_settings_and_all_of_them_run_what_is_there():
    (named,) = re.findall(r'make test-portability SETTINGS="(.+)"', (ROOT / ".ci/run").read_text())
    assert len(named.split()) >= 2 and set(named.split()) <= set(SETTINGS)
    for part in ("PAGES", "DEMO", "NUMERICS"):
        assert all((ROOT / path).exists() for path in PORTABILITY[part])
