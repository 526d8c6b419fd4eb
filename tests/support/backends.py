"""Either backend, whatever the environment says."""

import os
from contextlib import contextmanager
from unittest import mock

import retrograde
from retrograde.compiled import library


def forget():
    """Look again for the library, and at the environment."""
    library._found.cache_clear()
    library.library.cache_clear()


@contextmanager
def using(name):
    """In it a backend is asked for by name; with None as if nothing were asked for."""
    environment = {k: v for k, v in os.environ.items() if k != library.VARIABLE}
    if name is not None:
        environment[library.VARIABLE] = name
    try:
        with mock.patch.dict(os.environ, environment, clear=True):
            forget()
            yield
    finally:
        forget()


with using(None):
    BACKENDS = ("eager", "compiled") if retrograde.backend() == "compiled" else ("eager",)
"""Those that there are on this machine."""
