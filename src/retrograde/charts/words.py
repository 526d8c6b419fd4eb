"""Numbers as the charts and the report write them."""

import torch


def lag_in_words(lag: range) -> str:
    """`range(3, 5)` is "3-4", `range(3, 4)` is "3"."""
    return str(lag.start) if len(lag) == 1 else f"{lag.start}-{lag.stop - 1}"


def half_life_in_words(half_life: float) -> str:
    """Steps to halve, or to double where the half-life is negative."""
    if half_life != half_life:
        return "nothing to measure"
    if half_life == float("inf"):
        return "none, it neither shrinks nor grows"
    steps = f"{abs(half_life):.3g} steps"
    return steps if half_life > 0 else f"none, it doubles every {steps}"


def in_words(log2: float) -> str:
    """A norm from its log2, also where an ordinary number would read 0 or inf."""
    if log2 == -torch.inf:
        return "0"
    return f"{2**log2:.3g}" if -1000 < log2 < 1000 else f"2^{log2:.1f}"
