"""What thresholds and counts have to be."""

from retrograde.errors import ArgumentError


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def positive(name: str, value: object) -> None:
    """Refuse what is not a positive number.

    Raises:
        ArgumentError: with what it is.
    """
    if not is_number(value) or not value > 0:  # type: ignore[operator]
        raise ArgumentError(f"{name} must be a positive number; got {value!r}")


def whole(name: str, value: object) -> None:
    """Refuse what is not a positive integer.

    Raises:
        ArgumentError: with what it is.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} must be a positive integer; got {value!r}")
