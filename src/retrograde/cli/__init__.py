"""The command line: `retrograde demo`, `diagnose`, `compare`, `inspect` and `explain`.

Exit codes: 0 healthy, 1 findings at or above `--fail-on`, 2 unusable input, 130 interrupted.
"""

from retrograde.cli.commands import main

__all__ = ["main"]
