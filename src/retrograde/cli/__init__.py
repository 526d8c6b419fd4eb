"""The command line: `retrograde demo`, `diagnose`, `horizon`, `audit`, `compare` and more.

`inspect`, `explain` and `explore` are the other commands; `retrograde --help` lists all of them.

Exit codes: 0 healthy, 1 findings at or above `--fail-on`, 2 unusable input, 130 interrupted.
"""

import sys

from retrograde._optional import optional
from retrograde.errors import MissingExtraError


def main() -> None:
    """Run the command line; without the extra `cli` it says how to install it, with exit code 2."""
    try:
        with optional("the command line", "cli"):
            from retrograde.cli import commands
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    commands.main()


__all__ = ["main"]
