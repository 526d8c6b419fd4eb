"""`torch.testing.assert_close` in a third of the time where there is nothing to complain of."""

from functools import wraps
from typing import Any

import torch
from torch import Tensor

_assert_close = torch.testing.assert_close


@wraps(_assert_close)
def assert_close(actual: Any, expected: Any, **how: Any) -> None:
    given = how.keys() <= {"rtol", "atol"} and len(how) == 2
    if given and type(actual) is type(expected) is Tensor and _alike(actual, expected):
        if torch.allclose(actual, expected, **how):
            return
    _assert_close(actual, expected, **how)


def _alike(actual: Tensor, expected: Tensor) -> bool:
    """All that is compared beside the numbers; numbers of few bits are compared in more."""
    return (
        actual.dtype == expected.dtype
        and actual.dtype in (torch.float32, torch.float64)
        and actual.shape == expected.shape
        and actual.device == expected.device
        and actual.layout == expected.layout == torch.strided
    )


def use() -> None:
    """For all tests."""
    torch.testing.assert_close = assert_close
