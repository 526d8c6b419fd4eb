"""Exit codes, and what becomes of errors."""

import sys
import traceback
from collections.abc import Callable

import torch

from retrograde.cli.terminal import complain, forgive_encodings, guarded_output
from retrograde.errors import RetrogradeError

FINDINGS, UNUSABLE, BUG, INTERRUPTED = 1, 2, 70, 130
"""Exit codes; 70 is what sysexits.h calls an internal software error."""


def run(command: Callable[[], None]) -> None:
    """Run the command line; errors that a user can act on are a message and exit code 2."""
    forgive_encodings()
    try:
        with guarded_output():
            command()
    except RetrogradeError as error:
        complain(f"error: {error}")
        sys.exit(UNUSABLE)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            complain("interrupted; no file was left half-written")
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            first = (str(error).splitlines() or [""])[0]
            complain(f"error: out of memory; a smaller batch or model needs less. {first}")
            sys.exit(UNUSABLE)
        complain(f"{traceback.format_exc()}error: this is a fault of retrograde; please report it")
        sys.exit(BUG)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether there was too little memory; torch has no class for that on the CPU."""
    said = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in said for words in ("can't allocate memory", "not enough memory"))
    )
