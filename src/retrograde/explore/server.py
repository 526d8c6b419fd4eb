"""The app, served to the browser of this machine by marimo."""

import os
import runpy
import socket
import sys
from pathlib import Path
from unittest import mock

from retrograde import _checks
from retrograde._optional import optional
from retrograde.errors import InputError

APP = Path(__file__).with_name("app.py")

HOST, PORT = "127.0.0.1", 2718
"""No other machine can see the app."""


def serve(port: int = PORT, browser: bool = True) -> None:
    """Show the lecture in the browser until interrupted. It needs no network.

    Args:
        port: where to listen on this machine.
        browser: whether to open the browser; if not, the address is only printed.

    Raises:
        ArgumentError: for a port that is none.
        InputError: if something else listens there.
        MissingExtraError: without marimo; the message says how to install it.
    """
    _checks.whole("port", port, 1, 65535)
    with optional("the lecture", "explore"):
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import marimo  # noqa: F401
    _refuse_taken(port)
    print(f"the lecture is at http://{HOST}:{port}; Ctrl-C ends it", flush=True)
    command = ["marimo", "--quiet", "run", str(APP), "--no-sandbox", "--host", HOST]
    command += ["--port", str(port), *([] if browser else ["--headless"])]
    with mock.patch.object(sys, "argv", command):
        runpy.run_module("marimo", run_name="__main__", alter_sys=True)


def _refuse_taken(port: int) -> None:
    """Refuse a port where something listens, or that needs privileges, before anything starts."""
    with socket.socket() as trial:
        if os.name == "posix":  # as servers do there; elsewhere it would take the port from them
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"cannot listen on port {port}: {error.strerror}; choose another with --port"
            ) from None
