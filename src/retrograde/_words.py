"""Numbers as every report, chart and message writes them: each kind with one sign and one rounding.

| kind | written by | looks like |
|---|---|---|
| a measured number | `number` | 0.0312, 7, 1.2e+08 |
| a share | `share` | 12.3% |
| a power of two | `power_of_two` | 2^-13.6 |
| steps | `steps` | 1 step, 2.24 steps |
| a count | `counted` | 1 layer, 3 layers |
| a residual, which is a rounding error | `residual` | 4.7e-07 |
| anything with a unit | `value`, `unit` | 2^23.4; 98.4% of the units; 1.3 as a factor per step |
"""

import math

SHARES = (
    *("of the gradient", "of the gradient's entries", "of the units", "of units and steps"),
    "of the gradient, by the last hop",
)
"""Units of what is a share of a whole, and written in per cent."""


def number(value: int | float | None) -> str:
    """Three digits, a whole number with all of them; "-" if there is none."""
    if value is None or value != value:
        return "-"
    whole = abs(value) < 1e6 and value == int(value)
    return str(int(value)) if whole else f"{value:.3g}"


def share(value: float) -> str:
    """In per cent with one digit after the point, never "-0.0%"; "-" if there is none."""
    return "-" if value != value else f"{round(value, 3) + 0.0:.1%}"


def power_of_two(log2: float) -> str:
    """2 to this power, with one digit after the point."""
    return f"2^{log2:.1f}"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things: "1 step", "2 steps"."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural or noun + 's'}"


def steps(count: int | float) -> str:
    """A number of steps, which may be broken."""
    return "1 step" if count == 1 else f"{number(count)} steps"


def residual(value: float, note: str = "") -> str:
    """A residual, or why there is none."""
    if value != value:
        return note
    return f"{value:.1e}" + (f" ({note})" if note else "")


def value(of: float | None, unit: str, name: str = "") -> str:
    """A number as its unit asks for, without the unit."""
    if of is None or of != of or math.isinf(of):
        return number(of) if of is None or of != of else ("inf" if of > 0 else "-inf")
    if name == "residual":
        return residual(of)
    if unit in SHARES:
        return share(of)
    if unit == "powers of two":
        return power_of_two(of)
    if unit == "powers of two per step":
        return in_words(of)
    return number(of)


def suffix(unit: str, count: float | None = None) -> str:
    """What is written behind a number of this unit."""
    if unit == "powers of two":
        return ""
    if unit == "powers of two per step":
        return "as a factor per step"
    return unit.removesuffix("s") if count == 1 and unit in ("steps", "values") else unit


def lag_in_words(lag: range) -> str:
    """`range(3, 5)` is "3-4", `range(3, 4)` is "3"."""
    return str(lag.start) if len(lag) == 1 else f"{lag.start}-{lag.stop - 1}"


def half_life_in_words(half_life: float) -> str:
    """Steps to halve, or to double where the half-life is negative."""
    if half_life != half_life:
        return "nothing to measure"
    if half_life == float("inf"):
        return "none, it neither shrinks nor grows"
    every = steps(abs(half_life))
    return every if half_life > 0 else f"none, it doubles every {every}"


def in_words(log2: float) -> str:
    """A norm from its log2, also where an ordinary number would read 0 or inf."""
    if log2 == -math.inf:
        return "0"
    return f"{2**log2:.3g}" if -1000 < log2 < 1000 else power_of_two(log2)
