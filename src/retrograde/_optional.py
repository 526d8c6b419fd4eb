"""Imports of what an extra installs.

`import retrograde` needs the core dependencies alone. A module or function that draws, writes pages
or talks to a terminal imports what it needs inside `optional`, which turns a missing package into
an error that says how to install it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from retrograde.errors import MissingExtraError


@contextmanager
def optional(purpose: str, extra: str) -> Iterator[None]:
    """Around import statements of packages that the extra `extra` installs.

    Args:
        purpose: what needs them, as the subject of a sentence: "a chart".
        extra: the name of the extra in pyproject.toml.

    Raises:
        MissingExtraError: if one of the packages is not installed. A module of Retrograde that is
            missing is a fault of the installation, and raises as it is.

    Example:
        >>> from retrograde._optional import optional
        >>> with optional("a chart", "report"):
        ...     import altair
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "retrograde":
            raise
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed; install it with "
            f"pip install 'retrograde[{extra}]'"
        ) from error
