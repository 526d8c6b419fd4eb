"""What stops the lecture before anything is started."""

import socket
import sys

import pytest

from retrograde.errors import ArgumentError, InputError, MissingExtraError
from retrograde.explore import serve


def test_a_port_in_use_is_named_with_a_way_out():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: .*in use; choose another with --port"):
            serve(port)


@pytest.mark.parametrize("port", [0, 70_000, "2718", None])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ArgumentError, match="port"):
        serve(port)


def test_without_marimo_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "marimo", None)
    with pytest.raises(MissingExtraError, match=r"needs marimo.*'retrograde\[explore\]'"):
        serve()
